"""Lightning callbacks: statistics that move once an optimizer step, and statistics that stand still."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

from torch import nn

from mednorm.errors import ConfigError, MissingExtraError
from mednorm.layers import accumulate
from mednorm.surgery.freeze import freeze, unfreeze
from mednorm.surgery.freezing import FrozenLayer
from mednorm.surgery.where import Where

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.strategies import DDPStrategy
except ModuleNotFoundError:
    raise MissingExtraError('lightning: not installed. Run: pip install "mednorm[study]"') from None


class AccumulateStatistics(Callback):
    """Move running statistics once an optimizer step, by all micro-batches of ``accumulate_grad_batches`` together.

    The callback for `mednorm.accumulate`: each micro-batch is normalized by its own statistics, and their pooled ones
    move the running statistics when the optimizer has stepped. Validation in the middle of a step sees the running
    statistics of the steps before it, as it sees their weights. Micro-batches that no step has used when training ends
    or fails are dropped.

    Raises:
        ConfigError: when training starts, on a network without mednorm's layers or with PyTorch's own batch
            normalization; see `mednorm.convert`.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(
        ...     accumulate_grad_batches=4, callbacks=[AccumulateStatistics()], logger=False,
        ...     enable_checkpointing=False, accelerator="cpu",
        ... )

    """

    def __init__(self) -> None:
        self._accumulation: accumulate | None = None
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let batches wait from now on."""
        self._steps = trainer.global_step
        self._accumulation = accumulate(pl_module).__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the statistics if the optimizer stepped."""
        if self._accumulation is not None and trainer.global_step != self._steps:
            self._accumulation.commit()
            self._steps = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop what no step has used."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Drop what no step has used."""
        self._close()

    def _close(self) -> None:
        for layer in self._accumulation.layers if self._accumulation is not None else []:
            layer.end_accumulation()
        self._accumulation = None


class FreezeStatistics(Callback):
    """Freeze batch normalization from an epoch on, for the rest of the training; see `mednorm.freeze`.

    From epoch 0 it keeps a pretrained network's statistics while it is fine-tuned. From a late one, the last epochs
    train on the very statistics that evaluation will use. When training ends, or fails, what this callback froze is
    let go again; what `mednorm.freeze` held before stays held, all the time.

    DistributedDataParallel expects a gradient of whatever could have one when it wrapped the network. So from epoch 0
    layers are frozen before that (those that ``configure_model`` builds when the epoch starts); γ and β cannot be held
    later on.

    Args:
        from_epoch: the first epoch with frozen layers, counted from 0.
        statistics: hold the running statistics.
        affine: hold γ and β too.
        where: which layers; a pattern such as ``"encoder.*"``, several, or a function of name and module.

    Raises:
        ConfigError: `from_epoch` is no whole number of at least 0; there is nothing to freeze when the epoch comes; or,
            when training starts, `affine` under DistributedDataParallel from a later epoch on.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(
        ...     max_epochs=20, callbacks=[FreezeStatistics(from_epoch=15)], logger=False, enable_checkpointing=False,
        ...     accelerator="cpu",
        ... )

    """

    def __init__(
        self, from_epoch: int = 0, statistics: bool = True, affine: bool = False, where: Where | None = None
    ) -> None:
        if not isinstance(from_epoch, Integral) or isinstance(from_epoch, bool) or from_epoch < 0:
            raise ConfigError(
                f"FreezeStatistics: expected from_epoch to be a whole number of at least 0, got {from_epoch!r}."
            )
        self.from_epoch: int = from_epoch
        self.statistics: bool = statistics
        self.affine: bool = affine
        self.where: Where | None = where
        self._frozen: tuple[FrozenLayer, ...] = ()
        self._before: tuple[FrozenLayer, ...] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Freeze before the network is wrapped, where that is to be from the start."""
        if stage != "fit":
            return
        built = type(pl_module).configure_model is pl.LightningModule.configure_model
        if self.from_epoch == 0 and built:
            self._freeze(pl_module)
        elif self.affine and _expects_every_gradient(trainer.strategy):
            got = f"from_epoch={self.from_epoch}" if self.from_epoch else "a network built in configure_model"
            raise ConfigError(
                f"FreezeStatistics: expected from_epoch=0 and a network built in __init__ with affine=True, got {got}: "
                "DistributedDataParallel then waits for gradients that never come. Use affine=False, or "
                "strategy='ddp_find_unused_parameters_true'."
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze when the epoch has come; in a resumed training, when it had."""
        if not self._frozen and trainer.current_epoch >= self.from_epoch:
            self._freeze(pl_module)

    def _freeze(self, pl_module: pl.LightningModule) -> None:
        # The last call of `freeze` counts: what was held before has to be asked for again.
        self._before = unfreeze(pl_module).layers
        report = freeze(pl_module, self.statistics, self.affine, where=self.where)
        self._frozen = report.layers
        _freeze_too(pl_module, self._before, report.layers)
        if not report.layers:
            raise ConfigError(f"FreezeStatistics: expected batch normalization to freeze, got none. {report}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go."""
        self._release(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let go."""
        self._release(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go where no training came about, as with ``max_epochs=0``."""
        self._release(pl_module)

    def _release(self, module: pl.LightningModule) -> None:
        if self._frozen or self._before:
            unfreeze(module, where=_among(self._frozen))
            _freeze_too(module, self._before)
        self._frozen = self._before = ()


def _expects_every_gradient(strategy: Any) -> bool:
    return isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters", False)


def _freeze_too(
    module: pl.LightningModule, layers: tuple[FrozenLayer, ...], others: tuple[FrozenLayer, ...] = ()
) -> None:
    """Hold of each layer what was held of it, and what is held of it among others."""
    also = {layer.name: layer for layer in others}
    for layer in layers:
        same = also.get(layer.name, layer)
        held = layer.statistics or same.statistics, layer.affine or same.affine
        if any(held):
            freeze(module, *held, where=_among((layer,)))


def _among(layers: tuple[FrozenLayer, ...]) -> Callable[[str, nn.Module], bool]:
    names = {layer.name for layer in layers}
    return lambda name, _: name in names
