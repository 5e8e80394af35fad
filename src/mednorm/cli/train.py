"""`mednorm train`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mednorm.cli import options as o


def train(
    task: o.TaskName,
    data: o.Data = None,
    out: o.Out = Path("run"),
    norm: Annotated[str, typer.Option("--norm", help="none, batch, group or instance.")] = "batch",
    regularizer: Annotated[
        str, typer.Option("--regularizer", help="none, dropout, l1, l2, or such as dropout+l2.")
    ] = "none",
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images in a step.")] = None,
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

    flags = {
        "data": data,
        "norms": [norm],
        "regularizers": [regularizer],
        "batch_sizes": None if batch_size is None else [batch_size],
        "seeds": [seed],
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
        "tensorboard": tensorboard,
    }
    settings = resolve(task, None, {}, flags)
    chosen = find_task(task)
    prepared = chosen.prepare(settings.data, settings.classes, settings.split_seed, settings.image_size)
    plan = next(
        run
        for run in settings.runs(prepared.images.classes, prepared.shape.size, prepared.digest)
        if run.batch_size == settings.base_batch_size
    )
    with progress_display(console=o.messages if json else o.console, transient=True) as display:
        run = train_run(plan, chosen, prepared, out, [RunProgress(display, plan.name, chosen.main_metric)])
    if json:
        typer.echo(run.model_dump_json(indent=1))
        return
    show_metrics(run, o.console)
    o.tell("Weights", out / "best.ckpt")
