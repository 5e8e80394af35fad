"""The rules of `mednorm examine`, and what they said of networks broken on purpose: benchmarks/results/broken.json."""

from __future__ import annotations

from rendering.source import measured
from rendering.tables import markdown

_COMMAND = "python benchmarks/broken.py"


def index() -> str:
    """Show every rule with its page."""
    from mednorm.examine.rules import RULES

    rows = [
        [f"[`{rule.code}`]({rule.code.lower()}.md)", f"`{rule.name}`", rule.title, "images" if rule.needs_data else "–"]
        for rule in RULES
    ]
    return markdown(["code", "name", "what is wrong", "looks at"], rows, left=4)


def broken() -> str:
    """Show every network that was broken on purpose with what was found first."""
    rows = [
        [case["name"], f"`{case['expected']}`", f"`{case['code']}`", case["severity"]]
        for case in measured("broken", _COMMAND)["broken"]
    ]
    return markdown(["broken network", "expected", "found first", "severity"], rows, left=4)


def healthy() -> str:
    """Show every healthy network with what was found."""
    rows = [
        [case["name"], ", ".join(f"`{code}` ({severity})" for code, severity in case["found"].items()) or "nothing"]
        for case in measured("broken", _COMMAND)["healthy"]
    ]
    return markdown(["healthy network", "found"], rows, left=2)
