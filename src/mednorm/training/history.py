"""The callback that watches a run: gradients by depth, layer statistics, time, memory, one record an epoch."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mednorm.files import write_atomically
from mednorm.memory import PeakMemory
from mednorm.moments import Moments
from mednorm.results import Epoch, LayerSummary
from mednorm.training.disk import flat, metrics_csv
from mednorm.training.module import TrainingModule

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


class History(pl.Callback):
    """Record each epoch; the records are part of the checkpoint, so a resumed run has them all.

    After every epoch they are written to `table` (CSV) and handed to Lightning's logger, if there is one. Layers are
    the convolutions and dense layers, in the order in which the network calls them.
    """

    def __init__(self, table: Path) -> None:
        self.table = table
        self.epochs: list[Epoch] = []
        self.initial_gradients: dict[str, float | None] = {}
        self._layers: dict[str, LayerSummary] = {}
        self._gradients: dict[str, Tensor] = {}
        self._weights: dict[str, nn.Parameter] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._step_seconds: list[float] = []
        self._step_started = self._epoch_started = 0.0
        self._memory: PeakMemory | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the records as plain values."""
        return {"epochs": [epoch.model_dump() for epoch in self.epochs], "initial": self.initial_gradients}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the records back."""
        self.epochs = [Epoch.model_validate(epoch) for epoch in state_dict["epochs"]]
        self.initial_gradients = state_dict["initial"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Train no further where a run that goes on had ended because its loss was no number."""
        trainer.should_stop = bool(self.epochs) and self.epochs[-1].train_loss is None

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock."""
        self._epoch_started = time.perf_counter()
        self._step_seconds, self._gradients = [], {}
        self._memory = self._memory or PeakMemory(module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_index: int
    ) -> None:
        """Watch every layer on the first batch of the epoch."""
        if batch_index == 0:
            self._layers, self._weights = {}, {}
            for name, layer in module.named_modules():
                if isinstance(layer, WEIGHTED):
                    self._hooks.append(layer.register_forward_hook(self._watcher(name.removeprefix("network.net."))))
        self._step_started = time.perf_counter()

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Add up each weight's gradient norm."""
        gradients = {name: weight.grad for name, weight in self._weights.items() if weight.grad is not None}
        norms = torch._foreach_norm(list(gradients.values()))
        if trainer.global_step == 0:
            self.initial_gradients = {n: _number(float(norm)) for n, norm in zip(gradients, norms, strict=True)}
        for name, norm in zip(gradients, norms, strict=True):
            self._gradients[name] = self._gradients[name] + norm if name in self._gradients else norm

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Stop the clock of the step; the watched first one does not count."""
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        if self._hooks:
            self._unhook()
        if batch_index > 0 or trainer.num_training_batches == 1:
            self._step_seconds.append(time.perf_counter() - self._step_started)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._unhook()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the epoch's record; validation has run. A loss that is no number ends the run."""
        assert isinstance(module, TrainingModule)
        assert self._memory is not None
        steps = len(self._step_seconds) + (0 if trainer.num_training_batches == 1 else 1)
        epoch = Epoch(
            epoch=trainer.current_epoch + 1,
            train_loss=_number(module.mean("train_loss")),
            val_loss=_number(module.mean("val_loss")),
            penalty=_number(module.mean("penalty")),
            train_metrics=module.metrics("train"),
            val_metrics=module.metrics("val") if trainer.num_val_batches else {},
            gradient_norms={name: _number(float(total) / steps) for name, total in self._gradients.items()},
            layers=self._layers,
            seconds=time.perf_counter() - self._epoch_started,
            seconds_per_step=statistics.median(self._step_seconds),
            peak_memory_mb=self._memory.read(),
        )
        self.epochs.append(epoch)
        write_atomically(self.table, metrics_csv(self.epochs))
        if trainer.logger is not None:
            trainer.logger.log_metrics(flat(epoch), step=epoch.epoch)
        if epoch.train_loss is None:
            trainer.should_stop = True

    def _watcher(self, name: str) -> Any:
        def watch(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            moments = Moments.of(output.detach())
            self._layers[name] = LayerSummary(
                mean=_number(moments.mean.mean().item()),
                variance=_number(moments.variance.mean().item()),
                range=_number(moments.range.mean().item()),
            )
            assert isinstance(layer.weight, nn.Parameter)
            self._weights[name] = layer.weight

        return watch

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
