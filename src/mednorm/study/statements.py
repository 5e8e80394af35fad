"""What the numbers show, in plain sentences, each with its interval; also where normalization did not help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mednorm.results import ArmSummary, Estimate, Run, Statement, Study
from mednorm.study.summary import Arm, Quantity, by_arm, estimate, generalization_gap, metric, paired, pairs

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

    def quality(self) -> list[Statement | None]:
        """Compare each norm with none on the test images, at the base batch size."""
        return [self._quality_of(norm, self.size, "quality") for norm in self.study.norms if norm != "none"]

    def speed(self) -> list[Statement | None]:
        """Compare epochs to the target."""
        return [self._speed_of(norm) for norm in self.study.norms if norm != "none"]

    def batch_size(self) -> list[Statement | None]:
        """Name the batch size that validation chooses for each norm, and compare BN with none at the others."""
        if len(self.study.batch_sizes) < 2:
            return []
        chosen = [self._best_size(norm) for norm in self.study.norms]
        others = [size for size in sorted(self.study.batch_sizes) if size != self.size]
        return chosen + [self._quality_of("batch", size, "batch_size") for size in others]

    def regularizers(self) -> list[Statement | None]:
        """Compare each regularizer alone with BN alone, and BN with and without it."""
        said: list[Statement | None] = []
        bn, val = ("batch", self.plain, self.size), metric(self.test)
        for regularizer in self.study.regularizers:
            if regularizer == self.plain:
                continue
            alone, both = ("none", regularizer, self.size), ("batch", regularizer, self.size)
            said.append(
                self._compare(
                    "regularizer", bn, alone, val, f"Batch normalization against {regularizer}", "test " + self.metric
                )
            )
            said.append(
                self._compare(
                    "regularizer", both, bn, val, f"Adding {regularizer} to batch normalization", "test " + self.metric
                )
            )
        return said

    def overfitting(self) -> list[Statement | None]:
        """Compare the gap between train and test metric."""
        gap = generalization_gap(self.study.main_metric)
        return [
            self._compare(
                "overfitting",
                (norm, self.plain, self.size),
                ("none", self.plain, self.size),
                gap,
                f"{NAMES[norm].capitalize()} against none",
                f"gap between training and test {self.metric}",
                larger_is_better=False,
            )
            for norm in self.study.norms
            if norm != "none"
        ]

    def gradients(self) -> list[Statement | None]:
        """Say how the gradient's size changes from the first layer to the last, at the start of training."""
        parts = []
        for norm in self.study.norms:
            ratio = self.summary[norm, self.plain, self.size].gradient_ratio
            if ratio.mean is not None:
                parts.append(f"{ratio.mean:.2f}{_interval(ratio, 2)} with {NAMES[norm]}")
        if not parts:
            return []
        text = "Gradient norm of the first layer over that of the last, first epoch: " + "; ".join(parts)
        return [
            Statement(topic="gradients", verdict="info", text=text + ". 1 would be equal; far below 1, it vanishes.")
        ]

    def cost(self) -> list[Statement | None]:
        """Say what a step costs in time."""
        said: list[Statement | None] = []
        none = self.summary.get(("none", self.plain, self.size))
        for norm in self.study.norms:
            ours = self.summary[norm, self.plain, self.size]
            if norm == "none" or none is None or not none.seconds_per_step.mean or not ours.seconds_per_step.mean:
                continue
            difference = ours.versus_none["seconds_per_step"]
            share = ours.seconds_per_step.mean / none.seconds_per_step.mean - 1
            text = (
                f"A training step took {ours.seconds_per_step.mean * 1e3:.1f} ms with {NAMES[norm]} and "
                f"{none.seconds_per_step.mean * 1e3:.1f} ms without ({share:+.0%})."
            )
            said.append(Statement(topic="cost", verdict=verdict(difference, False), text=text, difference=difference))
        return said

    def limits(self) -> list[Statement | None]:
        """Say what the numbers cannot carry."""
        said: list[Statement | None] = []
        if self.study.data.note:
            said.append(Statement(topic="data", verdict="info", text=self.study.data.note))
        if len(self.study.seeds) < 3:
            text = f"{len(self.study.seeds)} seed(s): too few for an interval that means much. Use at least 3."
            said.append(Statement(topic="caution", verdict="info", text=text))
        diverged = [run.name for run in self.runs if run.status == "diverged"]
        if diverged:
            text = f"The loss stopped being a number in {len(diverged)} run(s): {', '.join(diverged)}."
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

    def _quality_of(self, norm: str, size: int, topic: Literal["quality", "batch_size"]) -> Statement | None:
        ours, none = (norm, self.plain, size), ("none", self.plain, size)
        label = f"{NAMES[norm].capitalize()} against none at batch size {size}"
        return self._compare(topic, ours, none, metric(self.test), label, "test " + self.metric)

    def _speed_of(self, norm: str) -> Statement | None:
        ours, none = (norm, self.plain, self.size), ("none", self.plain, self.size)
        target = self.study.target
        if ours not in self.arms or none not in self.arms or target.value is None:
            return None
        epochs: Quantity = lambda run: run.epochs_to_target  # noqa: E731
        mine, theirs = self.summary[ours].epochs_to_target, self.summary[none].epochs_to_target
        goal = f"validation {self.metric} {target.value:.3f}"
        seeds = len(self.study.seeds)
        if mine.n < seeds or theirs.n < seeds:
            text = (
                f"{NAMES[norm].capitalize()} reached {goal} in {mine.n} of {seeds} seeds, no normalization in "
                f"{theirs.n}; epochs are compared only where both did."
            )
            difference = paired(self.arms[ours], self.arms[none], epochs)
            return Statement(topic="speed", verdict="info", text=text, difference=difference)
        label = f"Epochs to {goal}, {NAMES[norm]} against none"
        return self._compare("speed", ours, none, epochs, label, "epochs", larger_is_better=False, digits=1)

    def _best_size(self, norm: str) -> Statement | None:
        sizes = [size for size in self.study.batch_sizes if (norm, self.plain, size) in self.summary]
        name = f"val_{self.study.main_metric}"
        means = {size: self.summary[norm, self.plain, size].metrics[name].mean for size in sizes}
        known = {size: mean for size, mean in means.items() if mean is not None}
        if len(known) < 2:
            return None
        best = max(known, key=lambda size: known[size])
        test = self.summary[norm, self.plain, best].metrics[self.test]
        shown = "not defined" if test.mean is None else f"{test.mean:.3f}{_interval(test, 3)}"
        text = (
            f"With {NAMES[norm]}, validation chooses batch size {best} of {', '.join(map(str, sorted(known)))}; "
            f"test {self.metric} there is {shown}."
        )
        return Statement(topic="batch_size", verdict="info", text=text)

    def _compare(
        self,
        topic: Literal["quality", "speed", "batch_size", "regularizer", "overfitting"],
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
        if ours not in self.arms or theirs not in self.arms:
            return None
        both = pairs(self.arms[ours], self.arms[theirs], quantity)
        if not both:
            return None
        difference = estimate(left - right for left, right in both)
        judged = verdict(difference, larger_is_better)
        left, right = (sum(side) / len(both) for side in zip(*both, strict=True))
        seeds = f"{len(both)} paired seeds" if len(both) > 1 else "one seed, so no interval"
        shown = f"{difference.mean:+.{digits}f}{_interval(difference, digits, signed=True)}"
        text = (
            f"{label}: {what} {left:.{digits}f} against {right:.{digits}f}, difference {shown} over {seeds}: {judged}."
        )
        return Statement(topic=topic, verdict=judged, text=text, difference=difference)


def _interval(estimate: Estimate, digits: int, *, signed: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    sign = "+" if signed else ""
    return f" [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"
