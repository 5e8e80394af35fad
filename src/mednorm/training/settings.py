"""What a run is told: every setting has one name, in TOML, on the command line and in results."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mednorm.errors import ConfigError
from mednorm.tasks import Prepared, find_task
from mednorm.tasks.dropout import Placement
from mednorm.tasks.scaling import Scaling

Norm = Literal["none", "batch", "renorm", "ghost", "moving", "range", "domain", "frozen", "group", "instance", "layer"]
Optimizer = Literal["adam", "adamw", "sgd"]
Device = Literal["auto", "cpu", "cuda"]

# Where dropout stands, by the name of the regularizer.
PLACEMENTS: dict[str, Placement] = {"dropout": "every", "dropout_before": "before", "dropout_last": "last"}
REGULARIZERS = (*PLACEMENTS, "l1", "l2")


def canonical_regularizer(text: str) -> str:
    """Return a regularizer's one spelling: "none", or a sum such as "dropout+l2" in a fixed order."""
    parts = [part.strip() for part in text.split("+")]
    if parts == ["none"]:
        return "none"
    for part in parts:
        if part not in REGULARIZERS:
            raise ValueError(
                f"expected 'none' or a sum of {', '.join(REGULARIZERS)} such as 'dropout+l2', got {text!r}"
            )
    dropouts = [part for part in PLACEMENTS if part in parts]
    if len(dropouts) > 1:
        raise ValueError(f"expected dropout in one place, got {' and '.join(dropouts)}")
    return "+".join(name for name in REGULARIZERS if name in parts)


Regularizer = Annotated[str, AfterValidator(canonical_regularizer)]
BatchSize = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]  # the generators' own seeds, made of this and the epoch, have 64 bits

PATCHES_PER_VOLUME = 4  # in an epoch


class CommonSettings(BaseModel):
    """What every run of a study shares; arms differ only in what they study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str
    data: str | None = Field(default=None, description="a MedMNIST .npz, a manifest.csv or its folder")
    classes: list[str] | None = Field(default=None, description="class names, in the order of their numbers")
    split_seed: int = Field(default=0, ge=0, description="seed of the split by patient, where data names none")
    image_size: list[int] | None = Field(default=None, description="resample every image to this size, in voxels")
    folds: int = Field(
        default=0, ge=0, description="cross-validate over so many folds of patients; 0: the data's splits"
    )
    holdout_site: str | None = Field(default=None, description="test on this site, train on the others; or each")
    network: str = Field(description="a name, or package.module:factory for a network of one's own")
    scaling: Scaling | None = Field(
        default=None, description="standardize each image, or all by the training images; None: as the task does"
    )
    patch_size: list[int] | None = Field(default=None, description="train on patches, predict by sliding windows")
    patches_per_volume: int = Field(default=PATCHES_PER_VOLUME, ge=1, description="patches of each volume in an epoch")
    epochs: int = Field(ge=1)
    optimizer: Optimizer = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    dropout: float = Field(default=0.25, ge=0, lt=1, description="share dropped, where the regularizer has dropout")
    l1: float = Field(default=1e-5, ge=0, description="penalty l1·Σ|w| on weights, where the regularizer has l1")
    l2: float = Field(default=1e-3, ge=0, description="penalty l2/2·Σw² on weights, where the regularizer has l2")
    device: Device = "auto"
    lean: bool = Field(default=False, description="compute activations again in the backward pass: less memory")
    tensorboard: bool = False


def prepare(settings: CommonSettings) -> Prepared:
    """Read, check and divide the images that settings speak of; see `Task.prepare`."""
    return find_task(settings.task).prepare(
        settings.data,
        settings.classes,
        settings.split_seed,
        settings.image_size,
        settings.folds,
        settings.holdout_site,
    )


class RunSettings(CommonSettings):
    """One run."""

    norm: Norm
    regularizer: Regularizer
    batch_size: BatchSize
    train_share: Share = 1.0
    fold: str = ""
    deeper: bool = False
    spacing: list[float] | None = Field(default=None, description="of the training volumes, in mm")
    orientation: str | None = Field(default=None, description="of the training volumes, such as RAS")
    sites: list[str] | None = Field(default=None, description="of the images, where the norm keeps statistics of each")
    seed: Seed
    digest: str = Field(
        default="", description="SHA-256 of all images and targets: a run goes on with the same ones only"
    )

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        parts = [self.norm, self.regularizer, f"b{self.batch_size}", f"s{self.seed}"]
        parts += ["deeper"] * self.deeper + [f"t{self.train_share!r}"] * (self.train_share < 1)
        return "-".join(parts + ([f"f{quote(self.fold, safe='')}"] if self.fold else []))  # a site may be named a/b

    @property
    def placement(self) -> Placement | None:
        """Where the network has dropout; None where the arm has none."""
        found = [PLACEMENTS[part] for part in self.regularizer.split("+") if part in PLACEMENTS]
        return found[0] if found and self.dropout > 0 else None

    @property
    def dropout_rate(self) -> float:
        """Dropout of the network: 0 where the arm has none."""
        return self.dropout if self.placement else 0.0


Settings = TypeVar("Settings", bound=CommonSettings)


def validated(kind: type[Settings], values: Mapping[str, Any], source: str) -> Settings:
    """Build settings, turning the first thing wrong into one line that names `source`.

    Raises:
        ConfigError: an unknown key (its nearest known one is named), a wrong type, or a value out of range.

    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(kind.model_fields)}."
            raise ConfigError(f"{source}: unknown key {key!r}. {hint}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{source}: {key} is missing.") from None
        where = f"{source}: {key}" if key else source
        if first["type"] == "value_error":  # one of ours, which names what came
            raise ConfigError(f"{where}: {first['ctx']['error']}.") from None
        message = first["msg"]
        raise ConfigError(f"{where}: {message[0].lower() + message[1:]}, got {first['input']!r}.") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: it is missing, unreadable, or no TOML.

    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
