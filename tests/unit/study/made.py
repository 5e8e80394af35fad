"""Runs and studies made by hand, with numbers chosen by the test."""

from pathlib import Path

from mednorm.results import DataSummary, Epoch, Run, Study, Target
from mednorm.study.arms import Arm, trials
from mednorm.study.settings import StudySettings
from mednorm.study.statements import statements
from mednorm.study.summary import choose_target, summarize, with_target


def settings(**changed):
    """A study of three norms, two regularizers and two batch sizes."""
    values = {
        "task": "lung", "network": "article_cnn", "epochs": 2, "norms": ["none", "batch", "group"],
        "regularizers": ["none", "l2"], "batch_sizes": [2, 8], "base_batch_size": 8, "seeds": [0, 1],
    }  # fmt: skip
    return StudySettings.model_validate(values | changed)


def epoch(number, value=None, *, seconds=2.0, gradients=None):
    """One epoch that reached a validation AUC."""
    return Epoch(
        epoch=number,
        train_loss=0.5,
        val_loss=0.5,
        penalty=None,
        train_metrics={"auc": value},
        val_metrics={"auc": value},
        gradient_norms={"first": 0.5, "last": 2.0} if gradients is None else gradients,
        layers={},
        seconds=seconds,
        seconds_per_step=0.1,
        peak_memory_mb=100.0,
    )


def run(norm="none", seed=0, *, regularizer="none", size=8, test=0.9, train=None, vals=(0.7, 0.8), **changed):
    """One run; `vals` is the validation AUC of each epoch."""
    best = max((value for value in vals if value is not None), default=None)
    values = {
        "name": f"{norm}-{regularizer}-b{size}-s{seed}",
        "norm": norm,
        "regularizer": regularizer,
        "batch_size": size,
        "seed": seed,
        "status": "finished",
        "best_epoch": 1,
        "epochs_to_target": None,
        "seconds_to_target": None,
        "metrics": {"train_auc": train if train is not None else test, "val_auc": best, "test_auc": test},
        "epochs": [epoch(number, value) for number, value in enumerate(vals, 1)],
        "seconds": 4.0,
        "seconds_per_step": 0.1,
        "peak_memory_mb": 100.0,
    }
    return Run.model_validate(values | changed)


def arm(norm, tests, **changed):
    """One run a seed, with these test AUCs."""
    return [run(norm, seed, test=value, **changed) for seed, value in enumerate(tests)]


def study_of(runs, **changed):
    """The study such runs are of; the base batch size is the first run's."""
    values = {
        "task": "lung", "preset": "default", "main_metric": "auc", "network": "net", "parameters": 1,
        "norms": list(dict.fromkeys(run.norm for run in runs)),
        "regularizers": list(dict.fromkeys(run.regularizer for run in runs)),
        "batch_sizes": list(dict.fromkeys(run.batch_size for run in runs)),
        "base_batch_size": runs[0].batch_size, "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "grid": "star", "epochs": 2, "optimizer": "adam", "learning_rate": 0.001,
        "networks": list(dict.fromkeys(run.network for run in runs)),
        "train_shares": list(dict.fromkeys(run.train_share for run in runs)),
        "target": choose_target(runs, "auc", Arm.of(runs[0]), None),
        "data": DataSummary(
            source="made", kind="classification", classes=["a", "b"], shape=[1, 8, 8],
            images={"train": 800, "val": 100, "test": 100}, patients={}, sites=[],
        ),
        "settings": {},
    }  # fmt: skip
    return Study.model_validate(values | changed)


def arms_of(runs):
    """The runs by arm and seed; there are no files of what they predicted."""
    return trials(runs, Path("nowhere"), "image", "")


def said(runs, topic=None, *, target=None, **changed):
    """What a study of these runs says, on one topic."""
    study = study_of(runs, **changed)
    if target is not None:
        study = study.model_copy(update={"target": Target(metric="val_auc", value=target, source="given")})
    timed = [with_target(run, "auc", study.target.value) for run in runs]
    arms = arms_of(timed)
    everything = statements(study, arms, summarize(arms, "auc"), study.headline_metrics(timed[0].metrics))
    return [statement for statement in everything if topic in (None, statement.topic)]
