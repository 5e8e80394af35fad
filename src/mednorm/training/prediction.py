"""What a trained run says of new images: a class with its probabilities, or a mask on the grid of each image."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mednorm.data import Image, write_mask, writers
from mednorm.errors import ConfigError, DataError, MednormError
from mednorm.files import make_folder, write_atomically
from mednorm.training.grids import UNPLACED, bring
from mednorm.training.inputs import Input, check_apart, find_inputs
from mednorm.training.trained import TrainedRun, flat


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run says of one image.

    Attributes:
        image: what was given.
        size: voxels along each spatial axis of the image.
        spacing: mm between them; None where the file does not say.
        resampled: what was done to the image before the network saw it, such as ``("to RAS", "to 1×1×1 mm")``.
        probabilities: of each class; None for segmentation.
        mask: where the mask was written; None for classification.
        probability_map: where the probabilities of each voxel were written, if asked for.
        voxels: how many the mask has of each class; None for classification.
        voxel_ml: volume of a voxel in ml; None where the file does not say.
        notes: what makes the prediction doubtful, such as intensities that the training never saw.

    Example:
        >>> Prediction("a.png", (2, 2), None, (), probabilities={"normal": 0.25, "ill": 0.75}).predicted
        'ill'
    """

    image: str
    size: tuple[int, ...]
    spacing: tuple[float, ...] | None
    resampled: tuple[str, ...]
    probabilities: Mapping[str, float] | None = None
    mask: Path | None = None
    probability_map: Path | None = None
    voxels: Mapping[str, int] | None = None
    voxel_ml: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def predicted(self) -> str | None:
        """The class of the highest probability; None for segmentation."""
        return None if self.probabilities is None else max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the voxels that each class has."""
        voxels = self.voxels or {}
        return {name: count / sum(voxels.values()) for name, count in voxels.items()}

    @property
    def millilitres(self) -> dict[str, float] | None:
        """Volume of each class in ml; None where the file does not say how large a voxel is."""
        if self.voxels is None or self.voxel_ml is None:
            return None
        return {name: count * self.voxel_ml for name, count in self.voxels.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return what holds for its kind, as JSON takes it."""
        common = {
            "image": self.image,
            "size": list(self.size),
            "spacing_mm": None if self.spacing is None else list(self.spacing),
            "resampled": list(self.resampled),
            "notes": list(self.notes),
        }
        if self.probabilities is not None:
            return common | {"predicted": self.predicted, "probabilities": dict(self.probabilities)}
        return common | {
            "mask": str(self.mask),
            "probability_map": None if self.probability_map is None else str(self.probability_map),
            "voxels": dict(self.voxels or {}),
            "shares": self.shares,
            "millilitres": self.millilitres,
        }


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """Lay predictions out as a table: one row an image, what is there for each class under ``probabilities/CLASS``."""
    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        row: dict[str, Any] = {}
        for key, value in prediction.to_dict().items():
            if isinstance(value, dict):
                row |= {f"{key}/{name}": number for name, number in value.items()}
            elif isinstance(value, list):
                row[key] = ("; " if key in ("resampled", "notes") else "x").join(map(str, value))
            elif key != "millilitres":  # unknown
                row[key] = "" if value is None else value
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def predict_run(
    folder: Path,
    inputs: Sequence[str],
    out: Path | None,
    *,
    overwrite: bool = False,
    device: str = "auto",
    probabilities: bool = False,
    site: str | None = None,
    progress: Callable[[Prediction], None] | None = None,
) -> list[Prediction]:
    """Predict images by the best epoch of a run, in evaluation mode: with running statistics, each image by itself.

    An image is brought to the grid of the training (see `bring`), and what the network says back to its own before the
    class of each voxel is chosen. Every input and output is checked before the first image is predicted, by headers
    alone. Masks are whole or not there; those written before a failure stay.

    Args:
        folder: the run's folder.
        inputs: of each image its file, the folder of its DICOM series, or several of these with `;` between, one a
            channel. A volume whose last axis has one voxel is a slice.
        out: where masks are written, as ``NAME-mask.nii.gz`` or, for what has no place in a patient,
            ``NAME-mask.png``; None for classification, which writes nothing.
        overwrite: True to replace files that are there.
        device: "auto", "cpu" or "cuda".
        probabilities: also write those of each voxel, float32 with the classes along the last axis: as
            ``NAME-probabilities.nii.gz``, or ``NAME-probabilities.npy`` for an image without a place.
        site: which all images are from, for a run with normalization by site.
        progress: called after each image.

    Returns:
        One prediction an image, in the order given.

    Raises:
        RunError: not a run, no usable weights, an image that its network does not take, or an output of NaN or inf.
        DataError: an image that cannot be read, one given twice, an output that is there, or one that would replace an
            image or lie among the slices of a series, whatever `overwrite` says.
        ConfigError: a device that is not there, no folder for masks, or a site for a run that does not tell them apart.
    """
    run = TrainedRun(folder, device, site)
    if run.task.kind == "segmentation" and out is None:
        raise ConfigError("out: expected a folder for the masks, got none. Name one.")
    found = find_inputs(inputs)
    for each in found:
        run.check_axes(each.text, each.shape)
    if out is not None:
        tables = [out / f"predictions.{ending}" for ending in ("json", "csv")]  # which the command writes
        masks = _outputs(found, out, probabilities) if run.task.kind == "segmentation" else []
        check_apart(found, [*masks, *tables])
        _check_free(masks, overwrite)
        make_folder(out)
    predictions: list[Prediction] = []
    for each in found:
        try:
            prediction = _predicted(run, each, out, overwrite, probabilities)
        except MednormError as error:
            if not predictions:
                raise
            kept = "" if run.task.kind == "classification" else f"; their masks are in {out}"
            raise type(error)(
                f"{error} The {len(predictions)} of {len(found)} images before it were predicted{kept}."
            ) from None
        predictions.append(prediction)
        if progress is not None:
            progress(prediction)
    return predictions


def _outputs(found: Sequence[Input], out: Path, probabilities: bool) -> list[Path]:
    endings = ["-mask.nii.gz", "-mask.png"] + ["-probabilities.nii.gz", "-probabilities.npy"] * probabilities
    return [out / f"{each.name}{ending}" for each in found for ending in endings]


def _check_free(outputs: Sequence[Path], overwrite: bool) -> None:
    there = [path for path in outputs if path.exists()]
    if there and not overwrite:
        more = f" ({len(there)} such files)" if len(there) > 1 else ""
        raise DataError(f"{there[0]}: expected no file there, got one{more}. Choose another folder, or overwrite.")


def _predicted(run: TrainedRun, each: Input, out: Path | None, overwrite: bool, probabilities: bool) -> Prediction:
    image = each.read()
    pixels, size = torch.from_numpy(image.pixels), image.pixels.shape[1:]
    run.check_axes(each.text, size)
    geometry = image.geometry
    brought = bring(pixels.reshape(len(pixels), *flat(size)), geometry, run.grid, each.text)
    chances = run(brought.pixels, each.text)
    notes = tuple(step for step in brought.steps if step == UNPLACED)
    notes += run.sites_told() + run.doubts(brought.pixels, each.text)
    spacing = image.spacing
    if run.task.kind == "classification":
        by_class = dict(zip(run.classes, chances.tolist(), strict=True))
        return Prediction(each.text, size, spacing, brought.steps, probabilities=by_class, notes=notes)
    assert out is not None
    chances = brought.back(chances).reshape(-1, *size)
    mask = chances.argmax(0).numpy()
    chart = _write_probabilities(chances, image, out / f"{each.name}-probabilities") if probabilities else None
    stem = out / f"{each.name}-mask"
    path = write_mask(mask, image, stem, classes=len(run.classes), overwrite=overwrite)
    counts = np.bincount(mask.ravel(), minlength=len(run.classes)).tolist()
    voxels = dict(zip(run.classes, counts, strict=True))
    voxel_ml = _ml(image)
    return Prediction(each.text, size, spacing, brought.steps, None, path, chart, voxels, voxel_ml, notes)


def _write_probabilities(chances: Tensor, image: Image, stem: Path) -> Path:
    """Write ``(K, *spatial)`` with the classes last, as NIfTI where the image has a place, else as NumPy's .npy."""
    array = np.ascontiguousarray(np.moveaxis(chances.numpy(), 0, -1))
    if image.geometry is None:
        path, content = stem.with_name(stem.name + ".npy"), io.BytesIO()
        np.save(content, array)
        write_atomically(path, content.getvalue())
        return path
    path = stem.with_name(stem.name + ".nii.gz")
    write_atomically(path, writers.nifti(array[:, :, None] if array.ndim == 3 else array, image))
    return path


def _ml(image: Image) -> float | None:
    """Volume of a voxel; a slice without a place has none, as it does not say how thick it is."""
    if image.geometry is not None:
        return float(abs(np.linalg.det(image.geometry.affine[:3, :3]))) / 1000
    return float(np.prod(image.spacing)) / 1000 if image.spacing is not None and len(image.spacing) == 3 else None
