"""Advice as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mednorm.advise.amount import readable

if TYPE_CHECKING:
    from mednorm.advise.advice import Advice

_COLOURS = {"batch": "green", "lean": "green", "accumulate": "yellow", "convert": "yellow", "smaller": "red"}


def show(advice: Advice, console: Console | None = None) -> None:
    """Print the sentence, a row for each batch size, and what the figures rest on."""
    console = console or Console()
    console.print(f"[{_COLOURS[advice.action]}]{escape(advice.sentence)}[/]", highlight=False)
    run = {each.batch_size for each in advice.measured}
    table = Table(title=f"Batch sizes of {escape(advice.network)}", title_justify="left")
    for name in ("images", "peak", "ms/image", "noise, σ", ""):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for size, peak, seconds, noise in advice.rows():
        fits, enough = size <= advice.largest_that_fits, noise is None or noise < advice.noise.enough
        words = ["advised"] * (size == advice.recommended) + ["too large"] * (not fits) + ["too noisy"] * (not enough)
        time = "–" if seconds is None else f"{1000 * seconds:.3g}"
        cells = (
            str(size),
            ("" if size in run else "≈ ") + readable(peak),
            time,
            "–" if noise is None else f"{noise:.2f}",
        )
        table.add_row(*cells, ", ".join(words), style="bold" if size == advice.recommended else "")
    console.print(table)
    lines = [f"Peak of a step: {advice.memory}. ≈: predicted. Limit {readable(advice.limit)} on {advice.device}."]
    if advice.noise.layers:
        worst = advice.noise.worst(advice.noise.sizes[0])
        assert worst is not None
        lines.append(
            f"Noise: of the noisiest of {len(advice.noise.layers)} layers ({worst[0]}), by {advice.images} images; "
            f"enough is below {advice.noise.enough:g} σ."
        )
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False)
