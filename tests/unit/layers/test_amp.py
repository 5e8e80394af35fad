"""Mixed precision overflows now and then: the step is lost, but neither the running statistics nor what comes after."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mednorm import BatchNorm, MovingBatchNorm, accumulate
from tests.harness import CHANNELS, SHAPES, assert_equal_to, bytes_of, images, train
from tests.unit.layers.kinds import IMAGES, KINDS, at_sites, network

ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
TRACKING = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "frozen"])
BAD = pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan], ids=str)
HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
IMAGE = SHAPES[2]
SITES = [0, 2, -1, 0, 2, 2, -1, 0]
LAYERS = (1, 3)  # the places of the normalizations in the network


class Trainer:
    """Mixed precision as a loop of PyTorch writes it; the scale never grows, so that it tells of overflows alone."""

    def __init__(self, kind, half, scale=1024.0, **options):
        self.net = network(kind, **options)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        self.half = half

    def step(self, *micro_batches):
        self.optimizer.zero_grad()
        for x in micro_batches:
            with torch.autocast("cpu", self.half), at_sites(self.net, SITES[: len(x)]):
                loss = (self.net(x).float() - 1).square().mean() / len(micro_batches)
            self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()

    def statistics(self):
        return bytes_of(nn.ModuleList([self.net[place] for place in LAYERS]))

    def parameters(self):
        return [parameter.detach().clone() for parameter in self.net.parameters()]

    def skipped(self):
        return [self.net[place].num_batches_skipped.item() for place in LAYERS]


def batch(number):
    return images(IMAGES, seed=number) / 3


def spoiled(bad, number=0):
    """A batch with one bad value."""
    x = batch(number)
    x[3, 1, 4, 5] = bad
    return x


def without_skips(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_skipped")}


# --- a bad value in the forward pass ----------------------------------------------------------------------------------


@BAD
@HALVES
@ALL_KINDS
def test_a_batch_with_a_bad_value_moves_neither_statistics_nor_parameters_and_is_counted(kind, half, bad):
    trainer = Trainer(kind, half)
    trainer.step(batch(1))
    statistics, parameters, scale = trainer.statistics(), trainer.parameters(), trainer.scaler.get_scale()
    trainer.step(spoiled(bad))
    assert without_skips(trainer.statistics()) == without_skips(statistics)
    assert all(torch.equal(now, then) for now, then in zip(trainer.parameters(), parameters, strict=True))
    assert trainer.scaler.get_scale() == scale / 2
    assert trainer.skipped() == ([0, 0] if kind == "frozen" else [1, 1])


@pytest.mark.parametrize("kind", ["batch", "renorm", "ghost", "range", "domain", "frozen"])
def test_training_goes_on_as_if_the_bad_batch_had_not_been(kind):
    # bfloat16 has the exponents of float32, so that the scale, halved, changes no digit. Moving statistics are not in
    # the list: their window holds means of gradients under the scale before.
    disturbed, undisturbed = (Trainer(kind, torch.bfloat16) for _ in range(2))
    undisturbed.net.load_state_dict(disturbed.net.state_dict())
    for number in range(5):
        if number in (0, 2):
            disturbed.step(spoiled(torch.inf, number))
        losses = [trainer.step(batch(number)) for trainer in (disturbed, undisturbed)]
        assert losses[0] == losses[1]
    assert without_skips(bytes_of(disturbed.net)) == without_skips(bytes_of(undisturbed.net))
    assert disturbed.skipped() == ([0, 0] if kind == "frozen" else [2, 2])


@HALVES
@ALL_KINDS
def test_training_recovers_from_bad_batches(kind, half):
    trainer = Trainer(kind, half)
    losses = [trainer.step(spoiled(torch.nan) if number % 3 == 0 else batch(number % 2)) for number in range(41)]
    assert losses[-1] < losses[2] / 2
    assert all(value.isfinite().all() for value in trainer.net.state_dict().values())
    trainer.net.eval()
    assert (trainer.net(batch(1)).mean() - 1).abs() < 0.5


@TRACKING
def test_a_convolution_that_overflows_float16_is_a_bad_batch(kind):
    trainer = Trainer(kind, torch.float16)
    trainer.step(batch(1))
    statistics = trainer.statistics()
    with torch.no_grad():
        trainer.net[0].weight.fill_(1)
    x = batch(0).abs() * 1e4
    with torch.autocast("cpu", torch.float16):
        assert x.half().isfinite().all()
        assert trainer.net[0](x).isinf().any()
    trainer.step(x)
    assert without_skips(trainer.statistics()) == without_skips(statistics)
    assert trainer.skipped() == [1, 1]
    trainer.step(batch(2))
    assert [trainer.net[place].num_batches_tracked.item() for place in LAYERS] == [2, 2]


@TRACKING
def test_a_bad_first_batch_leaves_the_layer_as_new(kind):
    trainer, fresh = (Trainer(kind, torch.float16) for _ in range(2))
    fresh.net.load_state_dict(trainer.net.state_dict())
    trainer.step(spoiled(torch.nan))
    assert without_skips(trainer.statistics()) == without_skips(fresh.statistics())
    for each in (trainer, fresh):
        each.net(batch(1))
    assert without_skips(trainer.statistics()) == without_skips(fresh.statistics())


# --- an overflow in the backward pass ---------------------------------------------------------------------------------


@ALL_KINDS
def test_gradients_that_overflow_float16_lose_the_step_until_the_scale_is_small_enough(kind):
    trainer = Trainer(kind, torch.float16, scale=2.0**40)
    parameters = trainer.parameters()
    trainer.step(batch(0))
    assert trainer.scaler.get_scale() == 2.0**39
    assert all(torch.equal(now, then) for now, then in zip(trainer.parameters(), parameters, strict=True))
    for _ in range(40):
        trainer.step(batch(0))
    assert trainer.scaler.get_scale() < 2.0**38
    assert not all(torch.equal(now, then) for now, then in zip(trainer.parameters(), parameters, strict=True))
    assert all(value.isfinite().all() for value in (*trainer.parameters(), *trainer.net.buffers()))
    assert trainer.skipped() == [0, 0]  # the batches were fine


@pytest.mark.parametrize("bad", [torch.inf, torch.nan], ids=str)
def test_the_window_of_moving_statistics_keeps_no_means_of_a_bad_gradient(bad):
    layer = MovingBatchNorm(CHANNELS, window=3)
    train(layer, images(IMAGE), torch.randn(IMAGE))
    means, passes = layer.backward_window.means.clone(), layer.backward_window.passes.clone()
    grad = torch.randn(IMAGE)
    grad[0, 1, 2, 3] = bad
    _, grad_x = train(layer, images(IMAGE, seed=1), grad)
    assert not grad_x[:, 1].isfinite().any()  # a gradient scaler must see it
    assert torch.equal(layer.backward_window.means, means)
    assert torch.equal(layer.backward_window.passes, passes)


def test_after_a_bad_gradient_the_next_is_corrected_as_if_it_had_not_been():
    layer = MovingBatchNorm(CHANNELS, window=3)
    train(layer, images(IMAGE), torch.randn(IMAGE))
    twin = copy.deepcopy(layer)
    x, grad = images(IMAGE, seed=1), torch.randn(IMAGE)
    train(layer, x, torch.full(IMAGE, torch.inf))
    twin(x)
    for ours, wanted in zip(train(layer, x, grad), train(twin, x, grad), strict=True):
        assert torch.equal(ours, wanted)
    assert bytes_of(layer) == bytes_of(twin)


# --- micro-batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 3])
@TRACKING
def test_one_bad_micro_batch_drops_the_whole_step(kind, place):
    trainer = Trainer(kind, torch.bfloat16)
    with accumulate(trainer.net):
        trainer.step(*batch(1).split(2))
    statistics, parameters = trainer.statistics(), trainer.parameters()
    micro_batches = list(batch(0).split(2))
    micro_batches[place] = micro_batches[place].clone().index_fill_(3, torch.tensor([4]), torch.inf)
    with accumulate(trainer.net):
        trainer.step(*micro_batches)
    dropped = without_window(trainer.statistics())
    assert dropped == without_window(statistics)
    assert all(torch.equal(now, then) for now, then in zip(trainer.parameters(), parameters, strict=True))
    assert trainer.skipped() == [1, 1]
    with accumulate(trainer.net):
        trainer.step(*batch(2).split(2))
    assert [trainer.net[place].num_batches_tracked.item() for place in LAYERS] == [2, 2]
    assert all(value.isfinite().all() for value in (*trainer.parameters(), *trainer.net.buffers()))


def without_window(state):
    """Leave out what the three good micro-batches of the step have changed, as they should."""
    return {name: value for name, value in without_skips(state).items() if "backward" not in name}


def test_a_bad_micro_batch_of_one_site_drops_the_step_of_all_sites():
    layer = KINDS["domain"](CHANNELS)
    before = without_skips(bytes_of(layer))
    with accumulate(layer):
        for x, site in ((images(IMAGE), "Basel"), (torch.full(IMAGE, torch.nan), "Lund")):
            with at_sites(layer, [site] * len(x)):
                layer(x)
    assert without_skips(bytes_of(layer)) == before
    assert layer.num_batches_skipped.item() == 1


# --- masks ------------------------------------------------------------------------------------------------------------


@BAD
@ALL_KINDS
def test_a_bad_value_that_the_mask_leaves_out_does_no_harm(kind, bad):
    layer = KINDS[kind](CHANNELS)
    twin = copy.deepcopy(layer)
    mask = torch.rand(len(images(IMAGE)), *IMAGE[2:]) < 0.7
    for number in range(3):
        x, grad = images(IMAGE, seed=number), torch.randn(IMAGE) * mask[:, None]
        results = [
            (*train(each, x.masked_fill(~mask[:, None], value), grad, mask=mask), layer_grads(each))
            for each, value in ((layer, bad), (twin, 0.0))
        ]
        (y, grad_x, grads), (wanted, expected, wanted_grads) = results
        kept = mask[:, None].expand(IMAGE)
        assert torch.equal(y[kept], wanted[kept])
        assert torch.equal(grad_x, expected)
        for ours, theirs in zip(grads, wanted_grads, strict=True):
            assert_equal_to(ours, theirs, 1e-5)
    assert bytes_of(layer) == bytes_of(twin)
    assert layer.num_batches_skipped.item() == 0


def layer_grads(layer):
    return [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]


@HALVES
def test_half_precision_input_gives_half_precision_output_and_wide_statistics(half):
    net = network("batch")
    seen = []
    net[1].register_forward_hook(lambda _, inputs, y: seen.append((inputs[0].dtype, y.dtype)))
    with torch.autocast("cpu", half):
        net(batch(0))
    assert seen == [(half, half)]
    exact = BatchNorm(4)
    with torch.autocast("cpu", half):
        x = net[0](batch(0))
    exact(x.float())
    assert_equal_to(net[1].running_var, exact.running_var, 1e-6)
