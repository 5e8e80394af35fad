"""The compiled loops against PyTorch's own operators in float64, over shapes, strides, activations and groups."""

from __future__ import annotations

import os
import re
import threading

import pytest
import torch

from mednorm import BatchNorm, Moments, RangeBatchNorm
from mednorm.errors import ConfigError, ShapeError
from mednorm.functional import batch_normalize, normalize
from mednorm.kernels import Groups, aten, cpu, loops, use
from mednorm.kernels.cpu import threads

# Large planes, small ones, planes of one value, one channel, few channels, more channels than lanes, no spatial axis.
SHAPES = [
    (2, 3, 17, 19, 23),
    (5, 4, 70, 71),
    (3, 7, 5, 5),
    (9, 6, 4),
    (40, 11),
    (6, 5, 1, 1),
    (3, 1, 9, 9),
    (8, 300, 3),
]
LAYOUTS = ["contiguous", "channels last", "transposed", "sliced", "expanded"]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
SLOPES = [None, 0.0, 0.3]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    match layout:
        case "channels last":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        case "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        case "sliced":
            return torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]]
        case "expanded":
            return x[:1].expand_as(x)
    return x.contiguous()


def setting(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    channels = shape[1]
    x, grad = torch.randn(shape, dtype=dtype) * 2 + 3, torch.randn(shape, dtype=dtype)
    return x, grad, torch.randn(channels, dtype=dtype), torch.randn(channels, dtype=dtype)


def assert_near(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    wanted = wanted.detach()
    torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()) + 1e-300)


@pytest.mark.parametrize("slope", SLOPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_both_passes_give_what_pytorchs_operators_give_in_float64(dtype, shape, layout, slope):
    x, grad, weight, bias = setting(shape, dtype)
    x = laid_out(x, layout)
    wide, moments = x.double(), Moments.of(x.double())
    given = weight.double(), bias.double(), 1e-5, slope
    y, found = cpu.forward(x, weight, bias, 1e-5, slope)
    gradients = cpu.backward(grad, x, found, weight, bias, 1e-5, slope)
    tolerance = TOLERANCE[dtype]
    assert torch.equal(found.count, moments.count)
    assert_near(found.mean, moments.mean, tolerance)
    assert_near(found.m2, moments.m2, tolerance)
    assert torch.equal(found.minimum, moments.minimum.to(dtype))
    assert torch.equal(found.maximum, moments.maximum.to(dtype))
    assert_near(y, aten.normalize(wide, moments, *given), tolerance)
    wanted = aten.normalize_backward(grad.double(), wide, moments, *given, None)
    for ours, theirs in zip((gradients[0], gradients[1], gradients[2]), wanted, strict=True):
        assert_near(ours, theirs, 20 * tolerance)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
@pytest.mark.parametrize("by_range", [False, True], ids=["fixed", "by range"])
def test_the_other_gradients_are_those_of_pytorchs_operators(by_range, shape, layout):
    x, grad, weight, bias = setting(shape)
    x = laid_out(x.round(), layout)  # rounded: then several values are the largest
    moments = Moments.of(x).by_range() if by_range else Moments.of(x)
    kind = {"by_range": by_range, "fixed": not by_range}
    ours = cpu.backward(grad, x, moments, weight, bias, 1e-5, 0.0, **kind)
    wanted = aten.normalize_backward(grad, x, moments, weight, bias, 1e-5, 0.0, None, **kind)
    for found, theirs in zip((ours[0], ours[1], ours[2]), wanted, strict=True):
        assert_near(found, theirs, 1e-11)


@pytest.mark.parametrize("order", [None, [3, 0, 5, 1, 6, 2, 4]], ids=["one after the other", "mixed"])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", [(7, 3, 66, 65), (7, 5, 6, 6), (7, 4, 9)], ids=str)
def test_groups_are_normalized_as_if_each_were_alone(shape, layout, order):
    x, grad, _, _ = setting(shape)
    x = laid_out(x, layout)
    groups = Groups([2, 4, 1], None if order is None else torch.tensor(order))
    weight, bias = torch.randn(2, 3, shape[1], dtype=torch.float64)
    y, moments = cpu.forward(x, weight, bias, 1e-5, 0.0, groups)
    gradients = cpu.backward(grad, x, moments, weight, bias, 1e-5, 0.0, groups)
    places = torch.arange(7) if order is None else groups.order
    for group, own in enumerate(places.split([2, 4, 1])):
        alone, of_alone = cpu.forward(x[own].contiguous(), weight[group], bias[group], 1e-5, 0.0)
        theirs = cpu.backward(grad[own], x[own].contiguous(), of_alone, weight[group], bias[group], 1e-5, 0.0)
        assert_near(y[own], alone, 1e-12)
        assert_near(gradients[0][own], theirs[0], 1e-11)
        assert_near(gradients[1][group], theirs[1], 1e-12)
        assert_near(gradients[2][group], theirs[2], 1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 70, 70), (5, 6, 5), (30, 9)], ids=str)
def test_sums_and_apply_are_the_parts_of_the_backward_pass(shape):
    x, grad, weight, bias = setting(shape)
    moments = Moments.of(x)
    given = grad, x, moments, weight, bias, 1e-5, 0.3
    h, products, deviations, squares = cpu.sums(*given, squares=True)
    invstd, count = (moments.variance + 1e-5).rsqrt(), moments.count
    scale = weight * invstd
    grad_x = cpu.apply(*given, scale * products * invstd.square() / count, scale * h / count)
    wanted = cpu.backward(*given)
    assert_near(grad_x, wanted[0], 1e-12)
    assert_near(products * invstd, wanted[1], 1e-12)
    assert_near(h, wanted[2], 1e-12)
    assert float(deviations.abs().max()) < 1e-9
    assert_near(squares, moments.m2, 1e-12)


@pytest.mark.parametrize("first", [0.0, 1e4], ids=["a background of 0 before it", "all at 10⁴"])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_a_large_mean_costs_no_more_digits_than_it_costs_pytorch(layout, first):
    x = torch.randn(16, 3, 40, 40) + 1e4
    x[0] += first - 1e4
    x = laid_out(x, layout)
    variance = x.double().var((0, 2, 3))
    count = x.numel() // 3
    kept = torch.zeros(3)
    torch.nn.functional.batch_norm(x, torch.zeros(3), kept, training=True, momentum=1)
    ours, theirs = (
        float(((found.double() - variance) / variance).abs().max()) for found in (cpu.measure(x).m2 / (count - 1), kept)
    )
    assert ours <= max(theirs, 1e-6)


@pytest.mark.slow
def test_a_hundred_million_values_a_channel_cost_no_digits():
    x = torch.randn(1, 1, 10_000, 10_000, generator=torch.Generator().manual_seed(0)).add_(100)
    found = cpu.measure(x)
    mean = x.double().mean()
    assert abs(float(found.mean[0]) - float(mean)) <= 1e-5
    deviations = x.double().sub_(mean).square_().sum()
    assert abs(float(found.m2[0]) / float(deviations) - 1) <= 1e-6


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_values_that_are_no_numbers_end_where_pytorch_has_them(layout, value):
    x, grad, weight, bias = setting((3, 4, 6, 6))
    x[1, 2, 3, 4] = value
    x = laid_out(x, layout)
    moments = Moments.of(x)
    found = cpu.measure(x)
    for ours, theirs in zip(found.fields(), moments.fields(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-12, atol=1e-12)
    given = Moments.given(torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype))
    for slope in SLOPES:
        arguments = x, given, weight, bias, 1e-5, slope
        torch.testing.assert_close(cpu.normalize(*arguments), aten.normalize(*arguments), equal_nan=True)
        ours = cpu.backward(grad, *arguments, fixed=True)
        theirs = aten.normalize_backward(grad, *arguments, None, fixed=True)
        torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)


def test_the_second_pass_over_the_same_moments_gives_the_same_bits():
    for shape in SHAPES:
        x, _, weight, bias = setting(shape, torch.float32)
        y, moments = cpu.forward(x, weight, bias, 1e-5, 0.0)
        assert torch.equal(cpu.normalize(x, moments, weight, bias, 1e-5, 0.0), y)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", [(2, 5, 80, 80), (64, 7, 12, 12), (4000, 30)], ids=str)
def test_numbers_do_not_depend_on_the_threads_nor_on_whose_they_are(shape, layout, monkeypatch):
    x, grad, weight, bias = setting(shape, torch.float32)
    x = laid_out(x, layout)

    def results() -> list[torch.Tensor]:
        y, moments = cpu.forward(x, weight, bias, 1e-5, 0.0)
        return [y, *moments.fields(), *cpu.backward(grad, x, moments, weight, bias, 1e-5, 0.0)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results()
        for count in (2, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, alone, results()))
        monkeypatch.setattr(threads, "_region", lambda: threads._in_python)
        assert all(map(torch.equal, alone, results()))
    finally:
        torch.set_num_threads(before)


def test_several_threads_of_a_user_normalize_at_once():
    cases = [setting((4, 3, 70, 70), torch.float32) for _ in range(4)]
    wanted = [cpu.forward(x, weight, bias, 1e-5, 0.0)[0] for x, _, weight, bias in cases]
    right = []

    def work(place: int) -> None:
        x, _, weight, bias = cases[place]
        right.extend(torch.equal(cpu.forward(x, weight, bias, 1e-5, 0.0)[0], wanted[place]) for _ in range(20))

    users = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert right == [True] * 80


def test_nothing_is_written_to_what_is_handed_in():
    x, grad, weight, bias = setting((3, 4, 66, 66))
    before = [t.clone() for t in (x, grad, weight, bias)]
    _, moments = cpu.forward(x, weight, bias, 1e-5, 0.0)
    cpu.backward(grad, x, moments, weight, bias, 1e-5, 0.0)
    assert all(map(torch.equal, before, (x, grad, weight, bias)))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_results_keep_the_memory_format(layout):
    x, grad, weight, bias = setting((3, 4, 6, 6))
    x = laid_out(x, layout)
    y, moments = cpu.forward(x, weight, bias, 1e-5, 0.0)
    assert y.stride() == x.stride()
    assert cpu.backward(grad, x, moments, weight, bias, 1e-5, 0.0)[0].stride() == x.stride()


def test_processes_that_add_up_their_sums_get_the_gradients_of_the_whole_batch():
    x, grad, weight, bias = setting((6, 3, 8, 8))
    moments = Moments.of(x)
    shards = [slice(0, 2), slice(2, 6)]
    given = moments, weight, bias, 1e-5, 0.0
    total = sum(torch.stack(cpu.sums(grad[s], x[s], *given).unbind()) for s in shards)
    invstd = (moments.variance + 1e-5).rsqrt()
    whole = torch.stack((total[0], total[1] * invstd))
    parts = [loops.normalize_backward(grad[s], x[s], *given, reduce=lambda sums: whole)[0] for s in shards]
    assert_near(torch.cat(parts), loops.normalize_backward(grad, x, *given)[0], 1e-12)


def test_the_operators_of_pytorch_are_a_switch_away():
    x, _, weight, bias = setting((3, 4, 6, 6), torch.float32)
    compiled, _ = loops.forward(x, weight, bias, 1e-5, None)
    with use("aten"):
        plain, _ = loops.forward(x, weight, bias, 1e-5, None)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(loops.forward(x, weight, bias, 1e-5, None)[0], compiled)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (Groups([2, 2]), r"the 3 samples.*got sizes \[2, 2\]"),
        (Groups([3, 0]), r"got sizes \[3, 0\]"),
        (Groups([1, 2], torch.tensor([0, 1, 3])), r"order \[0, 1, 3\]"),
        (Groups([1, 2], torch.tensor([0, 1, 1])), r"order \[0, 1, 1\]"),
    ],
    ids=["too many", "an empty one", "a sample that is not there", "a sample twice"],
)
def test_groups_that_are_not_those_of_the_samples_are_refused(groups, said):
    with pytest.raises(ShapeError, match=said):
        batch_normalize(torch.randn(3, 2, 4), groups=groups)


def test_vectors_of_another_length_are_refused_before_memory_is_read():
    x = torch.randn(3, 4, 5)
    for wrong in (torch.ones(5), torch.ones(1), torch.ones(2, 4)):
        with pytest.raises(ShapeError, match=re.escape(f"got {tuple(wrong.shape)}")):
            cpu.forward(x, wrong, None, 1e-5, None)
    with pytest.raises(RuntimeError, match="size"):
        cpu.backward(torch.randn(3, 4, 6), x, cpu.measure(x), None, None, 1e-5, None)


def test_vectors_of_another_type_are_converted():
    x, _, weight, bias = setting((3, 4, 5), torch.float32)
    expected, _ = cpu.forward(x, weight, bias, 1e-5, None)
    found, _ = cpu.forward(x, weight.double(), bias.double(), 1e-5, None)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0, None], ids=str)
def test_running_statistics_move_as_pytorchs_operators_move_them(momentum):
    batches = torch.randn(4, 6, 3, 5, dtype=torch.float64) * 2 + 1
    batches[2, 0, 1, 0] = torch.inf  # moves nothing, and is counted as skipped
    found = {}
    for name in ("numba", "aten"):
        layer = BatchNorm(3, momentum=momentum, dtype=torch.float64)
        with use(name):
            for batch in batches:
                layer(batch)
        found[name] = layer
    assert found["numba"].num_batches_skipped == found["aten"].num_batches_skipped == 1
    assert found["numba"].num_batches_tracked == found["aten"].num_batches_tracked == 3
    for name in ("running_mean", "running_var"):
        assert_near(getattr(found["numba"], name), getattr(found["aten"], name), 1e-14)


def test_a_move_of_running_statistics_is_seen_by_autograd():
    layer = BatchNorm(3).eval()
    y = layer(torch.randn(4, 3, 5).requires_grad_())
    layer.train()(torch.randn(4, 3, 5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_layer_on_another_device_is_refused_and_no_address_taken():
    x = torch.randn(4, 3, 6)
    for layer in (BatchNorm(3, device="meta").eval(), BatchNorm(3, device="meta", track_running_stats=False)):
        with pytest.raises(ConfigError, match="got one on meta"):
            layer(x)


def test_a_default_device_elsewhere_does_not_move_what_the_loops_write_to():
    layer, x = RangeBatchNorm(3), torch.randn(4, 3, 6)
    expected = layer(x)
    torch.set_default_device("meta")
    try:
        found = layer(x)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


def test_extremes_with_gaps_between_them_count_as_the_others():
    x, grad, _, _ = setting((4, 3, 6))
    moments = Moments.of(x).by_range()
    gaps = Moments(*moments.fields()[:3], *(e.repeat_interleave(3)[::3] for e in moments.fields()[3:]))
    found = [
        torch.autograd.grad(normalize(y := x.clone().requires_grad_(), m, by_range=True), y, grad)[0]
        for m in (moments, gaps)
    ]
    assert torch.equal(*found)


def test_a_jacobian_taken_for_many_gradients_at_once_is_that_of_one_at_a_time():
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    found = [torch.autograd.functional.jacobian(lambda x: batch_normalize(x)[0], x, vectorize=v) for v in (True, False)]
    assert_near(found[0], found[1], 1e-12)


def test_tensors_that_are_negated_or_zero_by_a_mark_alone_are_read_as_what_they_are():
    x, *_ = setting((4, 3, 6))
    layer = BatchNorm(3, dtype=torch.float64)
    assert_near(layer(torch._neg_view(x)), layer(-x), 1e-14)
    y = batch_normalize(leaf := x.clone().requires_grad_())[0]
    (found,) = torch.autograd.grad(y, leaf, torch._efficientzerotensor(x.shape, dtype=x.dtype))
    assert found.eq(0).all()


def test_channels_without_a_number_have_the_moments_that_pytorchs_operators_give():
    x = torch.full((3, 2, 4), torch.inf)
    x[:, 1] = torch.nan
    for ours, theirs in zip(cpu.measure(x).fields(), Moments.of(x).fields(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_a_forked_process_makes_a_pool_of_its_own(monkeypatch):
    monkeypatch.setattr(threads, "_region", lambda: threads._in_python)
    threads._workers(2)
    before = threads._workers.cache_info().currsize
    child = os.fork()
    if child == 0:
        os._exit(threads._workers.cache_info().currsize)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert before > 0
