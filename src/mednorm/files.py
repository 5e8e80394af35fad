"""Files that are whole or not there."""

from __future__ import annotations

import os
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
