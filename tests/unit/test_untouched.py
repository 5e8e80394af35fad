"""A guard gives back what a look at a network may change."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from mednorm.guards import random_state_kept, untouched
from tests.unit.examine.looking import everything, head


def test_modes_buffers_and_random_states_come_back_also_after_an_exception():
    def disturb(network):
        assert not any(module.training for module in network.modules())
        network.train()(torch.randn(4, 1, 8, 8))
        network[1].running_var = torch.full((4,), torch.nan)
        network[5].running_mean[0] = torch.nan
        random.random(), np.random.rand()  # noqa: NPY002
        raise RuntimeError("midway")

    network = head()
    network[3].eval()
    before = everything(network)
    with pytest.raises(RuntimeError, match="midway"), untouched(network):
        disturb(network)
    assert everything(network) == before


def test_a_buffer_that_is_no_number_stays_bit_by_bit_what_it_was():
    network = nn.Sequential(nn.BatchNorm2d(2))
    network[0].running_var[1] = torch.nan
    before = everything(network)
    with untouched(network):
        network[0].running_var.zero_()
    assert everything(network) == before


def test_a_buffer_that_a_forward_pass_registers_is_gone_again():
    network = nn.Sequential(nn.BatchNorm2d(2))
    with untouched(network):
        network[0].register_buffer("grid", torch.zeros(2))
    assert list(network.state_dict()) == list(nn.Sequential(nn.BatchNorm2d(2)).state_dict())


def test_every_generator_goes_on_where_it_was():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    with random_state_kept(nn.Identity()):
        first = draw()
    assert draw() == first
