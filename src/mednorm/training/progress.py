"""A run's place in a Rich progress display."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_display(**options: Any) -> Progress:
    """Make a display whose rows are a study (in runs) and the run at hand (in steps)."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        **options,
    )


@contextmanager
def batch_count(text: str, console: Console) -> Iterator[Callable[[int], None]]:
    """Show how many batches were looked at, where how many there will be is not known; yield what to tell it by."""
    columns = TextColumn("{task.description}"), TextColumn("{task.completed} batches"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        row = display.add_task(text, total=None)
        yield lambda done: display.update(row, completed=done)


class RunProgress(pl.Callback):
    """Show the steps of one run, and its last validation metric, in a row of a display."""

    def __init__(self, display: Progress, name: str, main_metric: str) -> None:
        self._display, self._metric = display, main_metric
        self._row = display.add_task(f"  {name}", total=None, note="")

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Learn how many steps there are, and how many a resumed run has behind it."""
        assert trainer.max_epochs is not None
        total = int(trainer.max_epochs * trainer.num_training_batches)
        self._display.update(self._row, total=total, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Move on by one step."""
        self._display.advance(self._row)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Show the validation metric."""
        value = trainer.callback_metrics.get(f"val_{self._metric}")
        self._display.update(self._row, note="" if value is None else f"val {self._metric} {float(value):.3f}")

    def remove(self) -> None:
        """Take the row away."""
        self._display.remove_task(self._row)
