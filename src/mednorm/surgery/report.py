"""What was written into a network, and whether it now says what its source says."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

# Twice float32's rounding of the largest output, times some fifty for the sums before it; and where all outputs are
# small, a few roundings of the numbers around 1 that the random input and batch normalization's outputs are.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


@dataclass(frozen=True)
class PortedLayer:
    """One pair of layers.

    Attributes:
        source: name of the layer read.
        target: name of the layer written.
        kind: what both are.
        notes: what was converted, and what did not carry over.

    """

    source: str
    target: str
    kind: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PortReport:
    """What `mednorm.port` did.

    Attributes:
        target: the network or layer written.
        layers: the pairs, in order.
        notes: what concerns the whole.
        input_shape: of the input on which both were compared, in Keras's layout, the batch included.
        max_difference: largest absolute difference of their outputs in inference.
        scale: largest magnitude of the source's output.

    Example:
        >>> report = PortReport(None, (PortedLayer("bn", "norm", "batch normalization"),), (), (4, 3), 2e-7, 3.5)
        >>> report.equivalent
        True
        >>> print(report)
        1 layer ported; outputs equal: they differ by at most 2e-07 at up to 3.5, input (4, 3).
          bn -> norm  batch normalization

    """

    target: Any = field(repr=False, compare=False)
    layers: tuple[PortedLayer, ...]
    notes: tuple[str, ...]
    input_shape: tuple[int, ...]
    max_difference: float
    scale: float

    @property
    def equivalent(self) -> bool:
        """Whether outputs differ by rounding alone: by at most 1e-5 of the largest, plus 1e-6; False for a NaN."""
        return self.max_difference <= RELATIVE * self.scale + ABSOLUTE

    def to_dict(self) -> dict[str, Any]:
        """Return all but the target, ready for JSON."""
        plain = {key: value for key, value in vars(self).items() if key not in ("target", "layers")}
        layers = [asdict(layer) for layer in self.layers]
        found: dict[str, Any] = json.loads(json.dumps({**plain, "layers": layers, "equivalent": self.equivalent}))
        return found

    def __str__(self) -> str:
        """Table of the pairs, each with the numbers of the notes below it."""
        distinct = list(dict.fromkeys(note for layer in self.layers for note in layer.notes))
        count = f"{len(self.layers)} layer{'s' if len(self.layers) != 1 else ''} ported"
        lines = [
            f"{count}; outputs {'equal' if self.equivalent else 'DIFFER'}: they differ by at most "
            f"{self.max_difference:.2g} at up to {self.scale:.3g}, input {self.input_shape}."
        ]
        widths = [max(len(getattr(layer, side)) for layer in self.layers) for side in ("source", "target")]
        for layer in self.layers:
            numbers = ", ".join(str(distinct.index(note) + 1) for note in layer.notes)
            lines.append(
                f"  {layer.source:{widths[0]}} -> {layer.target:{widths[1]}}  {layer.kind}"
                + (f"  [{numbers}]" if numbers else "")
            )
        lines += [f"  {number}. {note}" for number, note in enumerate(distinct, 1)]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)
