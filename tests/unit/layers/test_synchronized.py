"""Layers that share their statistics over real processes give what one process gives on the joined batch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mednorm
from mednorm import BatchNorm
from mednorm.errors import ShapeError
from tests.harness import CHANNELS, assert_equal_to, bytes_of, images
from tests.processes import run_processes
from tests.unit.layers import shards
from tests.unit.layers.kinds import IMAGES, KINDS, at_sites, network
from tests.unit.layers.shards import CASES, SHARES, TWICE, Case, Share

# "pair" is a group of the first and the last of three processes, so that a process's number in it is not its own.
MEMBERS = {"pair": [0, 2], "world": [0, 1, 2]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
WRAPPED = ["batch", "renorm", "moving", "range", "domain"]
TRACKING = [kind for kind in KINDS if kind != "frozen"]
GROUPS = pytest.mark.parametrize("group", MEMBERS)
ALL_CASES = pytest.mark.parametrize("case", CASES, ids=str)
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
IMAGE = (7, CHANNELS, 5, 6)


# --- what the processes do --------------------------------------------------------------------------------------------


def work(rank: int, folder: str) -> None:
    """Do everything the tests look at, in one process, and write it down."""
    pair = dist.new_group(MEMBERS["pair"])
    seen: dict[str, Any] = {}
    for name, group in (("pair", pair), ("world", "world")):
        if rank not in MEMBERS[name]:
            continue
        number = MEMBERS[name].index(rank)
        for case in CASES:
            sizes = case.shares[name]
            seen[f"{name} {case}"] = shards.train(case, sizes, Share(sizes, number), group)
        for case in TWICE:
            sizes = case.shares[name]
            seen[f"{name} {case} twice"] = shards.penalize(case, sizes, Share(sizes, number), group)
    share = Share(SHARES["world"], rank)
    seen["wrapped"] = {kind: train_wrapped(kind, share) for kind in WRAPPED}
    seen["accumulated"] = {kind: accumulated(kind, share(images(IMAGE, torch.float64))) for kind in KINDS}
    seen["one bad"] = {kind: statistics_after_a_bad_value(kind, rank) for kind in TRACKING}
    seen["refused"] = refusal_of_one_value(rank)
    seen["outside"] = output_and_buffers(BatchNorm(CHANNELS, process_group=pair)) if rank == 1 else {}
    seen["unpickled"] = output_of_an_unpickled_layer(share)
    if rank == 0:  # the others do not take part
        seen["evaluated alone"] = {kind: evaluated(kind) for kind in KINDS}
    torch.save(seen, f"{folder}/{rank}.pt")


def train_wrapped(kind: str, share: Share | None) -> dict[str, Tensor]:
    """Train a network by gradient descent, under DistributedDataParallel where there is a share."""
    torch.manual_seed(0)
    bare = network(kind, torch.float64, process_group="world")
    model: nn.Module = bare if share is None else DistributedDataParallel(bare)
    share = share or Share([7], 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(3):
        x = share(images((7, *IMAGES[1:]), torch.float64, seed=step))
        wanted = share(torch.arange(7, dtype=torch.float64)[:, None])
        with at_sites(model, share(torch.tensor(shards.SITES))):
            # Gradients are averaged over processes: each takes its sum over the images that one process has on average.
            loss = (model(x) - wanted).square().sum() * len(share.sizes) / 7
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {**dict(bare.named_parameters()), **dict(bare.named_buffers())}


def accumulated(kind: str, x: Tensor) -> dict[str, Tensor]:
    """Let the running statistics move once, by two micro-batches, of one image and of the others."""
    layer = KINDS[kind](CHANNELS, process_group="world", dtype=torch.float64)
    with mednorm.accumulate(layer):
        for micro in (x[:1], x[1:]):
            with at_sites(layer, [0] * len(micro)):
                layer(micro)
    return layer.state_dict()


def statistics_after_a_bad_value(kind: str, rank: int) -> dict[str, Tensor]:
    layer = KINDS[kind](CHANNELS, process_group="world")
    x = images(IMAGE)
    if rank == 2:
        x[1, 2, 3, 4] = torch.nan
    with at_sites(layer, [rank] * len(x)):
        layer(x)
    return dict(layer.named_buffers())


def refusal_of_one_value(rank: int) -> str:
    try:
        BatchNorm(CHANNELS, process_group="world")(images((1 if rank == 1 else 0, CHANNELS)))
    except ShapeError as error:
        return str(error)
    return "not refused"


def output_and_buffers(layer: nn.Module) -> dict[str, Tensor]:
    return {"output": layer(images(IMAGE)).detach(), **dict(layer.named_buffers())}


def evaluated(kind: str) -> Tensor:
    layer = KINDS[kind](CHANNELS, process_group="world").eval()
    with at_sites(layer, shards.SITES):
        return layer(images(IMAGE)).detach()


def output_of_an_unpickled_layer(share: Share) -> Tensor:
    layer = copy.deepcopy(pickle.loads(pickle.dumps(BatchNorm(CHANNELS, process_group="world"))))
    return layer(share(images(IMAGE))).detach()


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict[str, Any]]:
    """Run three processes once; return what each of them saw."""
    folder = tmp_path_factory.mktemp("processes")
    run_processes(work, 3, folder, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


def of_case(seen: list[dict[str, Any]], group: str, what: object) -> list[Any]:
    """Return what the members of the group saw, in order."""
    return [seen[rank][f"{group} {what}"] for rank in MEMBERS[group]]


@pytest.fixture(scope="module")
def alone():
    """Return a function that trains in this process on the joined batches, once for all tests that look at it."""
    trained: dict[str, dict[str, Any]] = {}

    def train(case: Case, group: str) -> dict[str, Any]:
        key = f"{group} {case}"
        if key not in trained:
            trained[key] = shards.train(case, case.shares[group], Share([case.shape[0]], 0))
        return trained[key]

    return train


# --- one layer --------------------------------------------------------------------------------------------------------


@GROUPS
@ALL_CASES
def test_outputs_and_gradients_of_the_input_are_those_of_the_joined_batch(seen, alone, case, group):
    ours, wanted = of_case(seen, group, case), alone(case, group)
    for what in ("outputs", "gradients", "evaluated"):
        assert_equal_to(torch.cat([each[what] for each in ours]), wanted[what], TOLERANCE[case.dtype])


@GROUPS
@ALL_CASES
def test_gradients_of_the_parameters_add_up_to_those_of_the_joined_batch(seen, alone, case, group):
    ours, wanted = of_case(seen, group, case), alone(case, group)["parameters"]
    for name, expected in wanted.items():
        total = torch.stack([each["parameters"][name] for each in ours]).sum(0)
        assert_equal_to(total, expected, TOLERANCE[case.dtype])


@GROUPS
@ALL_CASES
def test_every_process_ends_with_the_statistics_of_the_joined_batches(seen, alone, case, group):
    ours, wanted = of_case(seen, group, case), alone(case, group)["buffers"]
    for each in ours:
        for name, expected in wanted.items():
            assert torch.equal(each["buffers"][name], ours[0]["buffers"][name])
            assert_equal_to(each["buffers"][name], expected, TOLERANCE[case.dtype])


@GROUPS
@pytest.mark.parametrize("case", TWICE, ids=str)
def test_second_derivatives_are_those_of_the_joined_batch(seen, case, group):
    ours = of_case(seen, group, f"{case} twice")
    wanted = shards.penalize(case, case.shares[group], Share([case.shape[0]], 0))
    for name, expected in wanted.items():
        parts = [each[name] for each in ours]
        joined = torch.cat(parts) if name == "x" else torch.stack(parts).sum(0)
        assert_equal_to(joined, expected, TOLERANCE[case.dtype])


def test_a_step_counts_once_however_many_processes_and_also_where_there_is_no_image(seen):
    for group in MEMBERS:
        for each in of_case(seen, group, "batch"):
            assert each["buffers"]["num_batches_tracked"].item() == shards.STEPS


@pytest.mark.parametrize("kind", TRACKING)
def test_a_value_that_is_no_number_keeps_the_statistics_of_every_process_where_they_are(seen, kind):
    start = KINDS[kind](CHANNELS)
    for process in seen:
        buffers = process["one bad"][kind]
        assert buffers.pop("num_batches_skipped").item() == 1
        for name, value in buffers.items():
            assert torch.equal(value, getattr(start, name))


def test_a_single_value_over_all_processes_is_refused_by_each(seen):
    for process, images_there in zip(seen, (0, 1, 0), strict=True):
        assert (
            f"at least 2 values per channel to take statistics of, got 1 (input shape ({images_there}, "
            in (process["refused"])
        )


def test_a_process_outside_the_group_normalizes_by_itself(seen):
    for name, wanted in output_and_buffers(BatchNorm(CHANNELS)).items():
        assert torch.equal(seen[1]["outside"][name], wanted)


def test_a_layer_that_was_pickled_still_shares_its_statistics(seen):
    joined = torch.cat([process["unpickled"] for process in seen])
    assert_equal_to(joined, BatchNorm(CHANNELS)(images(IMAGE)), 1e-6)


@ALL_KINDS
def test_one_process_may_evaluate_while_the_others_do_not(seen, kind):
    assert torch.equal(seen[0]["evaluated alone"][kind], BatchNorm(CHANNELS).eval()(images(IMAGE)))


# --- networks and micro-batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_network_in_distributed_data_parallel_trains_as_in_one_process(seen, kind):
    wanted = train_wrapped(kind, None)
    for process in seen:
        for name, expected in wanted.items():
            assert_equal_to(process["wrapped"][kind][name], expected, 1e-10)


@ALL_KINDS
def test_micro_batches_of_all_processes_move_the_statistics_once_as_one_batch(seen, kind):
    layer = KINDS[kind](CHANNELS, dtype=torch.float64)
    with at_sites(layer, [0] * IMAGE[0]):
        layer(images(IMAGE, torch.float64))
    for process in seen:
        for name, expected in layer.state_dict().items():
            assert_equal_to(process["accumulated"][kind][name], expected, 1e-12)


# --- without other processes ------------------------------------------------------------------------------------------


@ALL_KINDS
def test_the_world_of_a_single_process_is_that_process(kind):
    of_world, plain = KINDS[kind](CHANNELS, process_group="world"), KINDS[kind](CHANNELS)
    results = []
    for layer in (of_world, plain):
        x = images(IMAGE).requires_grad_()
        with at_sites(layer, shards.SITES):
            y = layer(x)
        y.sin().sum().backward()
        results.append((y, x.grad))
    for mine, wanted in zip(*results, strict=True):
        assert torch.equal(mine, wanted)
    assert bytes_of(of_world) == bytes_of(plain)
