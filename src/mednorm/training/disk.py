"""How a run lies on disk, and how it is read back.

OUT/runs/NAME/config.toml    what was asked for
              last.ckpt      after every epoch; where a killed run goes on
              best.ckpt      the epoch with the best validation metric
              metrics.csv    one row an epoch
              samples.npz    some test images with truth and prediction
              outcomes.csv   one row a test image: what was true and what was predicted
              outcomes-batch-statistics.csv   the same with batch statistics, where the network keeps running ones
              run.json       the record; there when the run is finished
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from pydantic import ValidationError
from torch import nn

from mednorm.errors import RunError
from mednorm.files import make_folder, remove, write_atomically
from mednorm.results import Epoch, Run
from mednorm.training.settings import RunSettings, read_toml, validated

OUTCOMES, BATCH_OUTCOMES = "outcomes.csv", "outcomes-batch-statistics.csv"

# Where these differ, the numbers do not.
_HARMLESS = {"data", "lean", "tensorboard"}  # where the data lies; what it holds is in the digest

# What torch.load raises for a file that is cut short, no archive, or holds more than tensors and plain values.
_DAMAGE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError)


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written so that a kill leaves the one before, never half a file; read, not unpickled."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a buffer, then to the file in one move."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain values.

        Raises:
            RunError: the file is damaged, or would have to be unpickled.

        """
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except _DAMAGE as error:
            raise RunError(
                f"{path}: expected a checkpoint of this run, got: {_first_line(error)} "
                "Remove it; the run then starts from its first epoch."
            ) from None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder, and clear away what a killed process left half-written; one that dies lets go of it.

    Raises:
        RunError: another process holds it.

    """
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"{folder}: another mednorm works in this folder. Wait for it, or choose another --out."
        ) from None
    try:
        for partial in folder.glob(".*.partial"):
            remove(partial)
        yield
    finally:
        lock.release()


def open_run(settings: RunSettings, folder: Path) -> Run | None:
    """Make a folder ready for a run; return the record if this very run is finished already.

    Raises:
        RunError: the folder holds a run with other settings, or a damaged record.

    """
    config, record = folder / "config.toml", folder / "run.json"
    if not config.exists():
        write_atomically(config, tomli_w.dumps(settings.model_dump(exclude_none=True)))
    before, now = load_settings(folder).model_dump(), settings.model_dump()
    for key in now.keys() - _HARMLESS:
        if before[key] != now[key]:
            raise RunError(
                f"{folder}: expected a run with {key} = {now[key]!r}, got one with {before[key]!r}. "
                "Choose another --out, or remove that folder."
            )
    if not record.exists():
        return None
    try:
        return Run.model_validate_json(record.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise RunError(
            f"{record}: damaged ({_first_line(error)}). Remove it; the run is then finished again."
        ) from None


def load_settings(folder: Path) -> RunSettings:
    """Read what a run's folder says was trained.

    Raises:
        RunError: it is not the folder of a run.
        ConfigError: its config.toml is damaged.

    """
    config = folder / "config.toml"
    if not config.exists():
        raise RunError(f"{folder}: expected the folder of a run, with config.toml and best.ckpt; found no config.toml.")
    return validated(RunSettings, read_toml(config), str(config))


def read_weights(checkpoint: Path) -> tuple[dict[str, Any], int]:
    """Read the weights of a run's best or last epoch; tensors and plain values alone, nothing is unpickled.

    Returns:
        The network's state_dict, and the epoch it is from, 1 for the first.

    Raises:
        RunError: the file is missing, damaged, or holds something else.

    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
        weights = {key.removeprefix("network."): value for key, value in content["state_dict"].items()}
        return weights, int(content["epoch"]) + 1
    except FileNotFoundError:
        raise RunError(f"{checkpoint}: no such file. The run has not finished an epoch; train it first.") from None
    except (*_DAMAGE, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{checkpoint}: expected the weights of this run's network, got: {_first_line(error)}") from None


def load_weights(network: nn.Module, checkpoint: Path) -> int:
    """Load a run's weights into its network; see `read_weights`.

    Returns:
        The epoch the weights are from, 1 for the first.

    Raises:
        RunError: the file is missing, damaged, or of another network.

    """
    weights, epoch = read_weights(checkpoint)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{checkpoint}: expected the weights of this run's network, got: {_first_line(error)}") from None
    return epoch


def metrics_csv(epochs: list[Epoch]) -> str:
    """Lay the records out as a table: one row an epoch, nested names joined by a slash."""
    rows = [flat(epoch) for epoch in epochs]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(epoch: Epoch) -> dict[str, float]:
    """Return the numbers of a record under names such as "layers/conv1/variance"; what is None is left out."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, float]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{name}/{key}" if name else key)
        elif value is not None:
            yield name, value

    return dict(walk(epoch.model_dump(), ""))


def _first_line(error: Exception) -> str:
    first, *others = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    return others[0] if first.startswith("Error(s) in loading state_dict") and others else first
