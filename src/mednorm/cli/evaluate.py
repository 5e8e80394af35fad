"""`mednorm evaluate`: judge a trained run on images."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mednorm.cli import options as o


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as results/runs/batch-none-b8-s0.", metavar="RUN")],
    data: o.Data = None,
    split: Annotated[
        Literal["train", "val", "test", "all"], typer.Option("--split", help="Which images to judge it on.")
    ] = "test",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    json: o.Json = False,
) -> None:
    """Judge a trained run, on its own data or on other data of the same classes.

    Says every metric with its bootstrap interval over patients (images, where no patient is named), with running
    statistics and, for batch normalization, with the statistics of the batch; and every metric of each site.

    Example:
      mednorm evaluate results/runs/batch-none-b8-s0 --data other/manifest.csv --split all
    """
    from mednorm.cli.show import show_judgement
    from mednorm.training.evaluation import evaluate_run

    judged = evaluate_run(run, data, split, device)
    if json:
        typer.echo(json_module.dumps({"run": str(run), "split": split, **asdict(judged)}, indent=1))
    else:
        show_judgement(f"{run.name}, {split}, {judged.images} images", judged, o.console)
