"""Networks broken on purpose get the right rule first, and healthy ones no error."""

from __future__ import annotations

import pytest

from mednorm.examine.examine import examine
from tests.unit.examine.broken_a import BROKEN, Broken
from tests.unit.examine.healthy import HEALTHY, Healthy
from tests.unit.examine.networks import accuracy


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_network_gets_its_rule_first(broken: Broken):
    network, loader = broken.build()
    found = examine(network, loader, metric=accuracy, **broken.told)
    assert found.findings[0].code == broken.code


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda healthy: healthy.name)
def test_a_healthy_network_gets_no_error(healthy: Healthy):
    network, loader = healthy.build()
    found = examine(network, loader, metric=accuracy)
    assert [each.message for each in found.findings if each.severity == "error"] == []
