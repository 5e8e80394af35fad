"""Which rules are asked, and what they found in the order in which a reader should hear it: causes before symptoms."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from mednorm.errors import ConfigError
from mednorm.examine.findings import SEVERITIES, Finding, Rule
from mednorm.examine.records import Probed


def chosen(
    rules: Sequence[Rule], select: str | Iterable[str] | None = None, ignore: str | Iterable[str] | None = None
) -> tuple[Rule, ...]:
    """Return the rules of those codes or names; all where none is selected.

    Raises:
        ConfigError: something that is no rule, or none is left.

    Example:
        >>> rules = Rule("MN001", "gap", "", iter), Rule("MN003", "small-batch", "", iter)
        >>> [rule.code for rule in chosen(rules, ignore="small-batch")]
        ['MN001']

    """
    wanted = _codes(rules, select, "select") or {rule.code for rule in rules}
    kept = tuple(rule for rule in rules if rule.code in wanted - _codes(rules, ignore, "ignore"))
    if not kept:
        raise ConfigError("ignore: expected at least one rule to be left, got every selected one. Leave some out.")
    return kept


def find(rules: Sequence[Rule], text: str, what: str = "rule") -> Rule:
    """Return the rule of a code or a name.

    Raises:
        ConfigError: there is none.

    """
    for rule in rules:
        if text.strip().lower() in (rule.code.lower(), rule.name):
            return rule
    known = [word for rule in rules for word in (rule.code, rule.name)]
    number = text.strip().lower().removeprefix("mn")
    near = [f"mn{int(number):03}"] if number.isdecimal() else []
    near = near or difflib.get_close_matches(text.lower(), [word.lower() for word in known], n=1, cutoff=0.5)
    hint = next((f"Did you mean {word!r}?" for word in known if word.lower() in near), None)
    hint = hint or f"Known are {', '.join(rule.code for rule in rules)}."
    raise ConfigError(f"{what}: expected the code or name of a rule, got {text!r}. {hint}")


def ordered(findings: Iterable[Finding], probed: Probed, rules: Sequence[Rule]) -> tuple[Finding, ...]:
    """Return findings, the diagnosis first.

    By severity; causes before symptoms; then the rule one of whose layers explains more of the train/eval gap alone,
    in tenths, as finer shares are no ground to prefer one; then by code. Within a rule the network as a whole,
    then layers by share, by how far the decisive number is beyond its threshold, and by place.
    """
    found = list(findings)
    symptoms = {rule.code for rule in rules if rule.symptom}
    places = {layer.name: layer.place for layer in probed.layers}
    shares = probed.gap.by_layer if probed.gap is not None else {}

    explained: dict[tuple[str, str], float] = {}
    for each in found:
        group, share = (each.code, each.severity), round(shares.get(each.layer, 0.0), 1)
        explained[group] = max(explained.get(group, 0.0), share)

    def key(finding: Finding) -> tuple[float | str, ...]:
        return (
            SEVERITIES.index(finding.severity),
            finding.code in symptoms,
            -explained[finding.code, finding.severity],
            finding.code,
            finding.layer != "",  # the network as a whole first, then where in it
            -(finding.share or 0.0),
            -_beyond(finding),
            places.get(finding.layer, -1),
            finding.site or "",
        )

    return tuple(sorted(found, key=key))


def _beyond(finding: Finding) -> float:
    """How many times a finding's decisive number is on the wrong side of its threshold; 0 where that is no number."""
    for evidence in finding.evidence[:1]:
        if evidence.threshold and evidence.value == evidence.value:
            ratio = abs(evidence.value / evidence.threshold)
            return max(ratio, 1 / ratio) if ratio else float("inf")
    return 0.0


def _codes(rules: Sequence[Rule], wanted: str | Iterable[str] | None, what: str) -> set[str]:
    """Return the codes of some rules, none where none are asked for; empty words, as behind a comma, do not count."""
    if wanted is None or (what == "ignore" and isinstance(wanted, list | tuple | set) and not wanted):
        return set()
    words = wanted.split(",") if isinstance(wanted, str) else list(wanted) if isinstance(wanted, Iterable) else []
    if not all(isinstance(word, str) for word in words) or not any(word.strip() for word in words):
        raise ConfigError(f"{what}: expected codes or names of rules, such as 'MN001,MN003', got {wanted!r}.")
    return {find(rules, word, what).code for word in words if word.strip()}
