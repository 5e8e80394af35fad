"""What the background article claims, claim by claim, and batch sizes and hospitals beside each other.

A comparison is found by the beginning of the study's own sentence; its figures are the sentence's structured
difference and intervals and the means of the two arms. Nothing is judged here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mednorm.results import ArmSummary, Estimate, Results, Statement
from rendering import words
from rendering.source import PartError
from rendering.tables import markdown

_NAMES = {"batch": "batch normalization", "group": "group normalization", "instance": "instance normalization"}
_NAMES |= {"layer": "layer normalization", "none": "no normalization"}
_METRICS = {"dice": "Dice", "auc": "AUC", "hd95": "HD95"}
_DROPOUTS = {"dropout_before": "dropout before each norm", "dropout_last": "dropout after the last norm"}


@dataclass(frozen=True)
class Row:
    """One measured quantity: `compared` is "without → with", in the order of the two means."""

    group: str
    what: str
    compared: str
    means: tuple[Estimate, Estimate]
    said: Statement
    digits: int = 3


class Reader:
    """Finds arms and sentences of a study, and words in a language."""

    def __init__(self, results: Results, language: str) -> None:
        self.results, self.study, self.language = results, results.study, language
        self.main = self.study.main_metric
        self.test = f"test_{self.main}"
        self._arms = {(a.norm, a.regularizer, a.batch_size, a.network, a.train_share): a for a in results.summary}

    def arm(self, norm: str, **changed: object) -> ArmSummary | None:
        """Return the arm with this norm that is else the base, but for what is changed; None if not trained."""
        base = {
            "regularizer": self.study.base_regularizer,
            "batch_size": self.study.base_batch_size,
            "network": self.study.networks[0],
            "train_share": 1.0,
        }
        return self._arms.get((norm, *(base | changed).values()))  # type: ignore[arg-type]

    def said(self, topic: str, beginning: str) -> Statement:
        """Return the sentence on a topic that begins so, whatever its capitals.

        Raises:
            PartError: there is none.

        """
        for statement in self.results.statements:
            if statement.topic == topic and statement.text.lower().startswith(beginning.lower()):
                return statement
        raise PartError(
            f"{self.study.task} {self.study.preset}: expected a sentence on {topic} that begins with {beginning!r}, "
            "got none. The study's wording changed: correct docs/rendering/claims.py."
        )

    def verdict(self, statement: Statement) -> str:
        """Say a sentence's verdict; of what is neither better nor worse, whether it is larger or smaller."""
        judged: str = statement.verdict
        if judged == "info":
            difference = statement.difference.mean if statement.difference else None
            judged = "larger" if difference is not None and difference > 0 else "smaller"
        return words.VERDICTS[judged][self.language]

    def resampled(self, statements: list[Statement]) -> str:
        """Say what intervals over units speak of, such as "624 images"."""
        unit = self.study.data.resampled
        counts = sorted({s.over_units.n for s in statements if s.over_units is not None})
        if not counts:
            return words.UNITS[unit][self.language]
        return f"{', '.join(map(str, counts))} {words.COUNTED[unit][self.language]}"


def claims(results: Results, language: str, *groups: str) -> str:
    """Show every measured quantity, grouped by claim; all groups unless some are named."""
    reader = Reader(results, language)
    for group in groups:
        if group not in words.GROUPS:
            raise PartError(f"claims: expected groups of {', '.join(words.GROUPS)}, got {group!r}.")
    rows = [row for row in _rows(reader) if not groups or row.group in groups]
    if not rows:
        raise PartError(f"claims {' '.join(groups)}: {results.study.task} {results.study.preset} measured none of it.")
    shown: list[list[str]] = []
    for row in rows:
        title = f"**{words.GROUPS[row.group][language]}**"
        if len(groups) != 1 and title not in (line[0] for line in shown):
            shown.append([title, *[""] * 6])
        shown.append(_cells(reader, row))
    headers = [word.format(reader.resampled([row.said for row in rows])) for word in words.CLAIMS[language]]
    return markdown(headers, shown, left=2, right=1)


def sizes(results: Results, language: str) -> str:
    """Show batch and group normalization at every batch size, in both modes of evaluation."""
    reader = Reader(results, language)
    shown, said = [], []
    for size in sorted(results.study.batch_sizes):
        batch, group = (reader.arm(norm, batch_size=size) for norm in ("batch", "group"))
        cells = [str(size)]
        for view, signed in (("metrics", False), ("batch_metrics", False), ("mode_gap", True)):
            known = getattr(batch, view).get(reader.test) if batch else None
            cells.append(known.text(3, signed=signed) if known else "–")
        cells.append(group.metrics[reader.test].text(3) if group else "–")
        if batch and group and len(results.study.batch_sizes) > 1:
            label = f"Batch normalization against group normalization at batch size {size}: test "
            said.append(reader.said("batch_size", label))
            cells += [*_differences(said[-1], 3), reader.verdict(said[-1])]
        else:
            cells += ["–"] * 3
        shown.append(cells)
    headers = [word.format(reader.resampled(said)) for word in words.SIZES[language]]
    return markdown(headers, shown, left=1, right=1)


def sites(results: Results, language: str) -> str:
    """Show every norm at each hospital or scanner of the test images."""
    reader = Reader(results, language)
    arms = {norm: arm for norm in results.study.norms if (arm := reader.arm(norm)) is not None}
    names = sorted({site for arm in arms.values() for site in arm.sites})
    first, mean, difference, verdict = words.SITES[language]
    others = [norm for norm in arms if norm != "none" and "none" in arms]
    short = {norm: words.NORMS[norm][language] for norm in arms}
    metric = words.TEST[language].format(words.metric(reader.main, language))
    headers = [first, *(mean.format(metric, short[norm]) for norm in arms)]
    for norm in others:
        headers += [difference.format(short[norm]), verdict]
    shown = []
    for site in names:
        cells = [site]
        for arm in arms.values():
            known = arm.sites.get(site, {}).get(reader.test)
            cells.append(known.text(3) if known else "–")
        for norm in others:
            statement = reader.said("sites", f"At site {site}, {_NAMES[norm]} against none: test ")
            cells += [_differences(statement, 3)[0], reader.verdict(statement)]
        shown.append(cells)
    if not shown:
        raise PartError(f"sites: {results.study.task} {results.study.preset} has no site.")
    return markdown(headers, shown, left=1)


def _rows(reader: Reader) -> Iterator[Row]:
    yield from _speed(reader)
    yield from _overfitting(reader)
    yield from _gradients(reader)
    yield from _sizes(reader)
    yield from _regularizers(reader)


def _pair(
    reader: Reader, group: str, what: str, key: str, said: tuple[str, str], digits: int = 3, **changed: object
) -> Row:
    """Compare batch normalization with none in one quantity: a test metric, or a field of the summary."""
    none, batch = (_known(reader, norm, **changed) for norm in ("none", "batch"))
    means = tuple(arm.metrics[key] if key in arm.metrics else getattr(arm, key) for arm in (none, batch))
    if digits < 0:  # as many as the smaller of the two needs
        known = [abs(mean.mean) for mean in means if mean.mean]
        digits = min(6, max(3, *(1 - math.floor(math.log10(value)) for value in known))) if known else 3
    compared = f"{words.NORMS['none'][reader.language]} → BN"
    return Row(group, what, compared, (means[0], means[1]), reader.said(*said), digits)


def _known(reader: Reader, norm: str, **changed: object) -> ArmSummary:
    arm = reader.arm(norm, **changed)
    if arm is None:
        raise PartError(f"claims: {reader.study.task} {reader.study.preset} has no arm {norm} with {changed}.")
    return arm


def _both(reader: Reader, **changed: object) -> bool:
    return all(reader.arm(norm, **changed) for norm in ("none", "batch"))


def _speed(reader: Reader) -> Iterator[Row]:
    target = reader.study.target.value
    if target is None or not _both(reader):
        return
    goal = f"{target:.3f}"
    name = words.metric(reader.main, reader.language)
    start = f"To reach validation {_METRICS.get(reader.main, reader.main)} {goal}"
    for key, word in (("epochs", words.EPOCHS), ("seconds", words.SECONDS)):
        said = f"{start}, batch normalization against none: {key}"
        if not any(s.topic == "speed" and s.text.startswith(said) for s in reader.results.statements):
            said = f"{start}: batch normalization did in "
        what = word[reader.language].format(name, goal)
        yield _pair(reader, "speed", what, f"{key}_to_target", ("speed", said), 1)


def _overfitting(reader: Reader) -> Iterator[Row]:
    if not _both(reader):
        return
    language, study = reader.language, reader.study
    unit = "patients" if study.data.patients else "images"
    base = f"Batch normalization against none at batch size {study.base_batch_size}: test "
    for share in sorted(study.train_shares, reverse=True):
        if not _both(reader, train_share=share):
            continue
        part = f"With {share:.0%} of the training {unit}, " if share < 1 else ""

        def what(word: words.Words, name: str, share: float = share) -> str:
            said = word[language].format(words.metric(name, language))
            return words.SHARE[language].format(f"{share:.0%}", words.UNITS[unit][language], said)

        label = f"{part}generalization gap of batch normalization against none: "
        gap = ("overfitting", label)
        yield _pair(
            reader, "overfitting", what(words.GAP, reader.main), "generalization_gap", gap, 3, train_share=share
        )
        for metric in study.headline_metrics(reader.results.summary[0].metrics) if share == 1 else [reader.test]:
            name = metric.removeprefix("test_")
            said = _METRICS.get(name, name.replace("_", " ")) + " "
            where = (
                ("quality", base + said)
                if share == 1
                else ("overfitting", f"{part}batch normalization against none: test ")
            )
            yield _pair(reader, "overfitting", what(words.TEST, name), metric, where, 3, train_share=share)


def _gradients(reader: Reader) -> Iterator[Row]:
    language = reader.language
    for network in reader.study.networks:
        if not _both(reader, network=network):
            continue
        deeper = network != reader.study.networks[0]
        inside = f"In {network}, " if deeper else ""

        def what(text: str, network: str = network) -> str:
            return words.INSIDE[language].format(network, text) if network else text

        for when, key in (("first step", "initial_gradient_decades"), ("first epoch", "gradient_decades")):
            label = f"{inside}weakest to strongest layer's gradient norm, {when}, batch normalization against none:"
            quantity = what(words.DECADES[language].format(words.WHEN[when][language]))
            yield _pair(reader, "gradients", quantity, key, ("gradients", label), -1, network=network)
        if deeper:
            label = f"{inside}batch normalization against none: test "
            quantity = what(words.TEST[language].format(words.metric(reader.main, language)))
            yield _pair(reader, "gradients", quantity, reader.test, ("gradients", label), 3, network=network)


def _sizes(reader: Reader) -> Iterator[Row]:
    language = reader.language
    for size in sorted(reader.study.batch_sizes):
        what = words.SIZE[language].format(size, words.metric(reader.main, language))
        batch, group = (reader.arm(norm, batch_size=size) for norm in ("batch", "group"))
        if batch and group and len(reader.study.batch_sizes) > 1:  # with one size, the study does not compare them
            label = f"Batch normalization against group normalization at batch size {size}: test "
            means = (group.metrics[reader.test], batch.metrics[reader.test])
            yield Row("sizes", what, "GN → BN", means, reader.said("batch_size", label))
        if batch and batch.batch_metrics.get(reader.test):
            label = f"Batch normalization trained at batch size {size}, running against batch statistics"
            means = (batch.batch_metrics[reader.test], batch.metrics[reader.test])
            compared = words.MODES[language]
            yield Row("sizes", what, compared, means, reader.said("modes", label))


def _regularizers(reader: Reader) -> Iterator[Row]:
    language = reader.language
    alone = reader.arm("batch")
    what = words.TEST[language].format(words.metric(reader.main, language))
    for name in reader.study.regularizers:
        other, both = (reader.arm(norm, regularizer=name) for norm in ("none", "batch"))
        if name == reader.study.base_regularizer or alone is None:
            continue
        short = words.regularizer(name, language)
        label = "+".join(_DROPOUTS.get(part, part) for part in name.split("+"))
        if other:
            means = (other.metrics[reader.test], alone.metrics[reader.test])
            said = reader.said("regularizer", f"Batch normalization against {label}: test ")
            yield Row("regularizers", what, f"{short} → BN", means, said)
        if both:
            means = (alone.metrics[reader.test], both.metrics[reader.test])
            said = reader.said("regularizer", f"Adding {label} to batch normalization: test ")
            yield Row("regularizers", what, f"BN → BN + {short}", means, said)


def _cells(reader: Reader, row: Row) -> list[str]:
    if row.said.difference is None:  # a target that not every seed reached
        counts = (f"{mean.n}/{len(reader.study.seeds)}" for mean in row.means)
        last = ["–", "–", words.REACHED[reader.language].format(*counts)]
    else:
        last = [*_differences(row.said, row.digits), reader.verdict(row.said)]
    return [row.what, row.compared, *(_number(mean.mean, row.digits) for mean in row.means), *last]


def _differences(said: Statement, digits: int) -> tuple[str, str]:
    """Write the difference with its interval over seeds, and the interval over patients or images."""
    units = said.over_units
    known = units is not None and units.low is not None and units.high is not None
    ends = f"[{_number(units.low, digits, '+')}, {_number(units.high, digits, '+')}]" if known and units else "–"
    return said.difference.text(digits, signed=True) if said.difference else "–", ends


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}".replace("-", "−")
