"""`mednorm train`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mednorm.cli import options as o
from mednorm.cli.cpu import prepare_cpu
from mednorm.errors import ConfigError


def train(
    task: o.TaskName,
    data: o.Data = None,
    out: o.Out = Path("run"),
    norm: Annotated[str, typer.Option("--norm", help=f"One of {o.NORMS}.")] = "batch",
    regularizer: Annotated[
        str,
        typer.Option(
            "--regularizer", help="none, dropout, dropout_before, dropout_last, l1, l2, or such as dropout+l2."
        ),
    ] = "none",
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images in a step.")] = None,
    network: o.Network = None,
    folds: o.Folds = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="Which fold, such as 1of5 or site-HT; the first unless given.")
    ] = None,
    holdout_site: o.HoldoutSite = None,
    train_share: Annotated[
        float, typer.Option("--train-share", help="Share of the training patients (or images) used.")
    ] = 1.0,
    scaling: o.Scaling = None,
    patch_size: o.PatchSize = None,
    patches_per_volume: o.PatchesPerVolume = None,
    seed: Annotated[int, typer.Option("--seed", help="Of initial weights, order and dropout.")] = 0,
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
    """Train one network; judge it once on the test images with the epoch that validation chose.

    Killed at any moment, the same command goes on where it was.

    Example:
      mednorm train lung --data pneumoniamnist.npz --norm batch --batch-size 32 --out run
    """
    from mednorm.cli.show import show_metrics
    from mednorm.study.settings import resolve
    from mednorm.tasks import find_task
    from mednorm.training.progress import RunProgress, progress_display
    from mednorm.training.run import train as train_run
    from mednorm.training.settings import prepare

    flags = {
        "data": data,
        "norms": [norm],
        "regularizers": [regularizer],
        "batch_sizes": None if batch_size is None else [batch_size],
        "seeds": [seed],
        "batch_size_norms": [norm],
        "train_shares": list(dict.fromkeys([1.0, train_share])),
        "deeper": False,
        "network": network,
        "folds": folds,
        "holdout_site": holdout_site,
        "scaling": scaling,
        "patch_size": o.numbers(patch_size, "--patch-size"),
        "patches_per_volume": patches_per_volume,
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
    settings = resolve(task, None, {}, flags)
    chosen = find_task(task)
    prepared = prepare(settings)
    plans = [
        run
        for run in settings.runs(prepared, {})
        if run.batch_size == settings.base_batch_size and run.train_share == train_share and fold in (None, run.fold)
    ]
    if not plans:
        known = ", ".join(each.name or "none" for each in prepared.folds)
        raise ConfigError(f"--fold: expected one of {known}, got {fold!r}.")
    plan = plans[0]
    console = o.messages if json else o.console
    prepare_cpu(settings.device, console)
    with progress_display(console=console, transient=True) as display:
        run = train_run(plan, chosen, prepared, out, [RunProgress(display, plan.name, chosen.main_metric)])
    if json:
        typer.echo(run.model_dump_json(indent=1))
        return
    show_metrics(run, o.console)
    o.tell("Weights", out / "best.ckpt")
