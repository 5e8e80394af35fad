"""Processes that pool their images come to what one process comes to with all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mednorm
from mednorm import recalibrate
from mednorm.errors import RunError
from tests.harness import bytes_of
from tests.processes import run_processes
from tests.unit.population.networks import Broken, images_for, made


def network_and_share(rank: int) -> tuple[nn.Module, list]:
    """The same network in each process; the first has three batches, the other one."""
    torch.manual_seed(0)
    network = nn.Sequential(made("planes"), mednorm.DomainBatchNorm(4, domains=["Basel", "Lund"]), mednorm.BatchNorm(4))
    network[2].process_group = "world"
    images = images_for("planes")
    parts = [images[:7], images[7:9], images[9:11]] if rank == 0 else [images[11:]]
    sites = ["Basel", None, None] if rank == 0 else ["Lund"]
    return network, [{"image": part, "site": [s] * len(part)} for part, s in zip(parts, sites, strict=True)]


def brightness(outputs, labels) -> float:
    return float(outputs.mean())


def work(rank: int, folder: str) -> None:
    """Recalibrate by both methods with all images, and meet an error in one process."""
    seen = {}
    for method in ("sequential", "batch"):
        network, share = network_and_share(rank)
        labelled = [(batch["image"], 0) for batch in share]
        report = recalibrate(
            network, share, method, process_group="world", validation=labelled, metric=brightness, limit=None
        )
        seen[method] = (network.state_dict(), report.images, report.metric)
    network, share = network_and_share(rank)
    before = bytes_of(network)
    try:
        recalibrate(network, Broken(share, OSError("disk"), 2, 0) if rank == 1 else share, process_group="world")
    except (OSError, RunError) as error:
        seen["error"] = str(error)
    seen["same"] = bytes_of(network) == before
    torch.save(seen, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_processes(work, 2, folder, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method", ["sequential", "batch"])
def test_two_processes_pooled_are_one_with_all_images(processes, method):
    alone, first = network_and_share(0)
    batches = first + network_and_share(1)[1]
    labelled = [(batch["image"], 0) for batch in batches]
    report = recalibrate(alone, batches, method, validation=labelled, metric=brightness)
    assert report.kept
    for state, images, metric in (process[method] for process in processes):
        assert images == 15 == report.images
        assert metric == pytest.approx(report.metric, rel=1e-5, abs=1e-6)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-6)
    first, second = (process[method][0] for process in processes)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_an_error_in_one_process_ends_all_and_leaves_every_network_as_it_was(processes):
    assert processes[1]["error"] == "disk"
    assert "got an error in another" in processes[0]["error"]
    assert processes[0]["same"] == processes[1]["same"] is True
