"""`mednorm examine`: why a network's normalization fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mednorm.cli import options as o
from mednorm.errors import ConfigError


def examine(
    what: Annotated[
        str | None,
        typer.Argument(
            help="Folder of a run, such as results/runs/batch-none-b8-s0; or package.module:network, a network of "
            "your own or a function that returns one.",
            metavar="RUN|MODEL",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A MedMNIST .npz, a manifest.csv or its folder; the run's own unless given. For MODEL also "
            "package.module:loader, a loader of batches or a function that returns one.",
            metavar="PATH",
        ),
    ] = None,
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option("--split", help="Which images to look at; test unless given."),
    ] = None,
    select: Annotated[
        str | None, typer.Option("--select", help="Rules to ask, with commas between, such as MN003; all unless given.")
    ] = None,
    ignore: Annotated[str | None, typer.Option("--ignore", help="Rules not to ask, such as MN008,MN009.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images in a batch of the training; the run's unless given.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", help="That a batch of the training was spread over, each with as many.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Look at so many batches at most.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Of MODEL: .safetensors, or a state_dict saved by PyTorch.", metavar="FILE"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Of MODEL: read and scale the images as this task does.", metavar="TASK"),
    ] = None,
    patch_size: Annotated[
        str | None, typer.Option("--patch-size", help="Of MODEL and volumes: look at patches, e.g. 96,96,96.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page that shows all of it.", metavar="FILE")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for examination.json and examination.html.", metavar="DIR")
    ] = None,
    overwrite: o.Overwrite = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    explain: Annotated[
        str | None, typer.Option("--explain", help="Explain one rule, such as MN003, and stop.", metavar="RULE")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the rules and stop.")] = False,
    json: o.Json = False,
) -> None:
    """Say what is wrong with a network's normalization, layer by layer, how it shows, and which command mends it.

    Exit status 0 where results do not suffer, 1 where an error-level finding stands, 2 for a mistake in the command.

    Example:
      mednorm examine results/runs/batch-none-b8-s0 --data other/manifest.csv --split all --html examination.html
    """
    from mednorm.cli.rules import explain_rule, list_rules

    if listed or explain is not None:
        list_rules() if explain is None else explain_rule(explain)
        return
    for name, value in (("--batch-size", batch_size), ("--devices", devices), ("--limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: expected at least 1, got {value}.")
    if what is None:
        raise ConfigError("RUN|MODEL: expected the folder of a run or package.module:network, got none. See --help.")
    from mednorm.examine.order import chosen
    from mednorm.examine.rules import RULES
    from mednorm.training.evaluation import judging_device
    from mednorm.training.examined import loader_of_run
    from mednorm.training.owned import own_model_and_loader
    from mednorm.training.remedies import with_commands

    chosen(RULES, select, ignore)  # a mistake in these is said before the images are read
    written = None if out is None else out / "examination.json"
    pages = [path for path in (html, out and out / "examination.html") if path is not None]
    o.check_free([written, *pages], overwrite)
    owned = {"--weights": weights, "--task": task, "--patch-size": patch_size}
    rules: dict[str, Any] = {"select": select, "ignore": ignore, "limit": limit, "devices": devices}
    if ":" in what and not Path(what).exists():
        patch = o.numbers(patch_size, "--patch-size")
        model, loader, metric = own_model_and_loader(what, weights, data, task, split, batch_size, patch)
        found = _examined(model.to(judging_device(device)), loader, metric=metric, batch_size=batch_size, **rules)
    elif alone := [option for option, value in owned.items() if value is not None]:
        raise ConfigError(
            f"{alone[0]}: expected package.module:network with it, got {what!r}; a run knows its own. Leave it out."
        )
    else:
        model, loader, facts = loader_of_run(Path(what), data, split or "test", batch_size=batch_size, device=device)
        size = batch_size or facts.settings.batch_size
        found = _examined(model, loader, metric=facts.metric, optimizer=facts.decay, batch_size=size, **rules)
        found = replace(found, probed=replace(found.probed, network=facts.settings.network))
        found = with_commands(found, Path(what), data, split or "test")
    if written is not None:
        found.to_json(written)
    for path in pages:
        found.save_html(path)
    if json:
        typer.echo(found.to_json(), nl=False)
    else:
        found.show(o.console)
        if written is not None:
            o.tell("JSON", written)
        for path in pages:
            o.tell("Page", path)
    if not found.ok:
        raise typer.Exit(1)


def _examined(model: Any, loader: Any, *, limit: int | None, **options: Any) -> Any:
    """Examine with a bar of the batches; what comes after the last of them, too, takes its time."""
    import mednorm
    from mednorm.training.progress import progress_display

    known = len(loader) if hasattr(loader, "__len__") else None
    total = limit if known is None else min(known, limit or known)
    with progress_display(console=o.messages, transient=True, disable=not o.messages.is_terminal) as display:
        row = display.add_task("examine", total=total, note="")

        def tell(done: int) -> None:
            display.update(row, completed=done, note="comparing layers" if done == total else "")

        return mednorm.examine(model, loader, limit=limit, progress=tell, **options)
