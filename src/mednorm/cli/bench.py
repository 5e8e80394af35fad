"""`mednorm bench`: what normalization costs on this machine, beside its peers."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mednorm.cli import options as o

if TYPE_CHECKING:
    from mednorm.bench.record import Record


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            help="layers, family, steps, statistics, inference, startup, allocators; all unless given.", metavar="PART"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Over all peers of a case.")] = 5,
    seconds: Annotated[float, typer.Option("--seconds", help="That a peer is timed in a round, at least.")] = 0.2,
    threads: Annotated[int | None, typer.Option("--threads", help="Of every loop; PyTorch's number otherwise.")] = None,
    leave_out: Annotated[
        str | None,
        typer.Option("--leave-out", help="Peers or allocators, such as torch-compile,keras-jax,tcmalloc,torch+tuned."),
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Small cases alone, to see that everything runs.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the results; without it they are shown.", metavar="FILE.json")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where there is a file.")] = False,
    json: o.Json = False,
) -> None:
    """Measure layers, training steps, inference and start-up beside PyTorch, torch.compile and Keras.

    Every peer has a process of its own, and rounds take turns between them, so close what else is running. A peer that
    is not installed is named with the reason. Stopped at any moment, the same command goes on after the cases that
    --out has. Figures are of the CPU.

    Examples:
      mednorm bench layers --out layers.json
      mednorm bench steps --rounds 7 --leave-out tcmalloc
    """
    from mednorm.bench.cases import PARTS
    from mednorm.bench.run import Settings, run_bench

    settings = Settings(
        parts=tuple(parts or PARTS),
        rounds=rounds,
        seconds=seconds,
        threads=threads,
        smoke=smoke,
        leave_out=tuple(o.words(leave_out) or ()),
    )
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    hidden = not o.messages.is_terminal
    with Progress(*columns, *times, console=o.messages, transient=True, disable=hidden) as display:
        row = display.add_task("start", total=None)

        def tell(case: str, done: int, total: int) -> None:
            display.update(row, description=escape(case), completed=done, total=total)

        try:
            record = run_bench(settings, out, overwrite=overwrite, progress=tell)
        except KeyboardInterrupt:
            if out is not None and out.exists():
                display.console.print(f"{out} has the cases measured so far: without --overwrite, it goes on there.")
            raise
    if json:
        typer.echo(json_module.dumps(record, indent=1, ensure_ascii=False))
        return
    show(record, o.console)
    if out is not None:
        o.tell("Results", out)


def show(record: Record, console: Console) -> None:
    """Print a table a part, its cases below each other; a narrow terminal gets medians without quartiles."""
    machine, versions = record["machine"], record["versions"]
    for part in dict.fromkeys(case["part"] for case in record["cases"]):
        cases = [case for case in record["cases"] if case["part"] == part]
        console.print(_table(part, cases, quartiles=console.width >= 80))
    reasons: dict[str, list[str]] = {}
    for case in record["cases"]:
        for peer, reason in case["missing"].items():
            reasons.setdefault(reason, []).append(peer)
    for reason, peers in reasons.items():
        console.print(f"not measured: {escape(', '.join(dict.fromkeys(peers)))}: {escape(reason)}", highlight=False)
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    console.print(f"{machine['model']}, {machine['threads']} threads; {packages}", highlight=False, markup=False)


def _table(part: str, cases: list[Record], quartiles: bool) -> Table:
    """Lay out the peers of each case with what was measured of them."""
    floor = any("ratio" in peer for case in cases for peer in case["peers"].values())
    memory = any("peak_memory_mb" in peer for case in cases for peer in case["peers"].values())
    table = Table(title=f"{part}, {cases[0]['rounds']} rounds", title_justify="left")
    table.add_column("peer", overflow="fold")
    for name in ["ms", *["quartiles"] * quartiles, *["× floor"] * floor, *["peak MB"] * memory]:
        table.add_column(name, justify="right", no_wrap=True)
    for case in cases:
        table.add_section()
        table.add_row(f"[bold]{escape(case['name'])}[/]")
        for name, peer in case["peers"].items():
            times = peer["milliseconds"]
            cells = [_number(times["median"])]
            if quartiles:
                cells.append(f"{_number(times['low'])}–{_number(times['high'])}")
            if floor:
                cells.append(f"{peer['ratio']['median']:.2f}" if "ratio" in peer else "–")
            if memory:
                cells.append("–" if peer.get("peak_memory_mb") is None else f"{peer['peak_memory_mb']:.0f}")
            table.add_row(f"  {escape(name)}", *cells)
    return table


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.1f}"
