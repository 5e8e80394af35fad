"""Sentences on what the background article claims, beyond one batch size, one amount of data and one depth."""

from __future__ import annotations

from mednorm.results import Statement
from mednorm.study.speaker import NAMES, Speaker, capital
from mednorm.study.summary import generalization_gap, gradient_decades, initial_gradient_decades, metric

DECADES = "Weakest to strongest layer's gradient norm, {}, {{}} against none"
WHEN = (("first step", initial_gradient_decades), ("first epoch", gradient_decades))


def modes(speaker: Speaker) -> list[Statement | None]:
    """Compare evaluation with running and with batch statistics, for batch normalization at every batch size."""
    said: list[Statement | None] = []
    for size in sorted(speaker.study.batch_sizes):
        running = speaker.arms.get(speaker.arm("batch", batch_size=size), {})
        batch = {seed: trial.batch for seed, trial in running.items() if trial.batch is not None}
        label = f"Batch normalization trained at batch size {size}, running against batch statistics in evaluation"
        what, quantity = f"test {speaker.main}", metric(speaker.test)
        said.append(speaker.compare_trials("modes", running, batch, quantity, label, what, units=speaker.test))
    return said


def small_data(speaker: Speaker) -> list[Statement | None]:
    """Compare gap and quality of batch normalization and none where there is less to train on."""
    gap, said = generalization_gap(speaker.study.main_metric), []
    for share in sorted(speaker.study.train_shares):
        if share == 1:
            continue
        part = f"{share:.0%} of the training {'patients' if speaker.study.data.patients else 'images'}"
        label = f"With {part}, generalization gap of {{}} against none"
        what = f"training minus test {speaker.main}"
        said.append(speaker.against_none("overfitting", "batch", gap, label, what, better=None, train_share=share))
        ours, none = (speaker.arm(norm, train_share=share) for norm in ("batch", "none"))
        label = f"With {part}, batch normalization against none"
        said.append(speaker.compare_metric("overfitting", ours, none, speaker.test, label))
    return said


def depth(speaker: Speaker) -> list[Statement | None]:
    """Compare batch normalization and none in the deeper network: gradients at the start and later, and quality."""
    said: list[Statement | None] = []
    for network in speaker.study.networks[1:]:
        for when, decades in WHEN:
            label = f"In {network}, {DECADES[0].lower()}{DECADES[1:].format(when)}"
            said.append(
                speaker.against_none(
                    "gradients", "batch", decades, label, "orders of magnitude", better=None, network=network
                )
            )
        ours, none = (speaker.arm(norm, network=network) for norm in ("batch", "none"))
        label = f"In {network}, batch normalization against none"
        said.append(speaker.compare_metric("gradients", ours, none, speaker.test, label))
    return said


def sites(speaker: Speaker) -> list[Statement | None]:
    """Compare each norm with none at each hospital or scanner of the test images."""
    said: list[Statement | None] = []
    names = sorted({site for arm in speaker.summary.values() for site in arm.sites})
    if len(names) < 2:
        return said
    for norm in speaker.norms:
        for site in names:
            ours, none = (
                {seed: trial.sites[site] for seed, trial in speaker.arms.get(arm, {}).items() if site in trial.sites}
                for arm in (speaker.arm(norm), speaker.base)
            )
            label = capital(f"at site {site}, {NAMES[norm]} against none")
            what, quantity = f"test {speaker.main}", metric(speaker.test)
            said.append(speaker.compare_trials("sites", ours, none, quantity, label, what, units=speaker.test))
    return said
