"""What `mednorm.advise_batch_size` says."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mednorm._version import __version__
from mednorm.advise.amount import readable
from mednorm.advise.fit import Measured, MemoryFit
from mednorm.advise.noise import Noise
from mednorm.errors import MissingExtraError
from mednorm.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

Action = Literal["batch", "lean", "accumulate", "convert", "smaller"]
_INSTALL = 'pip install "mednorm[study]"'


@dataclass(frozen=True)
class Advice:
    """Which batch size a network should be trained with, and why: `mednorm.advise_batch_size`.

    Attributes:
        network: name of its class.
        device: that was measured on.
        limit: bytes that the training may take.
        action: ``"batch"``: train with `recommended` images; ``"lean"``: with lean activations as well;
            ``"accumulate"``: `micro_batches` of them a step; ``"convert"``: with another layer; ``"smaller"``: not even
            the smallest batch fits, so with smaller images.
        smallest_sufficient: images from which on the noisiest layer is good enough; None where no batch is.
        largest_that_fits: images that fit, with a margin; 0 for none.
        recommended: images in a batch, or in a micro-batch; 0 where none fits.
        micro_batches: in a step.
        lean_largest: the largest that fits with lean activations; None where that was not tried.
        batch_size: that is used now, None where that was not said.
        images: that the noise rests on.
        memory: the fit of the peaks.
        noise: of each layer by batch size.
        measured: peak and time of each size that was run.
        sentence: what to do.

    """

    network: str
    device: str
    limit: int
    action: Action
    smallest_sufficient: int | None
    largest_that_fits: int
    recommended: int
    micro_batches: int
    lean_largest: int | None
    batch_size: int | None
    images: int
    memory: MemoryFit
    noise: Noise
    measured: tuple[Measured, ...]
    sentence: str

    def saying(self, sentence: str) -> Advice:
        """Return the same with another sentence."""
        return replace(self, sentence=sentence)

    def of(self, network: str) -> Advice:
        """Return the same with another name of the network."""
        return replace(self, network=network)

    def show(self, console: Console | None = None) -> None:
        """Print the sentence and a table of the batch sizes.

        Raises:
            MissingExtraError: Rich is not installed; `print` needs nothing.

        """
        try:
            from mednorm.advise.show import show
        except ModuleNotFoundError:
            raise MissingExtraError(f"show: needs Rich, which is not installed. Print it, or run: {_INSTALL}") from None
        show(self, console)

    def rows(self) -> list[tuple[int, int, float | None, float | None]]:
        """Return batch size, peak, seconds an image and noise of the noisiest layer, of sizes that say something.

        These are the powers of two up to the first that is enough or does not fit, what was measured, and what is
        advised. The peak is the measured one where there is one, the predicted one otherwise.
        """
        known = {each.batch_size: each for each in self.measured}
        end = max(self.recommended, self.smallest_sufficient or 1, *known)
        sizes = {size for size in self.noise.sizes if size <= end} | {*known, self.recommended} - {0}
        found = []
        for size in sorted(sizes):
            worst = self.noise.worst(size) if size in self.noise.sizes else None
            seconds = known[size].seconds_per_image if size in known else None
            peak = known[size].peak if size in known else self.memory.at(size)
            found.append((size, peak, seconds, None if worst is None else worst[1]))
        return found

    def __str__(self) -> str:
        """The sentence, and the figures behind it."""
        lines = [self.sentence, f"  peak of a step: {self.memory}; limit {readable(self.limit)} ({self.device})"]
        if self.noise.layers:
            worst = self.noise.worst(self.noise.sizes[0])
            assert worst is not None
            lines.append(f"  noisiest layer: {worst[0]}, of {len(self.noise.layers)}; {self.images} images seen")
        lines.append(f"  {'images':>8}{'peak':>12}{'ms/image':>12}{'noise, σ':>12}")
        for size, peak, seconds, noise in self.rows():
            time = "" if seconds is None else f"{1000 * seconds:.3g}"
            lines.append(f"  {size:>8}{readable(peak):>12}{time:>12}{'' if noise is None else f'{noise:.2f}':>12}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON: bytes, seconds, and σ."""
        fields = (
            "network", "device", "sentence", "action", "recommended", "micro_batches", "smallest_sufficient",
            "largest_that_fits", "lean_largest", "batch_size", "limit", "images",
        )  # fmt: skip
        return (
            {"schema": 1, "mednorm": __version__}
            | {name: getattr(self, name) for name in fields}
            | {
                "memory": vars(self.memory),
                "measured": [vars(each) for each in self.measured],
                "noise": {
                    "enough": self.noise.enough,
                    "sizes": list(self.noise.sizes),
                    "layers": {
                        name: [value if math.isfinite(value) else None for value in values.values()]
                        for name, values in self.noise.layers.items()
                    },
                },
            }
        )

    def to_json(self, path: Path | str | None = None) -> str:
        """Return all of it as JSON, and write it to a file if one is given, whole or not at all."""
        written = json.dumps(self.to_dict(), allow_nan=False, indent=1, ensure_ascii=False) + "\n"
        if path is not None:
            write_atomically(Path(path), written)
        return written

    def save_html(self, path: Path | str) -> Path:
        """Write one page with charts of memory, time and noise against batch size. It needs no other file.

        Returns:
            The file written.

        Raises:
            MissingExtraError: Plotly or Jinja is not installed.
            RunError: the file cannot be written there.

        """
        try:
            from mednorm.report.advice import write_advice
        except ModuleNotFoundError:
            raise MissingExtraError(f"save_html: needs Plotly and Jinja. Run: {_INSTALL}") from None
        return write_advice(self.to_dict(), Path(path))
