"""What the numbers show, in plain sentences, each with its interval; also where normalization did not help."""

from __future__ import annotations

from collections.abc import Sequence

from mednorm.results import ArmSummary, Run, Statement, Study
from mednorm.study.arms import Arm, Trials
from mednorm.study.claims import DECADES, WHEN, depth, modes, sites, small_data
from mednorm.study.speaker import FAMILY, NAMES, REGULARIZERS, Speaker, capital, number
from mednorm.study.summary import generalization_gap

# PyTorch's default, which batch normalization has here: after k updates 0.9^k of the initial statistics is left.
_KEPT_PER_UPDATE = 0.9


def statements(study: Study, arms: Trials, summary: Sequence[ArmSummary], metrics: Sequence[str]) -> list[Statement]:
    """Say what a study shows: quality, speed, batch size, regularizers, overfitting, gradients, sites, cost, limits.

    Args:
        study: what was asked for.
        arms: every arm with its seeds, with their times to the target.
        summary: the same, summarized.
        metrics: the test metrics to speak of, the main one first.

    """
    speaker = Speaker(study, arms, summary, metrics)
    said = [
        *_quality(speaker),
        *_speed(speaker),
        *_batch_size(speaker),
        *_family(speaker),
        *modes(speaker),
        *_regularizers(speaker),
        *_overfitting(speaker),
        *small_data(speaker),
        *_gradients(speaker),
        *depth(speaker),
        *sites(speaker),
        *_cost(speaker),
        *_limits(speaker),
    ]
    return [statement for statement in said if statement is not None]


def _quality(speaker: Speaker) -> list[Statement | None]:
    """Compare each norm with none on the test images, at the base batch size, by every metric."""
    return [
        speaker.compare_metric(
            "quality",
            speaker.arm(norm),
            speaker.base,
            name,
            f"{capital(NAMES[norm])} against none at batch size {speaker.base.batch_size}",
        )
        for norm in speaker.norms
        for name in speaker.metrics
    ]


def _speed(speaker: Speaker) -> list[Statement | None]:
    """Compare epochs and training seconds to the target."""
    target = speaker.study.target.value
    if target is None:
        return []
    goal = f"To reach validation {speaker.main} {number(target, 3)}"
    seeds = len(speaker.study.seeds)
    said: list[Statement | None] = []
    for norm in speaker.norms:
        if speaker.arm(norm) not in speaker.summary:
            continue  # it could not be trained
        arms = [speaker.summary.get(arm) for arm in (speaker.arm(norm), speaker.base)]
        reached = [arm.epochs_to_target.n for arm in arms if arm is not None]
        if min(reached) < seeds:
            text = f"{goal}: {NAMES[norm]} did in {reached[0]} of {seeds} seeds" + (
                f", no normalization in {reached[1]}. Epochs cannot be compared fairly." if reached[1:] else "."
            )
            said.append(Statement(topic="speed", verdict="info", text=text))
            continue
        said.append(speaker.against_none("speed", norm, _epochs, goal + ", {} against none", "epochs", digits=1))
        said.append(speaker.against_none("speed", norm, _seconds, goal + ", {} against none", "seconds", digits=1))
    return said


def _batch_size(speaker: Speaker) -> list[Statement | None]:
    """Name the batch size that validation chooses for each norm, and compare BN at the others with none, or with GN."""
    sizes = sorted(speaker.study.batch_sizes)
    if len(sizes) < 2:
        return []
    said = [_best_size(speaker, norm) for norm in speaker.study.norms]
    for size in sizes:
        ours = speaker.arm("batch", batch_size=size)
        for other in ("none", "group"):
            if size == speaker.base.batch_size and other == "none":
                continue  # said under quality
            label = f"Batch normalization against {'none' if other == 'none' else NAMES[other]} at batch size {size}"
            theirs = speaker.arm(other, batch_size=size)
            said.append(speaker.compare_metric("batch_size", ours, theirs, speaker.test, label))
    return said + [
        speaker.compare_metric(
            "batch_size",
            speaker.arm(norm, batch_size=size),
            speaker.arm(norm),
            speaker.test,
            f"{capital(NAMES[norm])} at batch size {size} against {speaker.base.batch_size}",
        )
        for norm in ("batch", "group")
        for size in sizes
    ]


def _family(speaker: Speaker) -> list[Statement | None]:
    """Compare the relatives of batch normalization with it, at every batch size that both were trained at."""
    sizes = sorted(speaker.study.batch_sizes)
    return [
        speaker.compare_metric(
            "batch_size" if len(sizes) > 1 else "quality",
            speaker.arm(norm, batch_size=size),
            speaker.arm("batch", batch_size=size),
            speaker.test,
            f"{capital(NAMES[norm])} against batch normalization at batch size {size}",
        )
        for norm in speaker.norms
        if norm in FAMILY
        for size in sizes
    ]


def _best_size(speaker: Speaker, norm: str) -> Statement | None:
    name = f"val_{speaker.study.main_metric}"
    arms = {
        arm.batch_size: s for arm, s in speaker.summary.items() if arm._replace(batch_size=0) == _sized(speaker, norm)
    }
    known = {size: m for size, arm in arms.items() if name in arm.metrics and (m := arm.metrics[name].mean) is not None}
    if len(known) < 2:
        return None
    best = max(known, key=lambda size: known[size])
    text = (
        f"With {NAMES[norm]}, validation chooses batch size {best} of {', '.join(map(str, sorted(known)))}; "
        f"test {speaker.main} there is {arms[best].metrics[speaker.test].text(3)}."
    )
    return Statement(topic="batch_size", verdict="info", text=text)


def _sized(speaker: Speaker, norm: str) -> Arm:
    return speaker.arm(norm, batch_size=0)


def _regularizers(speaker: Speaker) -> list[Statement | None]:
    """Compare BN alone with each regularizer alone, and BN with and without it."""
    said: list[Statement | None] = []
    batch = speaker.arm("batch")
    for name in speaker.study.regularizers:
        words = "+".join(REGULARIZERS.get(part, part) for part in name.split("+"))
        alone, both = speaker.arm("none", regularizer=name), speaker.arm("batch", regularizer=name)
        if name == speaker.base.regularizer:
            continue
        label = f"Batch normalization against {words}"
        said.append(speaker.compare_metric("regularizer", batch, alone, speaker.test, label))
        label = f"Adding {words} to batch normalization"
        said.append(speaker.compare_metric("regularizer", both, batch, speaker.test, label))
    return said


def _overfitting(speaker: Speaker) -> list[Statement | None]:
    """Compare the gap between train and test metric: a size, no merit, as underfitting makes it small too."""
    gap, what = generalization_gap(speaker.study.main_metric), f"training minus test {speaker.main}"
    return [
        speaker.against_none("overfitting", norm, gap, "Generalization gap of {} against none", what, better=None)
        for norm in speaker.norms
    ]


def _gradients(speaker: Speaker) -> list[Statement | None]:
    """Compare how far apart the layers' gradients are, at the start and in the first epoch."""
    return [
        speaker.against_none("gradients", norm, decades, DECADES.format(when), "orders of magnitude", better=None)
        for when, decades in WHEN
        for norm in speaker.norms
    ]


def _cost(speaker: Speaker) -> list[Statement | None]:
    """Compare what a training step costs in time."""
    label = "A training step with {} against none"
    return [
        speaker.against_none("cost", norm, _milliseconds, label, "milliseconds", digits=1) for norm in speaker.norms
    ]


def _limits(speaker: Speaker) -> list[Statement | None]:
    """Say what the numbers cannot carry."""
    study = speaker.study
    said: list[Statement | None] = []
    if study.data.note:
        said.append(Statement(topic="data", verdict="info", text=study.data.note))
    said += [
        Statement(topic="data", verdict="info", text=f"Left out: {arm}: {why}") for arm, why in study.left_out.items()
    ]
    said += [speaker.caution(text) for text in (*_few_updates(speaker), *_few_seeds(speaker), *_many_arms(speaker))]
    trials = [trial for seeds in speaker.arms.values() for trial in seeds.values()]
    diverged = [name for trial in trials for name in trial.diverged]
    if diverged:
        text = (
            f"The loss stopped being a number in {', '.join(diverged)}. The best epoch before that is judged, where "
            "validation chose one; else its metrics are not defined."
        )
        said.append(Statement(topic="caution", verdict="worse", text=text))
    return [*said, speaker.caution(_shared(speaker))]


def _shared(speaker: Speaker) -> str:
    study = speaker.study
    growth = study.settings.get("scale_learning_rate", "none")
    rule = {"sqrt": "the square root of the batch size", "linear": "the batch size"}.get(str(growth))
    if rule is None:
        text = "All arms share one learning rate and number of epochs;"
    else:
        text = (
            f"The learning rate grows with {rule}, and is otherwise, like the number of epochs, the same in all arms;"
        )
    text += " an arm that needs others is not at its best here."
    if len(study.batch_sizes) > 1:
        steps = ", ".join(f"{_steps(speaker, size)} at {size}" for size in sorted(study.batch_sizes))
        text += f" A larger batch means fewer steps in as many epochs: {steps}."
    return text


def _few_updates(speaker: Speaker) -> list[str]:
    if "batch" not in speaker.study.norms:
        return []
    left = {size: _KEPT_PER_UPDATE ** _steps(speaker, size) for size in sorted(speaker.study.batch_sizes)}
    stale = [f"{share:.0%} at batch size {size}" for size, share in left.items() if share > 0.01]
    if not stale:
        return []
    return [
        f"Batch normalization's running statistics still hold part of their initial values after so few steps "
        f"({', '.join(stale)}), which costs it in evaluation."
    ]


def _few_seeds(speaker: Speaker) -> list[str]:
    seeds = len(speaker.study.seeds)
    if seeds > 2:
        return []
    return [f"{seeds} {'seed is' if seeds == 1 else 'seeds are'} too few for an interval over seeds that means much."]


def _many_arms(speaker: Speaker) -> list[str]:
    compared = sum(1 for arm in speaker.summary.values() if arm.versus_none)
    if compared < 6:
        return []
    return [
        f"{compared} arms are compared with no normalization, each at 95 %: of twenty comparisons without any true "
        "difference one is expected to look like one."
    ]


def _steps(speaker: Speaker, size: int) -> int:
    """Steps of a run, in the last epoch of which most can be seen."""
    study = speaker.study
    each = study.settings.get("patches_per_volume") if study.settings.get("patch_size") else 1
    images = study.data.images["train"] * (each if isinstance(each, int) else 1)
    return max(1, images // size) * study.epochs


def _epochs(run: Run) -> float | None:
    return run.epochs_to_target


def _seconds(run: Run) -> float | None:
    return run.seconds_to_target


def _milliseconds(run: Run) -> float:
    return run.seconds_per_step * 1e3
