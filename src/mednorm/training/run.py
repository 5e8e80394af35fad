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

from mednorm.errors import ConfigError, MissingExtraError
from mednorm.files import write_atomically
from mednorm.results import Epoch, Run
from mednorm.tasks import Prepared, Task
from mednorm.tasks.networks import fit_input_scaling
from mednorm.training.batches import evaluation_loader, training_loader
from mednorm.training.disk import AtomicCheckpoints, exclusive, load_weights, open_run
from mednorm.training.evaluation import evaluate, samples
from mednorm.training.history import History
from mednorm.training.module import TrainingModule
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
        ConfigError: a device that is not there, or a batch size above the number of training images.
        MissingExtraError: TensorBoard was asked for and is not installed.

    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected one that this machine has, got 'cuda'. Choose auto or cpu.")
    check_batch_size(settings, prepared)
    with exclusive(folder):
        return open_run(settings, folder) or _train(settings, task, prepared, folder, callbacks)


def check_batch_size(settings: RunSettings, prepared: Prepared) -> None:
    """Pass if there are images enough for one batch.

    Raises:
        ConfigError: there are not.

    """
    images = len(prepared.arrays["train"].names)
    if settings.batch_size > images:
        raise ConfigError(
            f"batch size: expected at most {images}, the number of training images, got {settings.batch_size}."
        )


def _train(settings: RunSettings, task: Task, prepared: Prepared, folder: Path, callbacks: Sequence[Callback]) -> Run:
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(settings.seed)
        network = task.network_for(prepared.shape, settings.norm, settings.dropout_rate)
        fit_input_scaling(network, prepared.arrays["train"].images)
        history = History(folder / "metrics.csv")
        _fit(settings, task, prepared, network, folder, [history, *callbacks])
        best_epoch = load_weights(network, folder / "best.ckpt")
        metrics: dict[str, float | None] = {}
        for split, arrays in prepared.arrays.items():
            scores = evaluate(network, arrays, task.judge(prepared.images.classes))
            metrics |= {f"{split}_{name}": value for name, value in scores.items()}
        write_atomically(folder / "samples.npz", samples(network, task, prepared.arrays["test"]))
    run = _record(settings, history.epochs, best_epoch, metrics)
    write_atomically(folder / "run.json", run.model_dump_json(indent=1))
    return run


def _fit(
    settings: RunSettings,
    task: Task,
    prepared: Prepared,
    network: torch.nn.Module,
    folder: Path,
    callbacks: list[Callback],
) -> None:
    """Let Lightning train; it goes on from last.ckpt where there is one."""
    classes, last = prepared.images.classes, folder / "last.ckpt"
    # After the epoch's record is closed, so that the record is in them. Two callbacks: save_last=True would write
    # last.ckpt only in epochs that are the best so far, and a killed run would go on from there. Best comes first, so
    # that last knows of it.
    when: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    checkpoints = [
        _Checkpoints(folder, "best", monitor=f"val_{task.main_metric}", mode="max", **when),
        _Checkpoints(folder, "last", **when),
    ]
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
    with _interruptible():
        trainer.fit(
            TrainingModule(network, task.loss(), task.judge(classes), task.judge(classes), settings),
            training_loader(prepared.arrays["train"], settings.batch_size, settings.seed),
            evaluation_loader(prepared.arrays["val"]),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )


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


def _record(settings: RunSettings, epochs: list[Epoch], best_epoch: int, metrics: Mapping[str, float | None]) -> Run:
    peaks = [epoch.peak_memory_mb for epoch in epochs if epoch.peak_memory_mb is not None]
    return Run(
        name=settings.name,
        norm=settings.norm,
        regularizer=settings.regularizer,
        batch_size=settings.batch_size,
        seed=settings.seed,
        status="diverged" if epochs[-1].train_loss is None else "finished",
        best_epoch=best_epoch,
        epochs_to_target=None,
        seconds_to_target=None,
        metrics=dict(metrics),
        epochs=epochs,
        seconds=sum(epoch.seconds for epoch in epochs),
        seconds_per_step=statistics.median(epoch.seconds_per_step for epoch in epochs),
        peak_memory_mb=max(peaks, default=None),
        samples="samples.npz",
    )


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
