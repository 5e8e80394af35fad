"""What `mednorm.recalibrate` and `mednorm.adapt` did, and the way back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mednorm.errors import RunError
from mednorm.population.change import Change
from mednorm.surgery.conversion import NOT_ASKED_FOR, LeftLayer


@dataclass(frozen=True)
class RenewedLayer:
    """One layer whose running statistics were computed anew.

    Distances are those of `population.distance`, the median over the channels, in standard deviations that the layer
    normalizes with; NaN where its old statistics are no numbers.

    Attributes:
        name: in the network.
        kind: its class.
        before: how far what reached it was from its running statistics.
        after: how far what reaches it now is from its new ones.
        drift: how far the images' statistics, with the layers before it renewed, are from its old ones.
        images: that they are of.
        values: of each channel that they are of.

    """

    name: str
    kind: str
    before: float
    after: float
    drift: float
    images: int
    values: int


@dataclass(frozen=True)
class RecalibrationReport:
    """What `mednorm.recalibrate` did.

    Attributes:
        method: how the statistics were taken.
        layers: those that were recalibrated, in the order of their first calls.
        left: those left, each with the reason.
        images: that the statistics are of.
        batches: in which they came.
        metric: on the validation images, before and after; None without.

    Example:
        >>> layer = RenewedLayer("bn", "BatchNorm2d", 2.3, 0.0, 2.3, 40, 10240)
        >>> print(RecalibrationReport("sequential", (layer,), (LeftLayer("last", "BatchNorm2d", "frozen"),), 40, 3))
        Nothing was kept: 1 layer recalibrated from 40 images in 3 batches, and put back.
                             σ before  σ after
          bn    BatchNorm2d     2.300    0.000
          last  BatchNorm2d  left: frozen

    """

    method: str
    layers: tuple[RenewedLayer, ...]
    left: tuple[LeftLayer, ...] = ()
    images: int = 0
    batches: int = 0
    metric: tuple[float, float] | None = None
    _change: Change | None = field(default=None, repr=False, compare=False)

    _done = "recalibrated"

    @property
    def kept(self) -> bool:
        """Whether the new statistics are in the network."""
        return self._change is not None and self._change.made

    def rollback(self) -> None:
        """Give the network the statistics back that it had, bit by bit.

        Raises:
            RunError: they are back already, or something has changed the new ones since.

        """
        if self._change is None:
            raise RunError("rollback: expected a network that was changed, got one in which nothing was.")
        self._change.take_back()

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "method": self.method,
            "kept": self.kept,
            "images": self.images,
            "batches": self.batches,
            "metric": self.metric,
            "layers": [asdict(layer) for layer in self.layers],
            "left": [asdict(layer) for layer in self.left],
        }

    def __str__(self) -> str:
        """Table of the layers with their distances before and after, those left with the reason."""
        told = [layer for layer in self.left if layer.reason != NOT_ASKED_FOR]
        rows = [*self.layers, *told]
        name, kind = (max((len(getattr(row, key)) for row in rows), default=0) for key in ("name", "kind"))
        lines = [self._headline()]
        if self.layers:
            lines.append(f"  {'':{name}}  {'':{kind}}  σ before  σ after")
        lines += [f"  {row.name:{name}}  {row.kind:{kind}}  {row.before:8.3f}  {row.after:7.3f}" for row in self.layers]
        lines += [f"  {row.name:{name}}  {row.kind:{kind}}  left: {row.reason}" for row in told]
        if len(told) < len(self.left):
            lines.append(f"  {_count(len(self.left) - len(told), 'layer')} left: {NOT_ASKED_FOR}")
        return "\n".join([*lines, *self._judgements()])

    def _headline(self) -> str:
        if not self.layers:
            rest = "see below" if self.left else "found no batch normalization with running statistics"
            return f"Nothing was {self._done}: {rest}."
        what = f"{_count(len(self.layers), 'layer')} {self._done}"
        of = f"from {_count(self.images, 'image')} in {_count(self.batches, 'batch')}"
        return f"{what} {of}." if self.kept else f"Nothing was kept: {what} {of}, and put back."

    def _judgements(self) -> list[str]:
        return _lines(self, "metric", self.metric)


@dataclass(frozen=True)
class AdaptReport(RecalibrationReport):
    """What `mednorm.adapt` did: as `RecalibrationReport`, and how the predictions changed.

    Attributes:
        entropy: mean of the predictions' before and after, in nats, on the images held out (of "tent", without
            these, on those adapted to); None where it was not measured.
        majority: share of the most frequent class among those predicted, likewise.
        learned: names of the parameters that "tent" moved.

    """

    entropy: tuple[float, float] | None = None
    majority: tuple[float, float] | None = None
    learned: tuple[str, ...] = ()

    _done = "adapted"

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        own = {"entropy": self.entropy, "majority": self.majority, "learned": list(self.learned)}
        return {**super().to_dict(), **own}

    def _judgements(self) -> list[str]:
        return [
            *super()._judgements(),
            *_lines(self, "entropy of the predictions", self.entropy),
            *_lines(self, "share of the most frequent class", self.majority),
        ]


def _lines(report: RecalibrationReport, what: str, pair: tuple[float, float] | None) -> list[str]:
    return [] if pair is None else [f"  {what}: {pair[0]:.3f} before, {pair[1]:.3f} after"]


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}{plural if number != 1 else ''}"
