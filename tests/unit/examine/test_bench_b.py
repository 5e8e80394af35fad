"""Networks broken on purpose get the right rule first: those of MN005-MN012."""

from __future__ import annotations

import pytest

from mednorm.examine.examine import examine
from tests.unit.examine.broken_b import BROKEN, Broken
from tests.unit.examine.networks import accuracy


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_network_gets_its_rule_first(broken: Broken):
    network, loader = broken.build()
    found = examine(network, loader, metric=accuracy, **broken.told)
    assert found.findings[0].code == broken.code


def test_each_rule_has_networks_of_its_own_in_2_and_3_dimensions():
    codes = [broken.code for broken in BROKEN]
    assert {code: codes.count(code) >= 2 for code in codes} == {f"MN{number:03}": True for number in range(5, 13)}
    assert {broken.code for broken in BROKEN if "3-D" in broken.name or "volume" in broken.name} == set(codes)
