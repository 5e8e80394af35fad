"""Networks broken on purpose get the right rule first, and healthy ones no error."""

from __future__ import annotations

import pytest

from mednorm.examine.examine import examine
from tests.unit.examine.broken_a import BROKEN
from tests.unit.examine.healthy import HEALTHY, Healthy
from tests.unit.examine.networks import accuracy
from tests.unit.examine.treated import (  # noqa: F401  what is imported here is run here
    each_of,
    examined,
    test_a_broken_network_gets_its_rule_first,
    test_every_remedy_runs_as_it_is_or_is_a_template,
)

pytest_generate_tests = each_of(BROKEN)


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda healthy: healthy.name)
def test_a_healthy_network_gets_no_error(healthy: Healthy):
    network, loader = healthy.build()
    found = examine(network, loader, metric=accuracy)
    assert [each.message for each in found.findings if each.severity == "error"] == []
