"""`mednorm predict`: what a trained run says of new images."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from mednorm.cli import options as o
from mednorm.errors import ConfigError

if TYPE_CHECKING:
    from mednorm.training.prediction import Prediction


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as results/runs/batch-none-b8-s0.", metavar="RUN")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="A PNG, JPEG, TIFF, BMP, DICOM or NIfTI file, or the folder of a DICOM series; "
            "of several files of one channel each: 'a.nii.gz;b.nii.gz'.",
            metavar="IMAGE",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for what is written; masks go to predictions.", metavar="DIR"),
    ] = None,
    format: Annotated[
        Literal["json", "csv"] | None, typer.Option("--format", help="Of the table written to --out; json.")
    ] = None,
    json: o.Json = False,
    overwrite: o.Overwrite = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    site: Annotated[
        str | None, typer.Option("--site", help="Hospital or scanner of the images, for a run with norm domain.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of each class in each voxel.")
    ] = False,
) -> None:
    """Predict images by a trained run: the class of each, or a mask that lies on it.

    Masks keep size, spacing and place of their image. Every image is checked before the first is predicted.
    Not a medical device: research use only.

    Example:
      mednorm predict run scan.nii.gz series/ --out predictions
    """
    from mednorm.files import write_atomically
    from mednorm.tasks import find_task
    from mednorm.training.disk import load_settings
    from mednorm.training.prediction import predict_run, predictions_csv
    from mednorm.training.progress import progress_display

    segments = find_task(load_settings(run).task).kind == "segmentation"
    if segments:
        out = out or Path("predictions")
    elif format is not None and out is None:
        raise ConfigError(f"--format: expected --out with it, got {format} alone. Name a folder, or print by --json.")
    written = None if out is None else out / f"predictions.{format or 'json'}"
    o.check_free([written], overwrite)
    done: list[Prediction] = []

    def as_json() -> str:
        return json_module.dumps({"run": str(run), "predictions": [each.to_dict() for each in done]}, indent=1)

    hidden = len(images) == 1 or not o.messages.is_terminal
    with progress_display(console=o.messages, transient=True, disable=hidden) as display:
        row = display.add_task("predict", total=len(images), note="")

        def tell(prediction: Prediction) -> None:
            done.append(prediction)
            display.update(row, advance=1, note=_name(prediction))

        try:
            predict_run(
                run,
                images,
                out,
                overwrite=overwrite,
                device=device,
                probabilities=probabilities,
                site=site,
                progress=tell,
            )
        finally:  # what was predicted before a failure is kept
            if written is not None and done:
                write_atomically(written, predictions_csv(done) if format == "csv" else as_json())
    for each in done:
        for note in each.notes:
            o.messages.print(f"{_name(each)}: {note}", soft_wrap=True, markup=False)
    if json:
        typer.echo(as_json())
        return
    o.console.print(_masks(run, done) if segments else _classes(run, done))
    if segments and out is not None:
        o.tell("Masks", out)
    if written is not None:
        o.tell("Table", written)


def _table(run: Path, predictions: Sequence[Prediction]) -> Table:
    count = f"{len(predictions)} image{'s' * (len(predictions) != 1)}"
    table = Table(title=escape(f"{run.resolve().name}, {count}"), title_justify="left")
    table.add_column("image", overflow="fold")
    return table


def _name(prediction: Prediction) -> str:
    """Shorten an image to the names of its files; the file of predictions has the paths."""
    return escape("; ".join(Path(part.strip()).name for part in prediction.image.split(";")))


def _classes(run: Path, predictions: Sequence[Prediction]) -> Table:
    """Lay out the class and the probabilities of each image."""
    table = _table(run, predictions)
    table.add_column("predicted", overflow="fold")
    for name in predictions[0].probabilities or {}:
        table.add_column(escape(name), justify="right", overflow="fold")
    for each in predictions:
        chances = [f"{chance:.4f}" for chance in (each.probabilities or {}).values()]
        table.add_row(_name(each), escape(each.predicted or ""), *chances)
    return table


def _masks(run: Path, predictions: Sequence[Prediction]) -> Table:
    """Lay out the share and, where known, the volume of each class, and where the masks are."""
    table = _table(run, predictions)
    for name in predictions[0].voxels or {}:
        table.add_column(escape(name), justify="right", overflow="fold")
    table.add_column("mask", overflow="fold")
    for each in predictions:
        volumes = each.millilitres or {}
        cells = [
            f"{share:.2%}" + (f"\n{volumes[name]:.4g} ml" if name in volumes else "")
            for name, share in each.shares.items()
        ]
        table.add_row(_name(each), *cells, escape("" if each.mask is None else each.mask.name))
    return table
