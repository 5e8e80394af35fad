"""The loops as operators: what torch.library asks of them, and gradients through them."""

from __future__ import annotations

import pytest
import torch

from mednorm import BatchNorm, kernels
from mednorm.functional import batch_normalize

ops = torch.ops.mednorm


def arguments() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weight, bias = torch.randn(4, 3, 6, 5), torch.randn(3), torch.randn(3)
    return x.double().requires_grad_(), weight.double().requires_grad_(), bias.double().requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
def test_the_operators_keep_what_they_promise(layout):
    x, weight, bias = arguments()
    x = x.detach().contiguous(memory_format=layout)
    torch.library.opcheck(ops.measure.default, (x,))
    leaves = x.clone().requires_grad_(), weight, bias
    torch.library.opcheck(ops.forward.default, (*leaves, 1e-5, 0.0))
    torch.library.opcheck(ops.forward.default, (*leaves, 1e-5, None, [1, 3], torch.tensor([2, 0, 1, 3])))
    count, mean, m2, low, high = ops.measure(x)
    torch.library.opcheck(ops.normalize.default, (leaves[0], count, mean, m2, weight, bias, 1e-5, 0.3))
    fields = count, mean, m2, low, high
    held = weight.detach(), bias.detach()
    torch.library.opcheck(ops.normalize_backward.default, (torch.randn_like(x), x, *fields, *held, 1e-5, 0.0))


def test_gradients_through_the_operator_are_those_of_the_function():
    x, weight, bias = arguments()
    wanted = torch.autograd.grad(
        batch_normalize(x, weight, bias, activation="relu")[0].square().sum(), (x, weight, bias)
    )
    found = torch.autograd.grad(ops.forward(x, weight, bias, 1e-5, 0.0)[0].square().sum(), (x, weight, bias))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_given_statistics_are_constants_to_the_operator():
    x, weight, bias = arguments()
    count, mean, m2, _, _ = ops.measure(x.detach())

    def normalize(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.normalize(x, count, mean, m2, weight, bias, 1e-5, None)

    assert torch.autograd.gradcheck(normalize, (x, weight, bias))


def test_half_precision_goes_through_the_operators_too():
    x = torch.randn(4, 3, 6, 5).bfloat16()
    y, *_ = ops.forward(x, None, None, 1e-5, None)
    torch.testing.assert_close(y, batch_normalize(x)[0])


@pytest.mark.slow
def test_an_exported_network_in_training_holds_the_operator_and_gives_the_same():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), BatchNorm(3, activation="relu"))
    x = torch.randn(4, 3, 6, 5)
    expected = network(x)
    program = torch.export.export(network, (x,), strict=False)
    assert any("mednorm.forward" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.slow
def test_an_exported_network_in_evaluation_holds_pytorchs_operators_alone():
    program = torch.export.export(BatchNorm(3, activation="relu").eval(), (torch.randn(4, 3, 6, 5),), strict=False)
    assert not any("mednorm" in str(node.target) for node in program.graph.nodes)


def test_groups_on_half_precision_are_those_of_the_loops():
    x, groups = torch.randn(5, 3, 8), kernels.Groups([2, 3], torch.tensor([4, 0, 1, 2, 3]))
    wide, _ = batch_normalize(x, groups=groups)
    half, moments = batch_normalize(x.bfloat16(), groups=groups)
    assert moments.mean.shape == (2, 3)
    torch.testing.assert_close(half.float(), wide, rtol=0.02, atol=0.02)
