"""One run, from settings to a record, whatever interrupts it on the way."""

from __future__ import annotations

import logging
import signal
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from mednorm.data import Arrays
from mednorm.errors import ConfigError, MissingExtraError
from mednorm.files import write_atomically
from mednorm.layers import set_total_steps
from mednorm.results import Run
from mednorm.tasks import Prepared, Task
from mednorm.tasks.bootstrap import interval
from mednorm.tasks.judge import Metrics
from mednorm.tasks.networks import check_sites
from mednorm.tasks.outcomes import Outcomes
from mednorm.tasks.scaling import fit_input_scaling
from mednorm.training.batches import Loader, evaluation_loader, training_loader
from mednorm.training.disk import BATCH_OUTCOMES, OUTCOMES, AtomicCheckpoints, exclusive, load_weights, open_run
from mednorm.training.evaluation import evaluate, judging_device, outcomes_in_both_modes, samples, shared
from mednorm.training.history import History
from mednorm.training.module import TrainingModule
from mednorm.training.patches import patch_loader
from mednorm.training.settings import RunSettings


def train(
    settings: RunSettings, task: Task, prepared: Prepared, folder: Path, callbacks: Sequence[Callback] = ()
) -> Run:
    """Train one network, or go on where a killed run stopped, or return a finished run's record as it is.

    The epoch with the best validation metric is kept; train, validation and test images are judged with it once, at
    the end, in evaluation mode. On the CPU, with the same number of threads, the figures do not depend on whether the
    run was interrupted.

    Args:
        settings: what to train.
        task: network, loss and metrics.
        prepared: the images.
        folder: the run's own folder.
        callbacks: further Lightning callbacks, such as a progress display.

    Raises:
        RunError: the folder holds a run with other settings, or a damaged one.
        ConfigError: a device that is not there, a batch size above the number of training images, or sites in the
            settings that are not those of the images.
        MissingExtraError: TensorBoard was asked for and is not installed.

    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected one that this machine has, got 'cuda'. Choose auto or cpu.")
    check_batch_size(settings, prepared)
    _check_sites(settings, prepared)
    with exclusive(folder):
        return open_run(settings, folder) or _train(settings, task, prepared, folder, callbacks)


def check_batch_size(settings: RunSettings, prepared: Prepared) -> None:
    """Pass if there are images enough for one batch.

    Raises:
        ConfigError: there are not.

    """
    images = len(next(fold.rows["train"] for fold in prepared.folds if fold.name == settings.fold))
    if settings.patch_size is None and settings.batch_size > images:
        raise ConfigError(
            f"batch size: expected at most {images}, the number of training images, got {settings.batch_size}."
        )


def _check_sites(settings: RunSettings, prepared: Prepared) -> None:
    """Pass if the run, where its norm has a row for each site, will say on disk which row is whose."""
    found = list(prepared.shape.sites)
    check_sites(settings.norm, found)
    if settings.norm == "domain" and settings.sites != found:
        raise ConfigError(f"sites: expected those of the images, {found}, got {settings.sites}.")


def _train(settings: RunSettings, task: Task, prepared: Prepared, folder: Path, callbacks: Sequence[Callback]) -> Run:
    classes, parts = prepared.images.classes, dict(prepared.splits(settings.fold))
    parts["train"], steps = _training_images(settings, parts["train"])
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(settings.seed)
        shape = prepared.shape_for(settings.patch_size)
        network = task.network_for(
            shape, settings.network, settings.norm, settings.dropout_rate, settings.placement, settings.scaling
        )
        fit_input_scaling(network, parts["train"].images)
        set_total_steps(network, settings.epochs * steps)
        history = History(folder / "metrics.csv")
        _fit(settings, task, classes, parts, steps, network, folder, [history, *callbacks])
        network.to(judging_device(settings.device))  # Lightning leaves it on the CPU
        best_epoch = load_weights(network, folder / "best.ckpt")
        metrics: dict[str, float | None] = {}
        for split in [split for split in parts if split != "test"]:
            scores = evaluate(network, parts[split], task.judge(classes, parts[split]), settings.patch_size)
            metrics |= {f"{split}_{name}": value for name, value in scores.items()}
        running, batch = outcomes_in_both_modes(network, task, classes, parts["test"], settings)
        write_atomically(folder / "samples.npz", samples(network, task, parts["test"], settings.patch_size))
    write_atomically(folder / OUTCOMES, running.to_csv())
    if batch is not None:
        write_atomically(folder / BATCH_OUTCOMES, batch.to_csv())
    run = _record(settings, history, best_epoch, metrics, task, running, batch, prepared.resampled)
    write_atomically(folder / "run.json", run.model_dump_json(indent=1))
    return run


def _training_images(settings: RunSettings, train: Arrays) -> tuple[Arrays, int]:
    """Choose the share of the patients (or images) that is trained on, and the steps of an epoch.

    Steps are those of the whole training split whatever the share: less data then means as much training.
    """
    each = 1 if settings.patch_size is None else settings.patches_per_volume
    steps = max(1, len(train.names) * each // settings.batch_size)
    return shared(settings, train), steps


def _fit(
    settings: RunSettings,
    task: Task,
    classes: tuple[str, ...],
    parts: Mapping[str, Arrays],
    steps: int,
    network: torch.nn.Module,
    folder: Path,
    callbacks: list[Callback],
) -> None:
    """Let Lightning train; it goes on from last.ckpt where there is one."""
    last, val = folder / "last.ckpt", parts.get("val")
    # After the epoch's record is closed, so that the record is in them. Two callbacks: save_last=True would write
    # last.ckpt only in epochs that are the best so far, and a killed run would go on from there. Best comes first, so
    # that last knows of it. Without validation images the best epoch is the last.
    when: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    # The mode stands there without a metric, too: Lightning tells the states of the two apart by what they are told.
    best: dict[str, Any] = {"mode": "max"} | ({} if val is None else {"monitor": f"val_{task.main_metric}"})
    checkpoints = [_Checkpoints(folder, "best", **best, **when), _Checkpoints(folder, "last", **when)]
    trainer = pl.Trainer(
        max_epochs=settings.epochs,
        accelerator="gpu" if settings.device != "cpu" and torch.cuda.is_available() else "cpu",
        devices=1,
        callbacks=[*callbacks, *checkpoints],
        plugins=[AtomicCheckpoints()],
        logger=_tensorboard(folder) if settings.tensorboard else False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    judges = (task.judge(classes), task.judge(classes, val))
    with _interruptible():
        trainer.fit(
            TrainingModule(network, task.loss(), *judges, settings, parts["train"].sites, val.sites if val else ()),
            _loader(settings, parts["train"], steps, network),
            None if val is None else evaluation_loader(val),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )


def _loader(settings: RunSettings, train: Arrays, steps: int, network: torch.nn.Module) -> Loader:
    if settings.patch_size is None:
        return training_loader(train, settings.batch_size, settings.seed, steps)
    scaling = network.get_submodule("scaling")
    return patch_loader(train, scaling, settings.patch_size, settings.batch_size, settings.seed, steps)


class _Checkpoints(ModelCheckpoint):
    """Lightning's, which forgets its best epoch when the folder was moved between two parts of a run; this does not."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state back, its files looked for where the folder is now."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in names}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


def _record(
    settings: RunSettings,
    history: History,
    best_epoch: int,
    metrics: Mapping[str, float | None],
    task: Task,
    running: Outcomes,
    batch: Outcomes | None,
    resampled: str,
) -> Run:
    epochs = history.epochs
    peaks = [epoch.peak_memory_mb for epoch in epochs if epoch.peak_memory_mb is not None]
    draws = running.replicates(task.unit) if resampled else {}
    sites = {site: rows.metrics(task.unit) for site, rows in running.by_site().items()}
    return Run(
        name=settings.name,
        norm=settings.norm,
        regularizer=settings.regularizer,
        batch_size=settings.batch_size,
        network=settings.network,
        train_share=settings.train_share,
        fold=settings.fold,
        seed=settings.seed,
        status="diverged" if epochs[-1].train_loss is None else "finished",
        best_epoch=best_epoch,
        epochs_to_target=None,
        seconds_to_target=None,
        metrics={**metrics, **_as_test(running.metrics(task.unit))},
        intervals={f"test_{name}": interval(values) for name, values in draws.items()},
        batch_metrics={} if batch is None else _as_test(batch.metrics(task.unit)),
        sites={site: _as_test(scores) for site, scores in sites.items()},
        initial_gradient_norms=history.initial_gradients,
        epochs=epochs,
        seconds=sum(epoch.seconds for epoch in epochs),
        seconds_per_step=statistics.median(epoch.seconds_per_step for epoch in epochs),
        peak_memory_mb=max(peaks, default=None),
        samples="samples.npz",
        outcomes=OUTCOMES,
    )


def _as_test(scores: Metrics) -> Metrics:
    return {f"test_{name}": value for name, value in scores.items()}


def _tensorboard(folder: Path) -> TensorBoardLogger:
    try:
        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise MissingExtraError('tensorboard: not installed. Run: pip install "mednorm[tensorboard]"') from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Give Ctrl-C back as it came: Lightning makes it an exit with status 1, and later ones without effect."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's hints about hardware, workers and existing folders out of the way; errors still show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
