"""What the numbers show, in plain sentences, each with its interval; also where normalization did not help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mednorm.results import ArmSummary, Estimate, Run, Statement, Study
from mednorm.study.summary import Arm, Quantity, by_arm, estimate, generalization_gap, metric, paired, pairs

Topic = Literal["quality", "speed", "batch_size", "regularizer", "overfitting", "gradients", "cost", "data", "caution"]
Verdict = Literal["better", "worse", "not distinguishable", "info"]

NAMES = {
    "none": "no normalization",
    "batch": "batch normalization",
    "group": "group normalization",
    "instance": "instance normalization",
}
METRICS = {"dice": "Dice", "auc": "AUC"}


def verdict(difference: Estimate, larger_is_better: bool) -> Verdict:
    """Judge a difference: only an interval that leaves out zero distinguishes."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "not distinguishable"
    return "better" if (difference.low > 0) == larger_is_better else "worse"


def statements(study: Study, runs: Sequence[Run], summary: Sequence[ArmSummary]) -> list[Statement]:
    """Say what a study shows: quality, speed, batch size, regularizers, overfitting, gradients, cost, limits."""
    speaker = _Speaker(study, runs, summary)
    said = [
        *speaker.quality(),
        *speaker.speed(),
        *speaker.batch_size(),
        *speaker.regularizers(),
        *speaker.overfitting(),
        *speaker.gradients(),
        *speaker.cost(),
        *speaker.limits(),
    ]
    return [statement for statement in said if statement is not None]


class _Speaker:
    """Holds what every sentence needs: the arms, their runs, and the study's words."""

    def __init__(self, study: Study, runs: Sequence[Run], summary: Sequence[ArmSummary]) -> None:
        self.study, self.runs = study, runs
        self.arms = by_arm(runs)
        self.summary: Mapping[Arm, ArmSummary] = {(a.norm, a.regularizer, a.batch_size): a for a in summary}
        self.plain = "none" if "none" in study.regularizers else study.regularizers[0]
        self.size = study.base_batch_size
        self.metric = METRICS.get(study.main_metric, study.main_metric)
        self.test = f"test_{study.main_metric}"
        self.norms = [norm for norm in study.norms if norm != "none"]

    def quality(self) -> list[Statement | None]:
        """Compare each norm with none on the test images, at the base batch size."""
        return [self._quality_of(norm, self.size, "quality") for norm in self.norms]

    def speed(self) -> list[Statement | None]:
        """Compare epochs to the target."""
        return [self._speed_of(norm) for norm in self.norms]

    def batch_size(self) -> list[Statement | None]:
        """Name the batch size that validation chooses for each norm, and compare BN with none at the others."""
        if len(self.study.batch_sizes) < 2:
            return []
        chosen = [self._best_size(norm) for norm in self.study.norms]
        others = [size for size in sorted(self.study.batch_sizes) if size != self.size]
        return chosen + [self._quality_of("batch", size, "batch_size") for size in others]

    def regularizers(self) -> list[Statement | None]:
        """Compare BN alone with each regularizer alone, and BN with and without it."""
        said: list[Statement | None] = []
        batch, test, what = ("batch", self.plain, self.size), metric(self.test), f"test {self.metric}"
        for name in self.study.regularizers:
            if name == self.plain:
                continue
            alone, both = ("none", name, self.size), ("batch", name, self.size)
            said.append(self._compare("regularizer", batch, alone, test, f"Batch normalization against {name}", what))
            label = f"Adding {name} to batch normalization"
            said.append(self._compare("regularizer", both, batch, test, label, what))
        return said

    def overfitting(self) -> list[Statement | None]:
        """Compare the gap between training and test metric."""
        gap, what = generalization_gap(self.study.main_metric), f"training minus test {self.metric}"
        return [
            self._against_none("overfitting", norm, gap, "{} against none", what, larger_is_better=False)
            for norm in self.norms
        ]

    def gradients(self) -> list[Statement | None]:
        """Say how the gradient's size changes from the first layer to the last, at the start of training."""
        parts = []
        for norm in self.study.norms:
            ratio = self.summary[norm, self.plain, self.size].gradient_ratio
            if ratio.mean is not None:
                parts.append(f"{_shown(ratio, 2)} with {NAMES[norm]}")
        if not parts:
            return []
        text = "Gradient norm of the first layer over that of the last, first epoch: " + "; ".join(parts)
        return [Statement(topic="gradients", verdict="info", text=text + ". Far below 1, the gradient vanishes.")]

    def cost(self) -> list[Statement | None]:
        """Compare what a training step costs in time."""

        def milliseconds(run: Run) -> float:
            return run.seconds_per_step * 1e3

        label = "A training step with {} against none"
        return [
            self._against_none("cost", norm, milliseconds, label, "milliseconds", larger_is_better=False, digits=1)
            for norm in self.norms
        ]

    def limits(self) -> list[Statement | None]:
        """Say what the numbers cannot carry."""
        said: list[Statement | None] = []
        if self.study.data.note:
            said.append(Statement(topic="data", verdict="info", text=self.study.data.note))
        seeds = len(self.study.seeds)
        if seeds < 3:
            text = f"{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few for an interval that means much."
            said.append(Statement(topic="caution", verdict="info", text=text))
        diverged = [run.name for run in self.runs if run.status == "diverged"]
        if diverged:
            text = (
                f"The loss stopped being a number in {', '.join(diverged)}; the best epoch before that was judged, "
                "and where there is none the metrics are not defined."
            )
            said.append(Statement(topic="caution", verdict="worse", text=text))
        compared = sum(1 for arm in self.summary.values() if arm.versus_none)
        if compared > 5:
            text = (
                f"{compared} arms are compared with no normalization, each at 95 %: of twenty comparisons without any "
                "true difference one is expected to look like one."
            )
            said.append(Statement(topic="caution", verdict="info", text=text))
        text = (
            "All arms share one learning rate and number of epochs; an arm that needs others is not at its best here."
        )
        return [*said, Statement(topic="caution", verdict="info", text=text)]

    def _quality_of(self, norm: str, size: int, topic: Topic) -> Statement | None:
        label = f"{_capital(NAMES[norm])} against none at batch size {size}"
        ours, none = (norm, self.plain, size), ("none", self.plain, size)
        return self._compare(topic, ours, none, metric(self.test), label, f"test {self.metric}")

    def _speed_of(self, norm: str) -> Statement | None:
        ours, none = (norm, self.plain, self.size), ("none", self.plain, self.size)
        target = self.study.target.value
        if ours not in self.arms or none not in self.arms or target is None:
            return None

        def epochs(run: Run) -> float | None:
            return run.epochs_to_target

        goal = f"validation {self.metric} {target:.3f}"
        reached, plainly = self.summary[ours].epochs_to_target.n, self.summary[none].epochs_to_target.n
        seeds = len(self.study.seeds)
        if min(reached, plainly) == seeds:
            label = f"To reach {goal}, {{}} against none"
            return self._against_none("speed", norm, epochs, label, "epochs", larger_is_better=False, digits=1)
        text = (
            f"{_capital(NAMES[norm])} reached {goal} in {reached} of {seeds} seeds, no normalization in {plainly}; "
            "epochs cannot be compared fairly."
        )
        difference = paired(self.arms[ours], self.arms[none], epochs)
        return Statement(topic="speed", verdict="info", text=text, difference=difference)

    def _best_size(self, norm: str) -> Statement | None:
        name = f"val_{self.study.main_metric}"
        means = {
            size: arm.metrics[name].mean for (n, r, size), arm in self.summary.items() if (n, r) == (norm, self.plain)
        }
        known = {size: mean for size, mean in means.items() if mean is not None}
        if len(known) < 2:
            return None
        best = max(known, key=lambda size: known[size])
        test = self.summary[norm, self.plain, best].metrics[self.test]
        text = (
            f"With {NAMES[norm]}, validation chooses batch size {best} of {', '.join(map(str, sorted(known)))}; "
            f"test {self.metric} there is {_shown(test, 3)}."
        )
        return Statement(topic="batch_size", verdict="info", text=text)

    def _against_none(
        self,
        topic: Topic,
        norm: str,
        quantity: Quantity,
        label: str,
        what: str,
        *,
        larger_is_better: bool,
        digits: int = 3,
    ) -> Statement | None:
        """Compare a norm with none at the base batch size; "{}" in the label is the norm's name."""
        ours, none = (norm, self.plain, self.size), ("none", self.plain, self.size)
        label = _capital(label.format(NAMES[norm]))
        return self._compare(topic, ours, none, quantity, label, what, larger_is_better=larger_is_better, digits=digits)

    def _compare(
        self,
        topic: Topic,
        ours: Arm,
        theirs: Arm,
        quantity: Quantity,
        label: str,
        what: str,
        *,
        larger_is_better: bool = True,
        digits: int = 3,
    ) -> Statement | None:
        """Say "LABEL: WHAT a against b, difference …: verdict"; nothing where either arm was not trained."""
        both = pairs(self.arms.get(ours, {}), self.arms.get(theirs, {}), quantity)
        if not both:
            return None
        difference = estimate(left - right for left, right in both)
        judged = verdict(difference, larger_is_better)
        left, right = (sum(side) / len(both) for side in zip(*both, strict=True))
        seeds = f"over {len(both)} paired seeds" if len(both) > 1 else "in one seed, which gives no interval"
        shown = _shown(difference, digits, signed=True)
        text = f"{label}: {what} {left:.{digits}f} against {right:.{digits}f}, difference {shown} {seeds}: {judged}."
        return Statement(topic=topic, verdict=judged, text=text.replace("-0.", "−0."), difference=difference)


def _shown(given: Estimate, digits: int, *, signed: bool = False) -> str:
    """Write "mean [low, high]", with a true minus sign."""
    if given.mean is None:
        return "not defined"
    form = f"{'+' if signed else ''}.{digits}f"
    text = format(given.mean, form)
    if given.low is not None and given.high is not None:
        text += f" [{given.low:{form}}, {given.high:{form}}]"
    return text.replace("-", "−")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
