"""What every network that is broken on purpose must show: its rule first, and remedies that run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
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


def each_of(broken: Sequence[Broken]) -> Callable[[pytest.Metafunc], None]:
    """Return what a test file calls pytest_generate_tests, to run the tests below for each of these networks."""

    def generate(metafunc: pytest.Metafunc) -> None:
        if "examined" in metafunc.fixturenames:
            names = [each.name for each in broken]
            metafunc.parametrize("examined", broken, indirect=True, ids=names, scope="module")

    return generate


@pytest.fixture(scope="module")
def examined(request: pytest.FixtureRequest) -> Examined:
    """A broken network and what was found, once for all tests of it."""
    broken: Broken = request.param
    network, loader = broken.build()
    return Examined(broken, network, loader, examine(network, loader, metric=accuracy, **broken.told))


def test_a_broken_network_gets_its_rule_first(examined: Examined) -> None:
    assert examined.found.findings[0].code == examined.broken.code


def test_every_remedy_runs_as_it_is_or_is_a_template(examined: Examined) -> None:
    templates = run_remedies(examined)
    assert {finding.code for finding in templates} <= {"MN006", "MN009"}


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
