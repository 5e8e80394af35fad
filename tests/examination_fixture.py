"""An examination made by hand, for the tests of what is made of one: every severity, two sites, hostile names.

Of one site the patients are known.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mednorm.examine.examination import Examination
from mednorm.examine.findings import Evidence, Finding
from mednorm.examine.records import BatchesSeen, Gap, Layer, Probed, Seen, State, Surroundings
from mednorm.moments import Moments

HOSTILE = "<script>alert(1)</script>"
REMEDY = "mednorm treat runs/batch --data site-B --fix MN004"


def seen(images: int, mean: float = 0.0, std: float = 1.0, channels: int = 4) -> Seen:
    """What `images` images show whose means scatter by half a standard deviation."""
    generator = torch.Generator().manual_seed(images)
    values = mean + std * torch.randn(images, channels, 60, generator=generator, dtype=torch.float64)
    values += 0.5 * std * torch.randn(images, channels, 1, generator=generator, dtype=torch.float64)
    rows = Moments.of(values, per_sample=True)
    return Seen(rows.pooled(), Moments.of(rows.mean), Moments.of(rows.variance))


def state(channels: int = 4, **changed: object) -> State:
    zeros, ones = torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64)
    made = State(1e-5, 0.1, ones, zeros, zeros, ones, training=False, updates=500)
    return replace(made, **changed)  # type: ignore[arg-type]


def layer(name: str, place: int, channels: int = 4, **changed: object) -> Layer:
    """A layer of two sites, of which B has an offset of 1 and twice the scale."""
    sites = {"A": seen(12, channels=channels), "B": seen(6, 1.0, 2.0, channels=channels)}
    whole = sites["A"].merge(sites["B"])
    batches = BatchesSeen(whole.of_means, whole.of_variances)
    made = Layer(
        name, "BatchNorm2d", place, channels, "float32", state(channels), Surroundings(), whole, sites, batches
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def examination(*, hostile: bool = False, blocks: int = 2) -> Examination:
    """Findings of every severity in a network of two layers a block."""
    names = [f"block{block}.{part}" for block in range(blocks) for part in ("bn1", "bn2")]
    if hostile:
        names[-1] = HOSTILE
    site = HOSTILE if hostile else "B"
    layers = tuple(layer(name, place) for place, name in enumerate(names))
    layers = tuple(replace(each, sites={"A": each.sites["A"], site: each.sites["B"]}) for each in layers)
    broken = torch.tensor([1.0, -1.0, torch.inf, torch.nan], dtype=torch.float64)
    layers = (*layers[:-1], replace(layers[-1], state=state(running_var=broken, updates=None)))
    findings = (
        Finding(
            "MN004",
            "error",
            names[0],
            f"Images of site {site!r} are 1.42 σ away from what the layer normalizes with.",
            (
                Evidence("distance of the site", 1.42, 0.5, "σ"),
                Evidence("images of the site", 6, unit="images"),
                Evidence("patients of the site", 3, unit="patients"),
            ),
            REMEDY,
            site=site,
        ),
        Finding(
            "MN001",
            "error",
            "",
            "On the same images the outputs differ.",
            (Evidence("divergence of the outputs", torch.inf, 1.0),),
            "mednorm.recalibrate(model, loader)",
        ),
        Finding(
            "MN003",
            "warning",
            names[-1],
            f"The statistics of a batch of 4 images are noisy in {names[-1]}.",
            (Evidence("noise of the batch statistics", 0.45, 0.4, "σ"),),
            'mednorm.convert(model, to="renorm")',
        ),
        Finding("MN002", "info", names[1], "A little of the initial values is left.", (), ""),
    )
    gap = Gap(3, torch.inf, (0.61, 0.88), dict.fromkeys(names, 0.25))
    probed = Probed("UNet", layers, 18, 4, 1, {"A": 12, site: 6}, gap, patients={site: 3})
    return Examination(probed, findings)
