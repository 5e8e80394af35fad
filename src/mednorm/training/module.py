"""The one LightningModule: every arm of every study is trained by it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.lean import lean_activations
from mednorm.tasks.judge import Judge, Metrics
from mednorm.training.inference import asks_for_sites, at_sites, logits_of
from mednorm.training.settings import RunSettings


class TrainingModule(pl.LightningModule):
    """Train a network with a loss, an optional L1/L2 penalty on its weights, and metrics on both splits.

    Args:
        network: input scaling and network; its output is logits (N, K, *).
        loss: of logits and targets.
        train_judge: metrics on training batches, as the network is while it trains; each image counts for itself.
        val_judge: metrics on validation images, in evaluation mode.
        settings: the run's settings.
        train_sites: the site of each training image, None where it is unknown; empty where no site is known.
        val_sites: of each validation image.

    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        train_judge: Judge,
        val_judge: Judge,
        settings: RunSettings,
        train_sites: Sequence[str | None] = (),
        val_sites: Sequence[str | None] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.judges = {"train": train_judge, "val": val_judge}
        self.settings = settings
        self.sites = {"train": train_sites, "val": val_sites}
        self.sums: dict[str, Tensor] = {}
        self._by_site = asks_for_sites(network)
        regularizers = settings.regularizer.split("+")
        self._l1 = settings.l1 if "l1" in regularizers else 0.0
        self._l2 = settings.l2 if "l2" in regularizers else 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K, *)."""
        logits: Tensor = self.network(images)
        return logits

    def on_train_epoch_start(self) -> None:
        """Forget the losses and metrics of the epoch before."""
        self.sums = {}
        for judge in self.judges.values():
            judge.reset()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Draw dropout from (seed, epoch), so that a resumed run draws what an uninterrupted one would.

        Not when the epoch starts: the loader's iterator, which takes a random number too, is made after that in an
        uninterrupted run, and before it where a run goes on.
        """
        if batch_index == 0:
            torch.manual_seed(self.settings.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: tuple[Tensor, ...], batch_index: int) -> dict[str, Tensor]:
        """Return loss plus penalty, and the logits; only the loss alone is recorded as loss."""
        images, targets, rows = batch
        # Patches come scaled, as their whole volume was.
        network = self.network if self.settings.patch_size is None else self.network.get_submodule("net")
        with at_sites(network, self._sites_of("train", rows)), self._leanly():
            logits: Tensor = network(images)
        loss = self._loss("train", logits, targets)
        penalty = self.penalty()
        if penalty is not None:
            self._add("penalty", penalty, 1)
            loss = loss + penalty
        return {"loss": loss, "logits": logits.detach()}

    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, ...], batch_index: int) -> None:
        """Judge the batch: after the callbacks, so that the clock of the step does not count it."""
        self.judges["train"].update(outputs["logits"], batch[1])

    def validation_step(self, batch: tuple[Tensor, ...], batch_index: int) -> None:
        """Add a batch to the validation loss and metrics."""
        images, targets, rows = batch
        logits = logits_of(self.network, images, self.settings.patch_size, sites=self._sites_of("val", rows))
        self._loss("val", logits, targets)
        self.judges["val"].update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, by which the best epoch is chosen."""
        if not self.trainer.sanity_checking:
            scores = self.metrics("val")
            self.log_dict({f"val_{name}": float("nan") if v is None else v for name, v in scores.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer; its own weight decay stays 0, because L2 is an arm's penalty."""
        parameters, rate = self.network.parameters(), self.settings.learning_rate
        match self.settings.optimizer:
            case "adam":
                return torch.optim.Adam(parameters, lr=rate)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=rate, weight_decay=0)
            case "sgd":
                return torch.optim.SGD(parameters, lr=rate, momentum=0.9)

    def penalty(self) -> Tensor | None:
        """Return l1·Σ|w| + l2/2·Σw² over the weights of convolutions and dense layers; None if neither applies."""
        if self._l1 == 0 and self._l2 == 0:
            return None
        weights = [parameter for parameter in self.network.parameters() if parameter.dim() > 1]
        total = torch.zeros((), device=self.device)
        for weight in weights:
            if self._l1:
                total = total + self._l1 * weight.abs().sum()
            if self._l2:
                total = total + self._l2 / 2 * weight.square().sum()
        return total

    def mean(self, name: str) -> float | None:
        """Return this epoch's mean of "train_loss", "val_loss" (over images) or "penalty" (over steps)."""
        if name not in self.sums:
            return None
        total, count = self.sums[name].tolist()
        return float(total / count)

    def metrics(self, split: str) -> Metrics:
        """Return this epoch's metrics of "train" or "val"."""
        return self.judges[split].compute()

    def _leanly(self) -> AbstractContextManager[None]:
        batch_norm = any(isinstance(module, _BatchNorm) for module in self.network.modules())
        return lean_activations(self.network) if self.settings.lean and batch_norm else nullcontext()

    def _sites_of(self, split: str, rows: Tensor) -> list[str | None] | None:
        known = self.sites[split]
        if not known or not self._by_site:  # to read the rows is to wait for the GPU
            return None
        return [known[row] for row in rows.tolist()]

    def _loss(self, split: str, logits: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.loss(logits, targets)
        self._add(f"{split}_loss", loss, len(targets))
        return loss

    def _add(self, name: str, value: Tensor, count: int) -> None:
        """Add to a mean on the device, so that no step waits for it."""
        pair = torch.stack(
            (value.detach().double() * count, torch.tensor(count, dtype=torch.double, device=value.device))
        )
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a person would need to know about the weights beside them."""
        checkpoint["mednorm"] = self.settings.model_dump(exclude_none=True)
