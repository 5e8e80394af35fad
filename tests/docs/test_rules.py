"""Every rule of an examination has its page, and the committed bench of broken networks is whole."""

import json
from pathlib import Path

import pytest

from mednorm.examine.rules import RULES
from tests.unit.examine import broken_a, broken_b
from tests.unit.examine.healthy import HEALTHY

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ["## Why it matters", "## How it is measured", "## Remedy", "## Literature"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_has_a_page_that_says_why_how_and_what_to_do(rule):
    page = (ROOT / "docs" / "rules" / f"{rule.code.lower()}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {rule.code}: ")
    assert [line for line in page.splitlines() if line in SECTIONS] == SECTIONS
    assert "```python" in page.split("## Remedy")[1]


def test_there_is_no_page_of_a_rule_that_does_not_exist():
    pages = {page.stem.upper() for page in (ROOT / "docs" / "rules").glob("mn*.md")}
    assert pages == {rule.code for rule in RULES}


def test_in_the_committed_figures_every_broken_network_got_its_rule_first_and_no_healthy_one_an_error():
    written = json.loads((ROOT / "benchmarks" / "results" / "broken.json").read_text(encoding="utf-8"))
    cases = (*broken_a.BROKEN, *broken_b.BROKEN)
    assert {(each["name"], each["expected"]) for each in written["broken"]} == {(c.name, c.code) for c in cases}
    assert all(each["code"] == each["expected"] for each in written["broken"])
    assert [each["name"] for each in written["healthy"]] == [healthy.name for healthy in HEALTHY]
    assert not any("error" in each["found"].values() for each in written["healthy"])
