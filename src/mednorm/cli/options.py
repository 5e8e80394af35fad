"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mednorm.errors import ConfigError, DataError

console = Console()
messages = Console(stderr=True)

NORMS = "none, batch, renorm, ghost, moving, range, domain, frozen, group, instance, layer"
TaskName = Annotated[
    str,
    typer.Argument(help="tissue (images included), lung, heart, heart-lv, brain or brain3d.", metavar="TASK"),
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="A MedMNIST .npz, a manifest.csv, or the folder that holds one.", metavar="PATH"),
]
Classes = Annotated[
    str | None, typer.Option("--classes", help="Class names in the order of their numbers, with commas between.")
]
ImageSize = Annotated[str | None, typer.Option("--image-size", help="Resample every image, e.g. 128,128.")]
Folds = Annotated[
    int | None,
    typer.Option("--folds", help="Cross-validate over so many folds of patients; 0 for the data's own splits."),
]
HoldoutSite = Annotated[
    str | None,
    typer.Option("--holdout-site", help="Test on this hospital, train on the others; each for one fold a hospital."),
]
Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        help="article_cnn, densenet121, resnet18; basicunet, unet, segresnet; or package.module:factory of your own.",
    ),
]
Scaling = Annotated[
    str | None,
    typer.Option("--scaling", help="Standardize each image by itself (image), or all by the training images."),
]
PatchSize = Annotated[str | None, typer.Option("--patch-size", help="Patches of volumes, in voxels, e.g. 96,96,96.")]
PatchesPerVolume = Annotated[
    int | None, typer.Option("--patches-per-volume", help="Patches of each volume in an epoch.")
]
SplitSeed = Annotated[
    int | None, typer.Option("--split-seed", help="Seed of folds, and of the split where the data names none.")
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the training images.")]
Optimizer = Annotated[str | None, typer.Option("--optimizer", help="adam, adamw or sgd.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="At the base batch size.")]
Dropout = Annotated[float | None, typer.Option("--dropout", help="Share dropped, where an arm has dropout.")]
L1 = Annotated[float | None, typer.Option("--l1", help="Weight of the L1 penalty, where an arm has l1.")]
L2 = Annotated[float | None, typer.Option("--l2", help="Weight of the L2 penalty, where an arm has l2.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
Lean = Annotated[
    bool | None,
    typer.Option("--lean/--no-lean", help="Compute activations again in the backward pass: less memory."),
]
TensorBoard = Annotated[
    bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Also log every epoch for TensorBoard.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to read by machine.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for everything that is written.", metavar="DIR")]


def tell(what: str, where: Path) -> None:
    """Say where something lies, on a line of its own that can be copied whole."""
    console.print(f"{what:<8} {where}", highlight=False, markup=False, soft_wrap=True)


def check_free(paths: Iterable[Path | None], overwrite: bool) -> None:
    """Refuse to write over a file, before the work for it is done; None is one that is not written.

    Raises:
        DataError: there is one, and `overwrite` does not say to replace it.

    """
    there = [path for path in paths if path is not None and path.exists()]
    if there and not overwrite:
        raise DataError(f"{there[0]}: expected no file there, got one. Choose another name, or --overwrite.")


def words(text: str | None) -> list[str] | None:
    """Split "a,b" into its words."""
    return None if text is None else [word.strip() for word in text.split(",")]


def shares(text: str | None, option: str) -> list[float] | None:
    """Split "0.1,0.3,1" into numbers.

    Raises:
        ConfigError: something in it is no number.

    """
    if text is None:
        return None
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: expected numbers such as 0.1,0.3,1, got {text!r}.") from None


def numbers(text: str | None, option: str) -> list[int] | None:
    """Split "2,8,32", or "0..4" with both ends, into whole numbers.

    Raises:
        ConfigError: something in it is no whole number.

    """
    if text is None:
        return None
    try:
        if ".." in text:
            first, last = text.split("..")
            return list(range(int(first), int(last) + 1))
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: expected whole numbers such as 2,8,32 or 0..4, got {text!r}.") from None
