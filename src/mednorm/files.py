"""Files, and folders of them, that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mednorm.errors import RunError


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; one that is there is fine.

    Raises:
        RunError: a file is in its way, or it may not be made there.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: expected a folder, or room for one, got: {error.strerror}. Choose another."
        ) from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the target, then rename: a reader, or a run that is killed here, never meets half a file.

    Raises:
        RunError: the folder is not there and cannot be made.

    """
    make_folder(path.parent)
    partial = _beside(path)
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside the target to write into, which takes the target's place at the end.

    Whatever goes wrong inside, a full disk or Ctrl-C, neither is there afterwards.

    Raises:
        RunError: the folder above it is not there and cannot be made.
        OSError: the target is there, and not empty.

    """
    make_folder(folder.parent)
    partial = _beside(folder)
    remove(partial)  # that a killed process of the same number has left
    try:
        partial.mkdir()
        yield partial
        partial.rename(folder)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file, or a folder and what is in it; that there is none is fine."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
