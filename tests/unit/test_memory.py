import sys

import pytest
import torch

from mednorm.memory import PeakMemory

MEGABYTE = 2**20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has a mark that can be reset")


@pytest.fixture
def peak():
    memory = PeakMemory(torch.device("cpu"))
    if memory.read() is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    return memory


def test_a_passing_allocation_is_seen_after_it_is_gone(peak):
    before = peak.read()
    block = torch.ones(200 * MEGABYTE // 4)
    del block
    assert 190 < peak.read() - before < 260


def test_an_allocation_from_before_does_not_count(peak):
    block = torch.ones(200 * MEGABYTE // 4)
    later = PeakMemory(torch.device("cpu"))
    assert later.read() < 50
    assert peak.read() > 190
    del block
