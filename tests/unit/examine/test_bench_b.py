"""Networks broken on purpose get the right rule first: those of MN005-MN012."""

from __future__ import annotations

import pytest

from tests.unit.examine.broken_b import BROKEN
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


def test_each_rule_has_networks_of_its_own_in_2_and_3_dimensions():
    codes = [broken.code for broken in BROKEN]
    assert {code: codes.count(code) >= 2 for code in codes} == {f"MN{number:03}": True for number in range(5, 13)}
    assert {broken.code for broken in BROKEN if "3-D" in broken.name or "volume" in broken.name} == set(codes)
