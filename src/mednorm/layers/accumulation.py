"""Running statistics that move once a step, however many micro-batches the step has."""

from __future__ import annotations

from types import TracebackType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.errors import ConfigError
from mednorm.layers.batch import BatchNorm


class accumulate:
    r"""Pool the statistics of all micro-batches inside, and move the running statistics once, at the end.

    Each micro-batch is still normalized by its own statistics. What is kept for evaluation is what one batch of all
    their images would have given to each layer: pooled `Moments`, so that the spread between micro-batches counts,
    where k moves by k micro-batches would forget faster and know the spread within them alone. At the first
    normalization of a network it is exactly that of the joined batch; behind it, inputs differ a little, since they
    were normalized by micro-batches.

    A forward pass that activation checkpointing repeats is not counted. Should any micro-batch not be finite, the step
    moves nothing and counts as skipped. An exception inside discards what was gathered.

    Args:
        network: a network with mednorm's layers. PyTorch's own batch normalization would go on moving at every
            micro-batch, so a network that has some in training is refused; see `mednorm.convert`.

    Raises:
        ConfigError: no layer of mednorm, one of PyTorch's that moves, or already accumulating.

    Example:
        >>> import torch
        >>> from mednorm import BatchNorm
        >>> network, images = nn.Sequential(BatchNorm(2), nn.Flatten(), nn.Linear(32, 1)), torch.randn(8, 2, 4, 4)
        >>> with accumulate(network):
        ...     for micro in images.split(2):
        ...         network(micro).mean().backward()
        >>> network[0].num_batches_tracked.item()
        1
        >>> torch.allclose(network[0].running_var, 0.9 + 0.1 * images.var((0, 2, 3)))
        True

    Note:
        For several steps in one context call `commit` after each optimizer step: `AccumulateStatistics` does so in
        Lightning.

    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = [module for module in network.modules() if isinstance(module, BatchNorm)]
        if not self.layers:
            raise ConfigError(
                f"accumulate: expected a network with mednorm's batch normalization, got none in "
                f"{type(network).__name__}. Convert PyTorch's with mednorm.convert(network, to='batch')."
            )
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, BatchNorm) and _moves(module):
                raise ConfigError(
                    f"accumulate: expected mednorm's batch normalization alone, got {type(module).__name__} at "
                    f"{name!r}, which moves its statistics at every micro-batch. Convert it with "
                    "mednorm.convert(network, to='batch')."
                )

    def __enter__(self) -> accumulate:
        if any(layer.accumulating for layer in self.layers):
            raise ConfigError("accumulate: expected a network that does not accumulate already, got one that does.")
        for layer in self.layers:
            layer.begin_accumulation()
        return self

    def commit(self) -> None:
        """Move the running statistics by what was gathered, and go on gathering."""
        for layer in self.layers:
            layer.commit_accumulated()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            for layer in self.layers:
                layer.end_accumulation()


def _moves(layer: _BatchNorm) -> bool:
    held = bool(getattr(layer.__dict__.get("_mednorm_frozen"), "hooks", ()))  # by `mednorm.freeze`
    return layer.training and layer.track_running_stats and layer.momentum != 0 and not held
