"""How a comparison becomes a sentence: two numbers, their difference, its intervals, a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mednorm.results import ArmSummary, Estimate, Statement, Study, Topic, Verdict
from mednorm.study.arms import Arm, Trial, Trials
from mednorm.study.summary import Quantity, estimate, metric, over_units, pairs

NAMES = {
    "none": "no normalization",
    "batch": "batch normalization",
    "renorm": "batch renormalization",
    "ghost": "ghost batch normalization (4 images)",
    "moving": "moving batch normalization",
    "range": "range batch normalization",
    "domain": "batch normalization by site",
    "frozen": "frozen batch normalization",
    "group": "group normalization",
    "instance": "instance normalization",
    "layer": "layer normalization",
}
FAMILY = ("renorm", "ghost", "moving", "range", "domain", "frozen")  # batch normalization's relatives
METRICS = {"dice": "Dice", "auc": "AUC", "hd95": "HD95"}
REGULARIZERS = {"dropout_before": "dropout before each norm", "dropout_last": "dropout after the last norm"}
SMALLER_IS_BETTER = ("hd95", "calibration_error")


def verdict(intervals: Sequence[Estimate | None], larger_is_better: bool) -> Verdict:
    """Judge a difference: only if every interval there is leaves out zero, on one side, does it distinguish."""
    known = [(e.low, e.high) for e in intervals if e is not None and e.low is not None and e.high is not None]
    if known and (all(low > 0 for low, _ in known) or all(high < 0 for _, high in known)):
        return "better" if (known[0][0] > 0) == larger_is_better else "worse"
    return "not distinguishable"


class Speaker:
    """Holds what every sentence needs: the arms, their trials, and the study's words."""

    def __init__(self, study: Study, arms: Trials, summary: Sequence[ArmSummary], metrics: Sequence[str]) -> None:
        self.study, self.arms, self.metrics = study, arms, metrics
        self.summary: Mapping[Arm, ArmSummary] = {
            Arm(a.norm, a.regularizer, a.batch_size, a.network, a.train_share): a for a in summary
        }
        self.base = Arm("none", study.base_regularizer, study.base_batch_size, study.networks[0])
        self.main = named(study.main_metric)
        self.test = f"test_{study.main_metric}"
        self.norms = [norm for norm in study.norms if norm != "none"]

    def arm(self, norm: str, **changed: object) -> Arm:
        """Return the base arm with this norm, and what else is changed."""
        return self.base._replace(norm=norm, **changed)  # type: ignore[arg-type]

    def compare_metric(self, topic: Topic, ours: Arm, theirs: Arm, name: str, label: str) -> Statement | None:
        """Compare a test metric of two arms."""
        short = name.removeprefix("test_")
        better = "smaller" if short.startswith(SMALLER_IS_BETTER) else "larger"
        return self.compare(topic, ours, theirs, metric(name), label, f"test {named(short)}", better=better, units=name)

    def against_none(
        self,
        topic: Topic,
        norm: str,
        quantity: Quantity,
        label: str,
        what: str,
        *,
        better: str | None = "smaller",
        digits: int = 3,
        **changed: object,
    ) -> Statement | None:
        """Compare a norm with none at the base, or what is changed of it; "{}" in the label is the norm's name."""
        ours, none = self.arm(norm, **changed), self.arm("none", **changed)
        label = capital(label.format(NAMES[norm]))
        return self.compare(topic, ours, none, quantity, label, what, better=better, digits=digits)

    def compare(
        self,
        topic: Topic,
        ours: Arm,
        theirs: Arm,
        quantity: Quantity,
        label: str,
        what: str,
        *,
        better: str | None = "larger",
        digits: int = 3,
        units: str | None = None,
    ) -> Statement | None:
        """Say "LABEL: WHAT a against b, difference …: verdict"; nothing where either arm was not trained.

        Where neither "larger" nor "smaller" is better, the sentence says which it is, and the verdict is "info".
        `units` names the test metric whose interval over patients or images is said, and judged by, as well.
        """
        mine, others = self.arms.get(ours, {}), self.arms.get(theirs, {})
        if ours == theirs:
            return None
        return self.compare_trials(
            topic, mine, others, quantity, label, what, better=better, digits=digits, units=units
        )

    def compare_trials(
        self,
        topic: Topic,
        mine: Mapping[int, Trial],
        others: Mapping[int, Trial],
        quantity: Quantity,
        label: str,
        what: str,
        *,
        better: str | None = "larger",
        digits: int = 3,
        units: str | None = None,
    ) -> Statement | None:
        """Compare trials paired by seed; see `compare`."""
        both = pairs(mine, others, quantity)
        if not both:
            return None
        difference = estimate(left - right for left, right in both)
        of_units = over_units(mine, units, others) if units else None
        judged = verdict([difference, of_units], larger_is_better=better != "smaller")
        said: str = judged
        if better is None and judged != "not distinguishable":
            said, judged = ("larger" if judged == "better" else "smaller"), "info"
        left, right = (number(estimate(side).mean or 0.0, digits) for side in zip(*both, strict=True))
        text = f"{label}: {what} {left} against {right}, difference {difference.text(digits, signed=True)} "
        text += _seeds(difference) + (self._over(of_units, digits) if units else "")
        return Statement(
            topic=topic, verdict=judged, text=f"{text}: {said}.", difference=difference, over_units=of_units
        )

    def caution(self, text: str) -> Statement:
        """Say what the numbers cannot carry."""
        return Statement(topic="caution", verdict="info", text=text)

    def _over(self, of_units: Estimate | None, digits: int) -> str:
        resampled = self.study.data.resampled
        if of_units is None or of_units.low is None or of_units.high is None:
            return f", no interval over {resampled}" if resampled else ""
        ends = f"[{number(of_units.low, digits, '+')}, {number(of_units.high, digits, '+')}]"
        return f", {ends} over {of_units.n} {resampled}"


def named(metric_name: str) -> str:
    """Name a metric as people write it."""
    return METRICS.get(metric_name, metric_name.replace("_", " "))


def number(value: float, digits: int, sign: str = "") -> str:
    """Print a number with a true minus sign."""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def capital(text: str) -> str:
    """Begin with a capital letter."""
    return text[0].upper() + text[1:]


def _seeds(difference: Estimate) -> str:
    if difference.n == 1:
        return "in one seed"
    return f"over {difference.n} paired seeds" + ("" if difference.low is not None else ", the same in all")
