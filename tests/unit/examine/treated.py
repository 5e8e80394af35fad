"""Broken networks, what is found in them, and what the remedies do to them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import mednorm
from mednorm.examine.examination import Examination
from mednorm.examine.examine import examine
from mednorm.examine.findings import Finding
from tests.unit.examine.broken_a import Broken
from tests.unit.examine.networks import accuracy


@dataclass(frozen=True)
class Examined:
    """A broken network, the images, and what was found."""

    broken: Broken
    network: nn.Module
    loader: list[dict[str, Any]]
    found: Examination


def examine_broken(broken: Broken) -> Examined:
    """Build a broken network and examine it."""
    network, loader = broken.build()
    return Examined(broken, network, loader, examine(network, loader, metric=accuracy, **broken.told))


def run_remedies(examined: Examined) -> list[Finding]:
    """Run each remedy on a copy of the network, with the names that `Finding.remedy` tells; return the templates.

    After that of the diagnosis, the network's outputs are numbers.
    """
    templates = []
    for finding in {finding.remedy: finding for finding in examined.found.findings}.values():
        if "…" in finding.remedy:
            templates.append(finding)
            continue
        model, loader = copy.deepcopy(examined.network), examined.loader
        if "images in float32" in finding.remedy:
            loader = [{**batch, "image": batch["image"].float()} for batch in loader]
        whose = [batch for batch in loader if finding.site in batch.get("site", [finding.site])]
        names = {"mednorm": mednorm, "torch": torch, "model": model, "loader": loader, "loader_of_site": whose}
        exec(finding.remedy, names)
        output = names["model"].eval()(loader[0]["image"])
        assert finding.code != examined.broken.code or bool(output.isfinite().all())
    return templates
