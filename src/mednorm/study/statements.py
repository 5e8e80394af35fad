"""What the numbers show, in plain sentences, each with its interval; also where normalization did not help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mednorm.results import ArmSummary, Estimate, Run, Statement, Study, Topic, Verdict
from mednorm.study.summary import Arm, Quantity, by_arm, estimate, generalization_gap, gradient_ratio, metric, pairs

NAMES = {
    "none": "no normalization",
    "batch": "batch normalization",
    "group": "group normalization",
    "instance": "instance normalization",
}
METRICS = {"dice": "Dice", "auc": "AUC"}

# PyTorch's default, which every arm uses: after k updates 0.9^k of the initial running statistics is left.
_KEPT_PER_UPDATE = 0.9


def verdict(difference: Estimate, larger_is_better: bool) -> Verdict:
    """Judge a difference: only an interval that leaves out zero distinguishes."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "not distinguishable"
    return "better" if (difference.low > 0) == larger_is_better else "worse"


def statements(
    study: Study, runs: Sequence[Run], summary: Sequence[ArmSummary], metrics: Sequence[str]
) -> list[Statement]:
    """Say what a study shows: quality, speed, batch size, regularizers, overfitting, gradients, cost, limits.

    Args:
        study: what was asked for.
        runs: every run, with its time to the target.
        summary: the runs by arm.
        metrics: the test metrics to speak of, the main one first.

    """
    speaker = _Speaker(study, runs, summary, metrics)
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

    def __init__(
        self, study: Study, runs: Sequence[Run], summary: Sequence[ArmSummary], metrics: Sequence[str]
    ) -> None:
        self.study, self.runs, self.metrics = study, runs, metrics
        self.arms = by_arm(runs)
        self.summary: Mapping[Arm, ArmSummary] = {(a.norm, a.regularizer, a.batch_size): a for a in summary}
        self.plain, self.size = study.base_regularizer, study.base_batch_size
        self.main = METRICS.get(study.main_metric, study.main_metric)
        self.test = f"test_{study.main_metric}"
        self.norms = [norm for norm in study.norms if norm != "none"]

    def quality(self) -> list[Statement | None]:
        """Compare each norm with none on the test images, at the base batch size, by every metric."""
        return [self._quality_of(norm, self.size, name, "quality") for norm in self.norms for name in self.metrics]

    def speed(self) -> list[Statement | None]:
        """Compare epochs and training seconds to the target."""
        target = self.study.target.value
        if target is None:
            return []
        goal = f"To reach validation {self.main} {target:.3f}".replace("-", "−")
        seeds = len(self.study.seeds)
        said: list[Statement | None] = []
        for norm in self.norms:
            arms = [self.summary.get((name, self.plain, self.size)) for name in (norm, "none")]
            reached = [arm.epochs_to_target.n for arm in arms if arm is not None]
            if min(reached) < seeds:
                text = f"{goal}: {NAMES[norm]} did in {reached[0]} of {seeds} seeds" + (
                    f", no normalization in {reached[1]}. Epochs cannot be compared fairly." if reached[1:] else "."
                )
                said.append(Statement(topic="speed", verdict="info", text=text))
                continue
            said.append(self._against_none("speed", norm, _epochs, goal + ", {} against none", "epochs", digits=1))
            said.append(self._against_none("speed", norm, _seconds, goal + ", {} against none", "seconds", digits=1))
        return said

    def batch_size(self) -> list[Statement | None]:
        """Name the batch size that validation chooses for each norm, and compare BN with none at the others."""
        if len(self.study.batch_sizes) < 2:
            return []
        chosen = [self._best_size(norm) for norm in self.study.norms]
        others = [size for size in sorted(self.study.batch_sizes) if size != self.size]
        return chosen + [self._quality_of("batch", size, self.test, "batch_size") for size in others]

    def regularizers(self) -> list[Statement | None]:
        """Compare BN alone with each regularizer alone, and BN with and without it."""
        said: list[Statement | None] = []
        batch, test, what = ("batch", self.plain, self.size), metric(self.test), f"test {self.main}"
        for name in self.study.regularizers:
            if name == self.plain:
                continue
            alone, both = ("none", name, self.size), ("batch", name, self.size)
            said.append(self._compare("regularizer", batch, alone, test, f"Batch normalization against {name}", what))
            label = f"Adding {name} to batch normalization"
            said.append(self._compare("regularizer", both, batch, test, label, what))
        return said

    def overfitting(self) -> list[Statement | None]:
        """Compare the gap between train and test metric: a size, no merit, as underfitting makes it small too."""
        gap, what = generalization_gap(self.study.main_metric), f"training minus test {self.main}"
        return [
            self._against_none("overfitting", norm, gap, "Generalization gap of {} against none", what, better=None)
            for norm in self.norms
        ]

    def gradients(self) -> list[Statement | None]:
        """Compare how the gradient's size changes from the first layer to the last, at the start of training."""
        label = "Gradient norm of the first layer over the last, first epoch, {} against none"
        return [
            self._against_none("gradients", norm, gradient_ratio, label, "ratio", better=None) for norm in self.norms
        ]

    def cost(self) -> list[Statement | None]:
        """Compare what a training step costs in time."""
        label = "A training step with {} against none"
        return [self._against_none("cost", norm, _milliseconds, label, "milliseconds", digits=1) for norm in self.norms]

    def limits(self) -> list[Statement | None]:
        """Say what the numbers cannot carry."""
        said = [self._caution(text) for text in (*self._few_updates(), *self._few_seeds(), *self._many_comparisons())]
        if self.study.data.note:
            said.insert(0, Statement(topic="data", verdict="info", text=self.study.data.note))
        diverged = [run.name for run in self.runs if run.status == "diverged"]
        if diverged:
            names = ", ".join(diverged)
            text = f"The loss stopped being a number in {names}; the epochs before that were judged, if any."
            said.append(Statement(topic="caution", verdict="worse", text=text))
        text = (
            "All arms share one learning rate and number of epochs; an arm that needs others is not at its best here."
        )
        if len(self.study.batch_sizes) > 1:
            steps = ", ".join(f"{self._steps(size)} at {size}" for size in sorted(self.study.batch_sizes))
            text += f" A larger batch means fewer steps in as many epochs: {steps}."
        return [*said, self._caution(text)]

    def _few_updates(self) -> list[str]:
        if "batch" not in self.study.norms:
            return []
        left = {size: _KEPT_PER_UPDATE ** self._steps(size) for size in sorted(self.study.batch_sizes)}
        stale = [f"{share:.0%} at batch size {size}" for size, share in left.items() if share > 0.01]
        if not stale:
            return []
        return [
            f"Batch normalization's running statistics still hold part of their initial values after so few steps "
            f"({', '.join(stale)}), which costs it in evaluation."
        ]

    def _few_seeds(self) -> list[str]:
        seeds = len(self.study.seeds)
        if seeds > 2:
            return []
        return [f"{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few for an interval that means much."]

    def _many_comparisons(self) -> list[str]:
        compared = sum(1 for arm in self.summary.values() if arm.versus_none)
        if compared < 6:
            return []
        return [
            f"{compared} arms are compared with no normalization, each at 95 %: of twenty comparisons without any true "
            "difference one is expected to look like one."
        ]

    def _steps(self, size: int) -> int:
        return self.study.data.images["train"] // size * self.study.epochs

    def _quality_of(self, norm: str, size: int, name: str, topic: Topic) -> Statement | None:
        label = f"{_capital(NAMES[norm])} against none at batch size {size}"
        ours, none = (norm, self.plain, size), ("none", self.plain, size)
        short = name.removeprefix("test_")
        return self._compare(topic, ours, none, metric(name), label, f"test {METRICS.get(short, short)}")

    def _best_size(self, norm: str) -> Statement | None:
        name = f"val_{self.study.main_metric}"
        arms = {size: arm for (n, r, size), arm in self.summary.items() if (n, r) == (norm, self.plain)}
        known = {size: mean for size, arm in arms.items() if (mean := arm.metrics[name].mean) is not None}
        if len(known) < 2:
            return None
        best = max(known, key=lambda size: known[size])
        text = (
            f"With {NAMES[norm]}, validation chooses batch size {best} of {', '.join(map(str, sorted(known)))}; "
            f"test {self.main} there is {arms[best].metrics[self.test].text(3)}."
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
        better: str | None = "smaller",
        digits: int = 3,
    ) -> Statement | None:
        """Compare a norm with none at the base batch size; "{}" in the label is the norm's name."""
        ours, none = (norm, self.plain, self.size), ("none", self.plain, self.size)
        label = _capital(label.format(NAMES[norm]))
        return self._compare(topic, ours, none, quantity, label, what, better=better, digits=digits)

    def _compare(
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
    ) -> Statement | None:
        """Say "LABEL: WHAT a against b, difference …: verdict"; nothing where either arm was not trained.

        Where neither "larger" nor "smaller" is better, the sentence says which it is, and the verdict is "info".
        """
        both = pairs(self.arms.get(ours, {}), self.arms.get(theirs, {}), quantity)
        if not both:
            return None
        difference = estimate(left - right for left, right in both)
        judged = verdict(difference, larger_is_better=better != "smaller")
        said: str = judged
        if better is None and judged != "not distinguishable":
            said, judged = ("larger" if judged == "better" else "smaller"), "info"
        means = [estimate(side).mean or 0.0 for side in zip(*both, strict=True)]
        left, right = (f"{mean:.{digits}f}".replace("-", "−") for mean in means)
        text = f"{label}: {what} {left} against {right}, difference {difference.text(digits, signed=True)} "
        return Statement(
            topic=topic, verdict=judged, text=f"{text}{_seeds(difference)}: {said}.", difference=difference
        )

    def _caution(self, text: str) -> Statement:
        return Statement(topic="caution", verdict="info", text=text)


def _seeds(difference: Estimate) -> str:
    if difference.n == 1:
        return "in one seed, which gives no interval"
    return f"over {difference.n} paired seeds" + ("" if difference.low is not None else ", the same in all")


def _epochs(run: Run) -> float | None:
    return run.epochs_to_target


def _seconds(run: Run) -> float | None:
    return run.seconds_to_target


def _milliseconds(run: Run) -> float:
    return run.seconds_per_step * 1e3


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
