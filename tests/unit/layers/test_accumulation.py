"""Within `accumulate` the micro-batches of a step move the running statistics once, as one batch of all would."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from mednorm import BatchNorm, GhostBatchNorm, MovingBatchNorm, accumulate, domain
from mednorm.errors import ConfigError, ShapeError
from tests.harness import CHANNELS, assert_equal_to, bytes_of, images
from tests.unit.layers.kinds import IMAGES, KINDS, at_sites, network

ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
IMAGE = (8, CHANNELS, 5, 6)
SITES = torch.tensor([0, 2, -1, 0, 2, 2, -1, 0])
# The window of moving statistics counts backward passes, of which there is none here.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "domain_mean", "domain_var", "domain_batches")


def statistics_of(layer):
    return {name: value.clone() for name, value in layer.named_buffers() if name in STATISTICS}


def steps(count, dtype=torch.float64):
    for step in range(count):
        yield images(IMAGE, dtype, seed=step) * (1 + step) + step


def accumulated(layer, batch, sizes, mask=None):
    """Run the layer on micro-batches of these sizes, with their sites."""
    masks = [None] * len(sizes) if mask is None else mask.split(sizes)
    with accumulate(layer):
        for micro, kept, sites in zip(batch.split(sizes), masks, SITES.split(sizes), strict=True):
            with at_sites(layer, sites):
                layer(micro, mask=kept)
    return layer


def joined(layer, batch, mask=None):
    """Run the layer on the whole batch, with its sites."""
    with at_sites(layer, SITES):
        layer(batch, mask=mask)
    return layer


# --- one layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [3, 4, 1], [1, 7], [8], [0, 5, 3]], ids=str)
@ALL_KINDS
def test_micro_batches_leave_the_statistics_of_the_joined_batches(kind, sizes):
    micro, whole = (KINDS[kind](CHANNELS, dtype=torch.float64) for _ in range(2))
    for batch in steps(3):
        ours, wanted = statistics_of(accumulated(micro, batch, sizes)), statistics_of(joined(whole, batch))
        for name, expected in wanted.items():
            assert_equal_to(ours[name], expected, 1e-12)


@pytest.mark.parametrize("momentum", [0.5, 1.0, None], ids=str)
@ALL_KINDS
def test_momentum_counts_steps_and_not_micro_batches(kind, momentum):
    micro, whole = (KINDS[kind](CHANNELS, momentum=momentum, dtype=torch.float64) for _ in range(2))
    for batch in steps(3):
        ours, wanted = statistics_of(accumulated(micro, batch, [2, 6])), statistics_of(joined(whole, batch))
        for name, expected in wanted.items():
            assert_equal_to(ours[name], expected, 1e-12)


@ALL_KINDS
def test_micro_batches_with_masks_leave_the_statistics_of_all_that_is_kept(kind):
    micro, whole = (KINDS[kind](CHANNELS, dtype=torch.float64) for _ in range(2))
    for batch in steps(2):
        mask = torch.rand(8, 5, 6) < 0.6
        ours = statistics_of(accumulated(micro, batch, [2, 3, 3], mask))
        for name, expected in statistics_of(joined(whole, batch, mask)).items():
            assert_equal_to(ours[name], expected, 1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "range"])
def test_where_the_arithmetic_is_exact_no_bit_differs_in_float32(kind):
    # Whole numbers, counts and means that are short binary fractions; the range has an irrational constant.
    batch = torch.tensor([-3.0, 5.0, -1.0, 7.0]).repeat_interleave(2).view(8, 1, 1, 1).expand(8, CHANNELS, 2, 4)
    batch = batch + 2 * (torch.arange(8) % 2).view(1, 1, 2, 4) - 1
    micro, whole = (KINDS[kind](CHANNELS, momentum=0.5) for _ in range(2))
    with accumulate(micro):
        for part in batch.split(2):
            micro(part)
    whole(batch)
    assert bytes_of(micro) == bytes_of(whole)


def test_the_spread_between_micro_batches_counts():
    # By design of the example: no spread inside a micro-batch, all of it between them.
    batch = torch.tensor([-1.0, 1.0]).repeat_interleave(4).view(8, 1, 1)
    layer = BatchNorm(1, momentum=1.0)
    with accumulate(layer):
        for micro in batch.split(4):
            layer(micro)
    assert layer.running_mean.item() == 0
    assert layer.running_var.item() == pytest.approx(8 / 7, rel=1e-6)


@ALL_KINDS
def test_nothing_moves_before_the_end_and_once_at_the_end(kind):
    layer = KINDS[kind](CHANNELS)
    before = bytes_of(layer)
    with accumulate(layer):
        for micro in images(IMAGE).split(2):
            layer(micro)
            assert bytes_of(layer) == before
    assert layer.num_batches_tracked.item() == (0 if kind == "frozen" else 1)
    layer(images(IMAGE))
    assert layer.num_batches_tracked.item() == (0 if kind == "frozen" else 2)


@pytest.mark.parametrize("kind", ["batch", "renorm", "ghost", "range", "domain", "frozen"])
def test_each_micro_batch_is_normalized_as_without(kind):
    # Moving statistics are not in the list: there they would have moved between the micro-batches.
    layer = KINDS[kind](CHANNELS)
    joined(layer, images(IMAGE, seed=1))
    with accumulate(layer):
        for micro in images(IMAGE).split(4):
            assert torch.equal(layer(micro), copy.deepcopy(layer)(micro))


def test_moving_statistics_stand_still_during_a_step_and_before_the_first_is_over_are_the_micro_batchs_own():
    layer = MovingBatchNorm(CHANNELS, dtype=torch.float64)
    first, second = (batch.split(4) for batch in steps(2))
    with accumulate(layer):
        for micro in first:
            assert_equal_to(layer(micro), plain(micro, micro), 1e-10)
    with accumulate(layer):
        for micro in second:
            assert_equal_to(layer(micro), plain(micro, torch.cat(first)), 1e-10)


def test_a_refresh_every_second_step_is_every_second_step_however_many_micro_batches():
    micro, whole = (MovingBatchNorm(CHANNELS, refresh_every=2, dtype=torch.float64) for _ in range(2))
    for batch in steps(5):
        ours, wanted = statistics_of(accumulated(micro, batch, [2, 3, 3])), statistics_of(joined(whole, batch))
        for name, expected in wanted.items():
            assert_equal_to(ours[name], expected, 1e-12)
    assert micro.num_batches_tracked.item() == 3


def plain(x, batch):
    """Normalize by the mean and the unbiased variance of a batch."""
    mean, var = (t.view(1, -1, 1, 1) for t in (batch.mean((0, 2, 3)), batch.var((0, 2, 3))))
    return (x - mean) / (var + 1e-5).sqrt()


def test_the_statistics_of_a_site_move_by_the_micro_batches_that_have_it():
    layer = KINDS["domain"](CHANNELS, momentum=1.0, dtype=torch.float64)
    batch = images(IMAGE, torch.float64)
    with accumulate(layer):
        for micro, names in zip(batch.split(4), (["Basel", "Basel", "Lund", None], ["Lund"] * 4), strict=True):
            with domain(layer, names):
                layer(micro)
    assert layer.domain_batches.tolist() == [1, 1, 0]
    for site, theirs in enumerate((batch[:2], batch[[2, 4, 5, 6, 7]])):
        assert_equal_to(layer.domain_mean[site], theirs.mean((0, 2, 3)), 1e-12)
        assert_equal_to(layer.domain_var[site], theirs.var((0, 2, 3)), 1e-12)
    assert_equal_to(layer.running_var, batch.var((0, 2, 3)), 1e-12)


def test_a_layer_that_a_network_uses_twice_moves_once_by_both_uses():
    layer, x = BatchNorm(CHANNELS, momentum=1.0, dtype=torch.float64), images(IMAGE, torch.float64)
    shared = nn.ModuleList([layer, layer])
    with accumulate(shared):
        shared[0](x)
        shared[1](10 + 3 * x)
    assert layer.num_batches_tracked.item() == 1
    assert_equal_to(layer.running_mean, torch.cat([x, 10 + 3 * x]).mean((0, 2, 3)), 1e-12)
    assert_equal_to(layer.running_var, torch.cat([x, 10 + 3 * x]).var((0, 2, 3)), 1e-12)


def test_evaluation_inside_does_not_count():
    layer = BatchNorm(CHANNELS)
    twin = copy.deepcopy(layer)
    with accumulate(layer):
        layer(images(IMAGE))
        before = bytes_of(layer)
        layer.eval()(images(IMAGE, seed=1))
        assert bytes_of(layer) == before
        layer.train()
    twin(images(IMAGE))
    assert bytes_of(layer) == bytes_of(twin)


@ALL_KINDS
def test_a_step_without_a_batch_moves_nothing(kind):
    layer = KINDS[kind](CHANNELS)
    before = bytes_of(layer)
    with accumulate(layer):
        pass
    assert bytes_of(layer) == before


# --- the step's end ---------------------------------------------------------------------------------------------------


@ALL_KINDS
def test_commit_ends_a_step_and_starts_the_next(kind):
    layer, twin = (KINDS[kind](CHANNELS) for _ in range(2))
    with accumulate(layer) as step:
        for batch in steps(3, torch.float32):
            for micro in batch.split(2):
                layer(micro)
            step.commit()
        before = bytes_of(layer)
    assert bytes_of(layer) == before
    for batch in steps(3, torch.float32):
        with accumulate(twin):
            for micro in batch.split(2):
                twin(micro)
    assert bytes_of(layer) == bytes_of(twin)


def stopped_midway(layer):
    with accumulate(layer):
        layer(images(IMAGE, seed=1))
        layer(images((8, CHANNELS + 1, 5, 6)))


@ALL_KINDS
def test_an_exception_inside_discards_the_step_and_the_next_counts_as_ever(kind):
    layer, twin = (KINDS[kind](CHANNELS) for _ in range(2))
    before = bytes_of(layer)
    with pytest.raises(ShapeError, match="got 5 "):
        stopped_midway(layer)
    assert bytes_of(layer) == before
    for each in (layer, twin):
        accumulated(each, images(IMAGE), [2, 6])
    assert bytes_of(layer) == bytes_of(twin)


def test_a_context_may_be_entered_again():
    layer = BatchNorm(CHANNELS)
    step = accumulate(layer)
    for batch in steps(2, torch.float32):
        with step:
            layer(batch)
    assert layer.num_batches_tracked.item() == 2


@ALL_KINDS
def test_a_copy_made_inside_is_a_layer_of_its_own_that_does_not_wait(kind):
    layer = KINDS[kind](CHANNELS)
    with accumulate(layer):
        layer(images(IMAGE, seed=1))
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        assert layer.accumulating
    fresh = KINDS[kind](CHANNELS)
    for each in (fresh, *copies):
        each(images(IMAGE))
    assert [bytes_of(each) for each in copies] == [bytes_of(fresh)] * 2
    assert [each.accumulating for each in copies] == [False, False]


# --- networks ---------------------------------------------------------------------------------------------------------


def test_the_first_layer_of_a_network_has_the_joined_batchs_statistics_and_the_second_nearly():
    micro, whole = network("batch", torch.float64), network("batch", torch.float64)
    whole.load_state_dict(micro.state_dict())
    batch = torch.randn(IMAGES, dtype=torch.float64)
    with accumulate(micro):
        for part in batch.split(2):
            micro(part).sum().backward()
    whole(batch).sum().backward()
    for name in ("running_mean", "running_var"):
        assert_equal_to(getattr(micro[1], name), getattr(whole[1], name), 1e-12)
        ours, wanted = (getattr(net[3], name) for net in (micro, whole))
        assert not torch.allclose(ours, wanted, rtol=1e-6)  # its inputs were normalized by micro-batches
        assert torch.allclose(ours, wanted, rtol=0.05, atol=0.01)
    assert [micro[place].num_batches_tracked.item() for place in (1, 3)] == [1, 1]


@ALL_KINDS
def test_a_network_of_every_kind_trains_with_micro_batches_and_counts_its_steps(kind):
    net = network(kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(4):
        batch = images(IMAGES, seed=step)
        with accumulate(net):
            for micro, sites in zip(batch.split(2), SITES.split(2), strict=True):
                with at_sites(net, sites):
                    net(micro).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [net[place].num_batches_tracked.item() for place in (1, 3)] == [0 if kind == "frozen" else 4] * 2
    assert all(value.isfinite().all() for value in net.state_dict().values())


# --- what is refused --------------------------------------------------------------------------------------------------


def test_accumulating_twice_is_refused_and_the_outer_step_goes_on():
    layer, x = BatchNorm(CHANNELS, momentum=1.0), images(IMAGE)
    with accumulate(layer):
        layer(x[:4])
        with pytest.raises(ConfigError, match="does not accumulate already, got one that does"), accumulate(layer):
            pass
        layer(x[4:])
    assert_equal_to(layer.running_mean, x.mean((0, 2, 3)), 1e-6)


def test_a_network_without_our_layers_is_refused_with_its_name():
    with pytest.raises(ConfigError, match="got none in Sequential"):
        accumulate(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))


@pytest.mark.parametrize("theirs", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_a_layer_of_pytorch_that_would_move_is_refused_with_its_place(theirs):
    net = nn.Sequential(BatchNorm(3), nn.Sequential(nn.ReLU(), theirs(3)))
    with pytest.raises(ConfigError, match=rf"got {theirs.__name__} at '1\.1', which moves"):
        accumulate(net)


@pytest.mark.parametrize("stands", ["evaluation", "no statistics", "momentum 0", "of instances"])
def test_a_layer_of_pytorch_that_does_not_move_is_fine(stands):
    theirs = {
        "evaluation": nn.BatchNorm2d(CHANNELS).eval(),
        "no statistics": nn.BatchNorm2d(CHANNELS, track_running_stats=False),
        "momentum 0": nn.BatchNorm2d(CHANNELS, momentum=0.0),
        "of instances": nn.InstanceNorm2d(CHANNELS),
    }[stands]
    ours = BatchNorm(CHANNELS)
    before = bytes_of(theirs)
    with accumulate(nn.Sequential(ours, theirs)) as step:
        for micro in images(IMAGE).split(2):
            theirs(ours(micro))
        step.commit()
    assert ours.num_batches_tracked.item() == 1
    for name in ("running_mean", "running_var"):
        assert bytes_of(theirs).get(name) == before.get(name)


def test_ghosts_end_with_their_micro_batch():
    # Five images in ghosts of two leave one: it is a ghost by itself and takes none of the next micro-batch.
    layer = GhostBatchNorm(CHANNELS, ghost_size=2, dtype=torch.float64)
    batch = images((8, CHANNELS, 5, 6), torch.float64)
    with accumulate(layer):
        y = torch.cat([layer(part) for part in batch.split([5, 3])])
    ghosts = y.split([2, 2, 1, 2, 1])
    for ghost in ghosts:
        assert ghost.mean((0, 2, 3)).abs().max() < 1e-12
