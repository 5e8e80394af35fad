"""Networks broken on purpose get the right rule first: those of MN005-MN012."""

from __future__ import annotations

from tests.unit.examine.broken_b import BROKEN
from tests.unit.examine.treated import (  # noqa: F401  what is imported here is run here
    each_of,
    examined,
    test_a_broken_network_gets_its_rule_first,
    test_every_remedy_runs_as_it_is_or_is_a_template,
)

pytest_generate_tests = each_of(BROKEN)


def test_each_rule_has_networks_of_its_own_in_2_and_3_dimensions():
    codes = [broken.code for broken in BROKEN]
    assert {code: codes.count(code) >= 2 for code in codes} == {f"MN{number:03}": True for number in range(5, 13)}
    assert {broken.code for broken in BROKEN if "3-D" in broken.name or "volume" in broken.name} == set(codes)
