"""Networks broken on purpose get the right rule first, and healthy ones no error."""

from __future__ import annotations

import pytest

from mednorm.examine.examine import examine
from tests.unit.examine.broken_a import BROKEN
from tests.unit.examine.healthy import HEALTHY, Healthy
from tests.unit.examine.networks import accuracy
from tests.unit.examine.treated import Examined, examine_broken, run_remedies


@pytest.fixture(scope="module", params=BROKEN, ids=lambda broken: broken.name)
def examined(request: pytest.FixtureRequest) -> Examined:
    """A broken network and what was found, once for all tests of it."""
    return examine_broken(request.param)


def test_a_broken_network_gets_its_rule_first(examined: Examined):
    assert examined.found.findings[0].code == examined.broken.code


def test_every_remedy_runs_as_it_is_or_is_a_template(examined: Examined):
    templates = run_remedies(examined)
    assert {finding.code for finding in templates} <= {"MN006", "MN009"}


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda healthy: healthy.name)
def test_a_healthy_network_gets_no_error(healthy: Healthy):
    network, loader = healthy.build()
    found = examine(network, loader, metric=accuracy)
    assert [each.message for each in found.findings if each.severity == "error"] == []
