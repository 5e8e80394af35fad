"""`mednorm advise`: how many images a training step should have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mednorm.cli import options as o
from mednorm.cli.cpu import prepare_cpu
from mednorm.errors import ConfigError


def advise(
    task: o.TaskName,
    data: o.Data = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="That training may take, such as 8GB; what is free now unless given."),
    ] = None,
    network: o.Network = None,
    norm: Annotated[str, typer.Option("--norm", help=f"One of {o.NORMS}.")] = "batch",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="In use now: kept where it is enough and fits.")
    ] = None,
    image_size: o.ImageSize = None,
    patch_size: o.PatchSize = None,
    patches_per_volume: o.PatchesPerVolume = None,
    optimizer: o.Optimizer = None,
    classes: o.Classes = None,
    folds: o.Folds = None,
    split_seed: o.SplitSeed = None,
    seconds: Annotated[
        float, typer.Option("--seconds", help="That measuring may last, about; four sizes are measured in any case.")
    ] = 60.0,
    device: o.Device = None,
    lean: o.Lean = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with charts.", metavar="FILE")] = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Say which batch size to train with: enough images for the statistics of batch normalization, and that fit.

    Training steps are run with small batches, on a copy and never beyond the limit, and their peak memory is measured.
    The network has its initial weights, so that noise is a first answer; of a trained one ask mednorm examine.

    Example:
      mednorm advise brain --data brain/manifest.csv --memory 8GB --html advice.html
    """
    from mednorm.advise import advise_batch_size
    from mednorm.advise.amount import bytes_of
    from mednorm.study.settings import resolve
    from mednorm.tasks import find_task
    from mednorm.training.advised import untrained
    from mednorm.training.settings import prepare

    if memory is not None:
        bytes_of(memory)  # a mistake is said before images are read
    if seconds < 0:
        raise ConfigError(f"--seconds: expected at least 0, got {seconds:g}.")
    o.check_free([html], overwrite)
    flags = {
        "data": data,
        "norms": [norm],
        "regularizers": ["none"],
        "batch_sizes": None if batch_size is None else [batch_size],
        "seeds": [0],
        "batch_size_norms": [norm],
        "train_shares": [1.0],
        "deeper": False,
        "network": network,
        "patch_size": o.numbers(patch_size, "--patch-size"),
        "patches_per_volume": patches_per_volume,
        "optimizer": optimizer,
        "classes": o.words(classes),
        "image_size": o.numbers(image_size, "--image-size"),
        "folds": folds,
        "split_seed": split_seed,
        "device": device,
        "lean": lean,
    }
    settings = resolve(task, None, {}, flags)
    chosen = find_task(task)
    with o.messages.status("Reading the images", spinner="line") as status:
        prepared = prepare(settings)
        plan = next(run for run in settings.runs(prepared, {}) if run.batch_size == settings.base_batch_size)
        prepare_cpu(settings.device, o.messages)
        begun = untrained(plan, chosen, prepared)
        advice = advise_batch_size(
            begun.network,
            begun.loader,
            memory,
            loss=begun.loss,
            optimizer=plan.optimizer,
            batch_size=batch_size,
            seconds=seconds,
            progress=lambda line: status.update(f"Measuring {line}"),
        ).of(settings.network)
    if html is not None:
        advice.save_html(html)
    if json:
        typer.echo(advice.to_json(), nl=False)
        return
    advice.show(o.console)
    if html is not None:
        o.tell("Page", html)
