"""The pages of MN005-MN012 hold the thresholds that the rules have, and remedies as the rules give them."""

from pathlib import Path

import pytest

from mednorm.examine.rules import (
    RULES,
    mn005_dead_channels,
    mn006_not_finite,
    mn007_dropout_before,
    mn009_weight_decay,
    mn010_updates,
    mn012_epsilon,
)

PAGES = Path(__file__).resolve().parents[4] / "docs" / "rules"
THRESHOLDS = {
    "MN005": [f"`{100 * share:.0f}` %" for share in (mn005_dead_channels.INFO, mn005_dead_channels.WARNING)]
    + [f"`{100 * mn005_dead_channels.ERROR:.0f}` %", f"`{mn005_dead_channels.ROUNDING:.0e}`".replace("e-0", "e-")]
    + [f"`{mn005_dead_channels.GAMMA:.0e}`".replace("e-0", "e-"), f"from {mn005_dead_channels.FEWEST} values on"],
    "MN006": [f"`{100 * share:.0f}` %" for share in (mn006_not_finite.WARNING, mn006_not_finite.ERROR)],
    "MN007": [f"`{ratio:.2f}`" for ratio in (mn007_dropout_before.WARNING, mn007_dropout_before.ERROR)]
    + [f"`{100 * (1 - ratio**-0.5):.0f}` %" for ratio in (mn007_dropout_before.WARNING, mn007_dropout_before.ERROR)]
    + [f"`{mn007_dropout_before.RATE}`"],
    "MN009": [f"`{mn009_weight_decay.SHRUNK}`"],
    "MN010": [f"from `{limit}` σ" for limit in (mn010_updates.WARNING, mn010_updates.ERROR)],
    "MN012": [f"`{mn012_epsilon.WARNING:.3f}`", f"`{mn012_epsilon.ERROR:.0f}`"]
    + [f"from `{steps:.0f}`" for steps in (mn012_epsilon.COARSE, mn012_epsilon.COARSER)],
}
SECTIONS = ["## Why it matters", "## How it is measured", "## Remedy", "## Literature"]


@pytest.mark.parametrize("code", THRESHOLDS)
def test_a_page_holds_the_thresholds_of_its_rule(code):
    text = (PAGES / f"{code.lower()}.md").read_text(encoding="utf-8")
    assert [threshold for threshold in THRESHOLDS[code] if threshold not in text] == []


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if "MN005" <= rule.code <= "MN012"], ids=lambda rule: rule.code
)
def test_a_page_has_its_title_and_every_section(rule):
    lines = (PAGES / f"{rule.code.lower()}.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# {rule.code}: ")
    assert [line for line in lines if line.startswith("## ")] == SECTIONS
