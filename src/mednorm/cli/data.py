"""`mednorm data`: what the readers see."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from mednorm.cli import options as o

data_app = typer.Typer(
    help="Look at images and their targets.",
    epilog="Example: mednorm data describe tissue",
    rich_markup_mode="rich",
)


@data_app.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@data_app.command()
def describe(
    path: Annotated[str, typer.Argument(help="A .npz, a manifest.csv or its folder, or tissue.", metavar="PATH")],
    kind: Annotated[
        Literal["classification", "segmentation"] | None, typer.Option("--kind", help="What to read, where both fit.")
    ] = None,
    classes: o.Classes = None,
    split_seed: o.SplitSeed = None,
    json: o.Json = False,
) -> None:
    """Read every image, check it, and count: splits, classes, sites, shapes, intensities.

    Example:
      mednorm data describe heart/manifest.csv --kind segmentation
    """
    from mednorm.cli.show import show_description
    from mednorm.data import describe as describe_images
    from mednorm.data import read, tissue

    seed = split_seed or 0
    images = tissue(seed) if path == "tissue" else read(path, kind=kind, classes=o.words(classes), seed=seed)
    description = describe_images(images)
    if json:
        typer.echo(json_module.dumps(description.to_dict(), indent=1))
    else:
        show_description(description, o.console)


@data_app.command()
def manifest(
    folder: Annotated[Path, typer.Argument(help="Holds one folder a patient.", metavar="FOLDER")],
    image: Annotated[
        list[str],
        typer.Option("--image", help="Fits one file in every folder; once for each channel.", metavar="PATTERN"),
    ],
    out: Annotated[Path, typer.Option("--out", help="The manifest to write, a new .csv.", metavar="FILE")],
    mask: Annotated[
        str | None, typer.Option("--mask", help="Fits the mask, one in every folder.", metavar="PATTERN")
    ] = None,
) -> None:
    """Write a manifest of images that lie in one folder a patient.

    Quote the patterns, so that the shell leaves them as they are.

    Example:
      mednorm data manifest brain3d --image "Flair*.nii.gz" --image "T1c*.nii.gz" --mask "OT*.nii.gz" --out manifest.csv
    """
    from mednorm.data import manifest_of_folders

    count = manifest_of_folders(folder, image, mask, out)
    o.console.print(f"patients {count}", highlight=False)
    o.tell("manifest", out)
