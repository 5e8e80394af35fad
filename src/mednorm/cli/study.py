"""`mednorm study`: train every arm with every seed, compare, write the page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mednorm.cli import options as o
from mednorm.cli.cpu import prepare_cpu


def study(
    task: Annotated[
        str | None,
        typer.Argument(
            help="tissue (images included), lung, heart, heart-lv, brain, brain3d; else that of --config, or tissue.",
            metavar="TASK",
        ),
    ] = None,
    data: o.Data = None,
    out: o.Out = Path("results"),
    config: Annotated[
        Path | None, typer.Option("--config", help="A study.toml; options override it.", metavar="FILE")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Where settings start from: quick, default, claims, batch-size.")
    ] = None,
    norms: Annotated[str | None, typer.Option("--norms", help=f"Of {o.NORMS}; commas between.")] = None,
    regularizers: Annotated[
        str | None,
        typer.Option(
            "--regularizers", help="Of none, dropout, dropout_before, dropout_last, l1, l2 and sums such as dropout+l2."
        ),
    ] = None,
    batch_sizes: Annotated[str | None, typer.Option("--batch-sizes", help="Such as 2,4,8,16,32.")] = None,
    base_batch_size: Annotated[int | None, typer.Option("--base-batch-size", help="Where the others vary.")] = None,
    batch_size_norms: Annotated[
        str | None, typer.Option("--batch-size-norms", help="Norms trained at the other batch sizes; else all.")
    ] = None,
    scale_learning_rate: Annotated[
        str | None, typer.Option("--scale-learning-rate", help="With the batch size: none, sqrt or linear.")
    ] = None,
    train_shares: Annotated[
        str | None, typer.Option("--train-shares", help="Shares of the training patients, such as 0.1,0.3,1.")
    ] = None,
    deeper: Annotated[
        bool | None, typer.Option("--deeper/--no-deeper", help="Train the deeper variant of the network as well.")
    ] = None,
    network: o.Network = None,
    folds: o.Folds = None,
    holdout_site: o.HoldoutSite = None,
    scaling: o.Scaling = None,
    patch_size: o.PatchSize = None,
    patches_per_volume: o.PatchesPerVolume = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 0,1,2 or 0..4.")] = None,
    grid: Annotated[
        str | None, typer.Option("--grid", help="star: one thing at a time. full: all combinations.")
    ] = None,
    target: Annotated[float | None, typer.Option("--target", help="Validation metric whose reaching is timed.")] = None,
    epochs: o.Epochs = None,
    optimizer: o.Optimizer = None,
    learning_rate: o.LearningRate = None,
    dropout: o.Dropout = None,
    l1: o.L1 = None,
    l2: o.L2 = None,
    classes: o.Classes = None,
    image_size: o.ImageSize = None,
    split_seed: o.SplitSeed = None,
    device: o.Device = None,
    lean: o.Lean = None,
    tensorboard: o.TensorBoard = None,
    json: o.Json = False,
) -> None:
    """Train the same network with and without normalization, with several seeds, and say what it did.

    Writes OUT/results.json, OUT/report.html and one folder for each run. Killed at any moment, the same command goes
    on where it was; a finished run is not trained again.

    Examples:
      mednorm study tissue --preset quick --out results
      mednorm study lung --data pneumoniamnist.npz --norms none,batch --seeds 0..4
      mednorm study brain --data brain/manifest.csv --preset claims --out claims
      mednorm study brain --data brain/manifest.csv --holdout-site each
      mednorm study --config study.toml
    """
    from mednorm.cli.show import show_results
    from mednorm.report import write_report
    from mednorm.study.run import run_study
    from mednorm.study.settings import resolve
    from mednorm.training.progress import progress_display
    from mednorm.training.settings import read_toml

    flags = {
        "data": data,
        "norms": o.words(norms),
        "regularizers": o.words(regularizers),
        "batch_sizes": o.numbers(batch_sizes, "--batch-sizes"),
        "base_batch_size": base_batch_size,
        "batch_size_norms": o.words(batch_size_norms),
        "scale_learning_rate": scale_learning_rate,
        "train_shares": o.shares(train_shares, "--train-shares"),
        "deeper": deeper,
        "network": network,
        "folds": folds,
        "holdout_site": holdout_site,
        "scaling": scaling,
        "patch_size": o.numbers(patch_size, "--patch-size"),
        "patches_per_volume": patches_per_volume,
        "seeds": o.numbers(seeds, "--seeds"),
        "grid": grid,
        "target": target,
        "epochs": epochs,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "dropout": dropout,
        "l1": l1,
        "l2": l2,
        "classes": o.words(classes),
        "image_size": o.numbers(image_size, "--image-size"),
        "split_seed": split_seed,
        "device": device,
        "lean": lean,
        "tensorboard": tensorboard,
    }
    settings = resolve(task, preset, read_toml(config) if config else {}, flags, str(config))
    console = o.messages if json else o.console
    prepare_cpu(settings.device, console)
    with progress_display(console=console, transient=True) as display:
        command = shlex.join(["mednorm", *sys.argv[1:]])
        results = run_study(
            settings, out, command, display, lambda line: display.console.print(escape(line), highlight=False)
        )
    if not json:
        show_results(results, o.console)
    page = write_report(results, out)
    if json:
        typer.echo((out / "results.json").read_text(encoding="utf-8"), nl=False)
        return
    o.console.print()
    o.tell("Figures", out / "results.json")
    o.tell("Page", page)
