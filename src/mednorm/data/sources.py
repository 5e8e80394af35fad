"""Find out how a source of images is laid out, and read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mednorm.data.images import ImageSet, Kind
from mednorm.data.manifest import NAME, read_manifest
from mednorm.data.npz import read_npz
from mednorm.errors import DataError


def read(
    source: str | Path,
    *,
    kind: Kind | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    divide: bool = True,
) -> ImageSet:
    """Read a MedMNIST file (``.npz``), a manifest (``.csv``), or a folder holding a ``manifest.csv``.

    Args:
        source: where the images are.
        kind: ``"segmentation"`` or ``"classification"``, where a manifest has masks and labels; segmentation if
            None.
        classes: names of the classes in the order of their numbers; found in the train split if None.
        seed: of the division into splits, where a manifest has no column ``split``.
        divide: False to take all images of such a manifest as test, for judging a network made elsewhere.

    Raises:
        DataError: no such file or folder, another layout, or whatever `read_npz` and `read_manifest` raise.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> parts = {"images": np.zeros((4, 28, 28), np.uint8), "labels": np.array([[0], [1], [1], [0]])}
        >>> arrays = {f"{split}_{part}": parts[part] for split in ("train", "val", "test") for part in parts}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/lung.npz", **arrays)
        ...     images = read(f"{folder}/lung.npz", classes=["normal", "pneumonia"])
        >>> images.load("val").images.shape
        torch.Size([4, 1, 28, 28])
    """
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"{source}: expected a .npz file, a .csv manifest or a folder, got nothing there. Correct the path."
        )
    if path.is_dir():
        if not (path / NAME).is_file():
            held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise DataError(
                f"{source}: expected a folder holding {NAME}, got one holding {held}. Write a manifest, or name it."
            )
        return read_manifest(path, kind=kind, classes=classes, seed=seed, divide=divide)
    if path.suffix.lower() == ".csv":
        return read_manifest(path, kind=kind, classes=classes, seed=seed, divide=divide)
    if path.suffix.lower() == ".npz":
        if kind == "segmentation":
            raise DataError(
                f"{source}: expected a manifest for segmentation, got a MedMNIST file, which has labels, no masks."
            )
        return read_npz(path, classes=classes)
    raise DataError(
        f"{source}: expected a file ending in .npz or .csv, or a folder, got {path.name!r}. Write a manifest."
    )
