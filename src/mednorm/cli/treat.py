"""`mednorm treat`: mend a trained run's normalization."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from mednorm.cli import options as o


def treat(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as results/runs/batch-none-b8-s0.", metavar="RUN")],
    data: o.Data = None,
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option("--split", help="Which images to treat it by; all, or of its own data train, unless given."),
    ] = None,
    fix: Annotated[
        str | None,
        typer.Option("--fix", help="Codes of what to treat, such as MN001,MN004; what is found, unless given."),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Hospital to adapt to; the one farthest off unless given.")
    ] = None,
    method: Annotated[
        Literal["statistics", "mix", "tent"] | None,
        typer.Option(
            "--method",
            help="How to adapt to a site: its statistics (unless given: statistics), mixed with the old, or TENT.",
        ),
    ] = None,
    validate: Annotated[
        Literal["train", "val", "test"] | None,
        typer.Option("--validate", help="Split with labels on which the metric may not get worse."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="As in the training, unless given.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the new run; RUN-treated, unless given.", metavar="DIR")
    ] = None,
    json: o.Json = False,
) -> None:
    """Give a copy of a trained run the statistics that mend what an examination finds, and show before and after.

    Works without labels. Writes a new run beside the old one, which is left as it is; `mednorm evaluate` and
    `mednorm predict` take it. Exit status 1 where the metric on the --validate images got worse: then nothing is
    written.

    Example:
      mednorm treat results/runs/batch-none-b8-s0 --data clinic/manifest.csv --fix MN004 --site HT
    """
    from mednorm.cli.show_treatment import show_treatment
    from mednorm.training.progress import batch_count
    from mednorm.training.treatment import treat_run

    out = out or run.with_name(f"{run.name}-treated")
    with batch_count("Examining and treating:", console=o.messages) as advance:
        done = treat_run(
            run,
            data,
            split or ("train" if data is None else "all"),
            out,
            fix=o.words(fix),
            site=site,
            method=method,
            validate=validate,
            batch_size=batch_size,
            device=device,
            progress=advance,
        )
    if json:
        typer.echo(json_module.dumps(done.to_dict() | {"folder": str(done.folder) if done.folder else None}, indent=1))
    else:
        show_treatment(done, o.console)
        if done.folder is not None:
            o.tell("Run", done.folder)
    if done.report is not None and done.folder is None:
        raise typer.Exit(1)
