"""What users do to layers besides training them: copy, pickle, halve, load, average, and mistype."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from mednorm import (
    BatchNorm,
    BatchRenorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    MovingBatchNorm,
    accumulate,
    domain,
    freeze,
)
from mednorm.errors import ConfigError, ShapeError
from mednorm.layers import GhostBatchNorm
from tests.harness import CHANNELS, assert_equal_to, images
from tests.unit.layers.kinds import KINDS

IMAGE = (4, CHANNELS, 5, 6)
ALL_KINDS = pytest.mark.parametrize("kind", list(KINDS))


# --- a bias, or none --------------------------------------------------------------------------------------------------


@ALL_KINDS
def test_a_layer_without_bias_computes_what_one_with_a_bias_of_0_does(kind):
    torch.manual_seed(0)
    plain, bare = (KINDS[kind](CHANNELS, bias=bias, dtype=torch.float64) for bias in (True, False))
    assert [name for name, _ in bare.named_parameters() if name.endswith("bias")] == []
    x = images(IMAGE, torch.float64)
    for _ in range(2):
        results = []
        for layer in (plain, bare):
            mine = x.clone().requires_grad_()
            layer.zero_grad()
            layer(mine).pow(3).sum().backward()
            results.append((mine.grad, layer.weight.grad))
        for ours, wanted in zip(*results, strict=True):
            assert_equal_to(ours, wanted, 1e-12)
    assert_equal_to(bare.eval()(x), plain.eval()(x), 1e-12)


# --- copies and pickles -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_a_layer_that_was_compiled_can_be_pickled_as_torchs_can():
    layer = BatchNorm(CHANNELS)
    layer.compile(backend="aot_eager")
    layer(images(IMAGE))
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin.running_mean, layer.running_mean)


def test_a_copy_made_while_sites_are_said_does_not_remember_them():
    layer = DomainBatchNorm(CHANNELS, domains=["Basel", "Lund"])
    with domain(layer, ["Basel"] * 4):
        layer(images(IMAGE))
        twin = copy.deepcopy(layer)
    assert b"Basel" not in pickle.dumps(twin._last_sites)
    assert twin.sites is None
    twin(images((3, *IMAGE[1:])))  # another number of samples, of which nobody says the sites
    assert twin.domain_batches.tolist() == [1, 0]


# --- state ------------------------------------------------------------------------------------------------------------


def test_a_state_of_the_same_sites_in_another_order_is_put_in_order_by_name():
    layer = DomainBatchNorm(CHANNELS, domains=["Basel", "Lund", "Zürich"], domain_affine=True)
    with domain(layer, ["Basel", "Lund", "Lund", "Basel"]):
        layer(images(IMAGE))
    nn.init.normal_(layer.domain_weight)
    other = DomainBatchNorm(CHANNELS, domains=["Zürich", "Lund", "Basel"], domain_affine=True)
    other.load_state_dict(layer.state_dict())
    for name in ("domain_mean", "domain_var", "domain_batches", "domain_weight"):
        assert torch.equal(getattr(other, name), getattr(layer, name)[[2, 1, 0]])
    x, sites = images(IMAGE, seed=1), ["Lund", "Basel", "Zürich", "Lund"]
    with domain(layer.eval(), sites), domain(other.eval(), sites):
        assert torch.equal(other(x), layer(x))


def test_a_state_of_other_sites_is_refused_with_both_lists_and_changes_nothing():
    layer, other = (DomainBatchNorm(CHANNELS, domains=names) for names in (["Basel", "Lund"], ["Basel", "Bern"]))
    layer(images(IMAGE))
    before = other.running_mean.clone()
    with pytest.raises(RuntimeError, match="expected statistics of the sites Basel, Bern, got those of Basel, Lund"):
        other.load_state_dict(layer.state_dict())
    assert torch.equal(other.running_mean, before)


@ALL_KINDS
def test_a_layer_built_without_memory_trains_once_its_state_is_assigned(kind):
    source = KINDS[kind](CHANNELS)
    source(images(IMAGE))
    with torch.device("meta"):
        layer = KINDS[kind](CHANNELS)
    layer.load_state_dict(source.state_dict(), assign=True)
    layer(images(IMAGE)).sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.num_batches_skipped == 0
    assert layer.num_batches_tracked == (0 if kind == "frozen" else 2)


def test_the_backward_means_of_a_layer_in_half_precision_do_not_overflow():
    layer = MovingBatchNorm(CHANNELS).half()
    x = images(IMAGE).half()
    for _ in range(20):
        mine = x.clone().requires_grad_()
        layer(mine).backward(torch.full(IMAGE, 6e3, dtype=torch.float16))
    assert layer.backward_window.means.dtype == torch.float32
    assert mine.grad.isfinite().all()


def test_loading_other_weights_forgets_the_backward_means():
    layer = MovingBatchNorm(CHANNELS)
    layer(images(IMAGE).requires_grad_()).pow(2).sum().backward()
    assert layer.backward_window.passes == 1
    layer.load_state_dict(BatchNorm(CHANNELS).state_dict())
    assert layer.backward_window.passes == 0
    assert not layer.backward_window.means.any()


def test_averaging_weights_does_not_reset_frozen_statistics():
    layer = FrozenBatchNorm(CHANNELS)
    layer.running_mean.fill_(3)
    update_bn([images(IMAGE)], nn.Sequential(layer))
    assert layer.running_mean.tolist() == [3] * CHANNELS


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_renormalization_used_twice_and_repeated_has_the_gradient_of_one_that_is_not(reentrant):
    layer = BatchRenorm(CHANNELS, schedule=0, dtype=torch.float64)
    for seed in range(3):
        layer(images(IMAGE, torch.float64, seed=seed))
    found = []
    for repeats in (False, True):
        twin, x = copy.deepcopy(layer), images(IMAGE, torch.float64, seed=9).requires_grad_()

        def block(h, twin=twin):
            return torch.tanh(2 * twin(h))

        h = x
        for _ in range(2):
            h = checkpoint(block, h, use_reentrant=reentrant) if repeats else block(h)
        h.pow(3).sum().backward()
        found.append((x.grad, twin.weight.grad, twin.running_mean))
    for ours, wanted in zip(*found, strict=True):
        assert_equal_to(ours, wanted, 1e-14)


def test_layers_of_torch_that_are_frozen_do_not_keep_others_from_accumulating():
    network = nn.Sequential(nn.BatchNorm2d(CHANNELS), BatchNorm(CHANNELS))
    freeze(network, where="0")
    with accumulate(network):
        network(images(IMAGE))
    assert network[0].num_batches_tracked == 0
    assert network[1].num_batches_tracked == 1


def test_a_step_that_cannot_be_committed_leaves_no_layer_waiting():
    layer = BatchNorm(CHANNELS)
    step = accumulate(layer).__enter__()
    layer(images(IMAGE))
    layer.running_mean = torch.zeros(CHANNELS + 1)
    with pytest.raises(RuntimeError):
        step.__exit__(None, None, None)
    assert not layer.accumulating


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_mistyped_site_is_refused_in_training_with_the_nearest_and_pooled_in_evaluation():
    layer = DomainBatchNorm(CHANNELS, domains=["Basel", "Lund"])
    with pytest.raises(ConfigError, match=r"got 'basel'. Did you mean 'Basel'\?"), domain(layer, ["basel"] * 4):
        layer(images(IMAGE))
    assert layer.num_batches_tracked == 0
    x = images(IMAGE)
    with domain(layer.eval(), ["Bern"] * 4):
        assert torch.equal(layer(x), BatchNorm(CHANNELS).eval()(x))


def test_something_that_is_no_list_of_sites_is_refused_with_what_it_was():
    layer = DomainBatchNorm(CHANNELS, domains=2)
    with pytest.raises(ConfigError, match="expected one site a sample, got 1"), domain(layer, 1):
        pass


def test_a_schedule_of_1_is_refused_as_it_could_be_a_step_or_the_whole_run():
    with pytest.raises(ConfigError, match=r"got 1, which could be either. The whole run is 1.0"):
        BatchRenorm(CHANNELS, schedule=1)
    assert BatchRenorm(CHANNELS, schedule=1.0).schedule == 1.0


@pytest.mark.parametrize("slope", [-0.1, float("nan"), float("inf")])
def test_a_slope_that_no_leaky_relu_can_undo_is_refused(slope):
    with pytest.raises(ConfigError, match=f"negative_slope of at least 0 and finite, got {slope}"):
        BatchNorm(CHANNELS, activation="leaky_relu", negative_slope=slope)


@pytest.mark.parametrize("group", [3, "everyone", object()])
def test_what_is_no_process_group_is_refused_with_what_came(group):
    with pytest.raises(ConfigError, match="expected process_group to be a ProcessGroup, 'world' or None, got"):
        BatchNorm(CHANNELS, process_group=group)


def test_ghosts_of_a_single_value_are_refused_with_what_to_do():
    with pytest.raises(ShapeError, match=r"ghost_size=1 \(input shape \(8, 4\)\). Use a larger ghost_size"):
        GhostBatchNorm(CHANNELS, ghost_size=1)(images((8, CHANNELS)))


def test_a_small_momentum_leaves_nothing_of_the_initial_statistics_either():
    layer = MovingBatchNorm(CHANNELS, momentum=1e-7)
    x = images(IMAGE) + 100
    layer(x)
    assert_equal_to(layer.running_mean, x.mean((0, 2, 3)), 1e-6)
