import pytest
import torch
from torch import nn

from mednorm.advise.tensors import TensorMemory

FLOAT = 4


def test_the_activations_that_a_backward_pass_needs_and_the_gradients_are_counted():
    network = nn.Sequential(nn.Linear(100, 50, bias=False), nn.Tanh(), nn.Linear(50, 10, bias=False))
    images = torch.randn(64, 100)
    with TensorMemory() as memory:
        outputs = network(images)
        assert memory.now == FLOAT * 64 * (50 + 10)  # of tanh, in the place of its input, and of the last layer
        outputs.sum().backward()
        del outputs
        assert memory.now == FLOAT * (100 * 50 + 50 * 10)  # gradients alone are left
    assert memory.peak > FLOAT * (64 * (50 + 10) + 50 * 10)


def test_what_was_there_before_does_not_count_when_it_changes_in_place_or_is_viewed():
    weight, other = torch.zeros(1000), torch.ones(1000)
    with TensorMemory() as memory:
        weight.add_(other).view(10, 100).t()
        torch._foreach_add_([weight], [other])
    assert (memory.peak, memory.now) == (0, 0)


def test_several_views_of_one_tensor_count_once_and_as_long_as_one_of_them_lives():
    with TensorMemory() as memory:
        halves = torch.zeros(100).split(50)
        assert memory.now == 100 * FLOAT
        first, _ = halves
        del halves, _
        assert memory.now == 100 * FLOAT
        del first
        assert memory.now == 0


def test_a_sparse_tensor_is_passed_over():
    with TensorMemory() as memory:
        torch.eye(3).to_sparse()
    assert memory.peak >= 9 * FLOAT


@pytest.mark.parametrize("size", [1, 3, 8])
def test_memory_of_a_step_grows_on_a_straight_line(size):
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))

    def step(images):
        network.zero_grad(set_to_none=True)
        with TensorMemory() as memory:
            network(torch.zeros(images, 1, 32, 32)).square().mean().backward()
        return memory.peak

    assert step(2 * size + 1) - step(2 * size) == step(2 * size + 2) - step(2 * size + 1) > 8 * 30 * 30 * FLOAT
