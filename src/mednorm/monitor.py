"""A Lightning callback that looks at the normalization while a network trains."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mednorm.errors import ConfigError, MissingExtraError
from mednorm.examine.findings import SEVERITIES, Finding, Rule
from mednorm.examine.order import chosen, ordered
from mednorm.examine.recorder import Recorder
from mednorm.examine.records import BatchesSeen, Layer, Probed, Seen, Surroundings
from mednorm.examine.rules import RULES
from mednorm.examine.rules.noise import median, noise
from mednorm.examine.state import state_of
from mednorm.examine.surroundings import surroundings
from mednorm.population.distance import distance

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities import rank_zero_warn
except ModuleNotFoundError:
    raise MissingExtraError('lightning: not installed. Run: pip install "mednorm[study]"') from None

# Those that what passes by in training can answer. The others need evaluation mode, sites or dropout switched off; and
# in the middle of a training statistics lag behind the weights whatever one does.
_CHEAP = ("MN003", "MN005", "MN006", "MN008", "MN009", "MN010", "MN011", "MN012", "MN013")
# What is said of images rests on so many at least: fewer in a batch are pooled over several looks.
_IMAGES = 16


class NormMonitor(Callback):
    """Watch the normalization layers of a training: the cheap rules of `mednorm.examine`, to the trainer's loggers.

    At its interval the callback measures what reaches each layer in one ordinary training step. It draws no random
    number and computes nothing in the network's place: the weights become those of a training without it, bit by bit.
    Memory does not grow. With several processes the first one looks, at its own images.

    To each logger go ``norm/findings/error``, ``…/warning`` and ``…/info``, how many there are now; and for each group
    of layers, which is the first part of their names after what all have in common, ``norm/GROUP/noise``, the largest
    noise of the batch statistics in σ, and ``norm/GROUP/distance``, the median distance of the running statistics from
    the batch's in σ. Each rule that finds a warning or an error says so once.

    The rules asked are MN003, MN005, MN006 and MN008 to MN013. A network compiled by ``torch.compile`` hides what
    reaches its layers; then those are answered that look at what a layer holds.

    Args:
        every_n_steps: optimizer steps from one look to the next, at least 1.
        select: codes or names of the rules to ask; None for all of these.
        ignore: likewise, of those not to ask.
        budget: share of the training's time, in (0, 1], that looks may take: one that comes before the time of those
            before it is made up for is left out. None for every look. The first, which compiles, is not counted.

    Attributes:
        findings: of the last look, the gravest first.

    Raises:
        ConfigError: `every_n_steps` is no whole number of at least 1, `budget` is no share, or a rule is none of these.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(
        ...     callbacks=[NormMonitor(every_n_steps=100, ignore="MN008")], logger=False, enable_checkpointing=False,
        ...     accelerator="cpu",
        ... )

    """

    def __init__(
        self,
        every_n_steps: int = 50,
        select: str | Iterable[str] | None = None,
        ignore: str | Iterable[str] | None = None,
        budget: float | None = 0.03,
    ) -> None:
        if not isinstance(every_n_steps, Integral) or isinstance(every_n_steps, bool) or every_n_steps < 1:
            raise ConfigError(
                f"NormMonitor: expected every_n_steps to be a whole number of at least 1, got {every_n_steps!r}."
            )
        if budget is not None and not 0 < budget <= 1:
            raise ConfigError(f"NormMonitor: expected budget to be a share in (0, 1] or None, got {budget!r}.")
        self.every_n_steps: int = every_n_steps
        self.budget: float | None = budget
        self.findings: tuple[Finding, ...] = ()
        self._rules: tuple[Rule, ...] = chosen([rule for rule in RULES if rule.code in _CHEAP], select, ignore)
        self._said: set[str] = set()
        self._around: dict[str, Surroundings] = {}
        self._open: ExitStack = ExitStack()
        self._forget()

    def _forget(self) -> None:
        self._recorder: Recorder | None = None
        self._images = 0
        self._looked = -1
        self._passes = 0  # backward passes in the step: several where the optimizer asks for the loss again, as LBFGS
        self._times = _Times()
        self._before: dict[str, int | None] | None = None  # updates of each layer, during a step that is looked at
        self._seen: dict[str, tuple[Seen | None, BatchesSeen | None]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what is around the layers."""
        self._forget()
        self._looked = trainer.global_step - 1
        self._around = _around(pl_module, trainer.optimizers) if trainer.is_global_zero else {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to measure if it is time."""
        self._times.begin()
        self._passes = 0
        step = trainer.global_step
        # By intervals that have been crossed: with two optimizers a batch may take two steps.
        due = (step + 1) // self.every_n_steps > (self._looked + 1) // self.every_n_steps
        if not trainer.is_global_zero or not due:
            return
        self._looked = step
        if self.budget is not None and self._times.share > self.budget:
            return
        self._recorder = self._recorder or Recorder(pl_module)
        self._before = _updates(self._recorder)
        self._open.enter_context(self._recorder)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """End to measure: checkpoints call layers again from here on."""
        self._open.close()
        self._passes += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge what was measured."""
        self._open.close()
        before, recorder, self._before = self._before, self._recorder, None
        if before is None or recorder is None:
            self._times.end(looked=False)
            return
        images = _size(batch)
        recorder.end(images, (None,) * images)
        self._images += images
        if self._images >= _IMAGES:
            self._seen = {name: (recorder.seen(name), recorder.batches(name)) for name in recorder.layers}
            self._recorder, self._images = None, 0
        moved = {
            name: None if now is None or was is None else math.ceil((now - was) / max(1, self._passes))
            for (name, now), was in zip(_updates(recorder).items(), before.values(), strict=True)
        }
        if not pl_module.automatic_optimization:  # a batch may come in parts, or once for each optimizer
            moved = dict.fromkeys(moved)
        elif trainer.accumulate_grad_batches > 1:  # then layers may wait for the end of the step
            moved = {name: count or None for name, count in moved.items()}
        self._judge(trainer, self._probed(pl_module, recorder, moved, images, trainer.world_size))
        self._times.end(looked=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the network."""
        self._open.close()
        self._forget()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let go of the network."""
        self._open.close()
        self._forget()

    def _probed(
        self, network: nn.Module, recorder: Recorder, moved: dict[str, int | None], images: int, devices: int
    ) -> Probed:
        """Put together what is known."""
        layers = []
        for place, name in enumerate(recorder.order()):
            layer, calls = recorder.layers[name], recorder.calls.get(name, 0)
            seen, batches = self._seen.get(name, (None, None))
            around = replace(
                self._around.get(name, Surroundings()), calls=calls, updates_a_step=moved[name] if calls else None
            )
            layers.append(
                Layer(
                    name=name,
                    kind=type(layer).__name__,
                    place=place,
                    channels=layer.num_features,
                    dtype=recorder.dtypes.get(name),
                    state=state_of(layer),
                    around=around,
                    seen=seen,
                    batches=batches,
                )
            )
        return Probed(type(network).__name__, tuple(layers), images, images, devices, {}, None, own_statistics=True)

    def _judge(self, trainer: pl.Trainer, probed: Probed) -> None:
        findings = (finding for rule in self._rules for finding in rule.check(probed))
        self.findings = ordered(findings, probed, self._rules)
        for finding in self.findings:
            if finding.code not in self._said and finding.severity != "info":
                self._said.add(finding.code)
                where = f" in {finding.layer}" if finding.layer else ""
                rank_zero_warn(f"NormMonitor: {finding.code}{where}: {finding.message} Mended by: {finding.remedy}")
        scalars = _scalars(probed, self.findings)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)


class _Times:
    """What looks cost: how much longer a step took than the one without a look before it."""

    def __init__(self) -> None:
        self.started = self.begun = time.perf_counter()
        self.ordinary: float | None = None
        self.looks, self.spent = 0, 0.0

    @property
    def share(self) -> float:
        """Of the time so far."""
        return self.spent / max(time.perf_counter() - self.started, 1e-9)

    def begin(self) -> None:
        """Begin a step."""
        self.begun = time.perf_counter()

    def end(self, looked: bool) -> None:
        """End it."""
        taken = time.perf_counter() - self.begun
        if not looked:
            self.ordinary = taken
            return
        self.looks += 1
        if self.looks > 1:
            self.spent += max(0.0, taken - (self.ordinary or 0.0))


def _around(module: nn.Module, optimizers: list[Any]) -> dict[str, Surroundings]:
    """Read the surroundings of the layers within each child: what a LightningModule itself does is no network."""
    found: dict[str, Surroundings] = {}
    for optimizer in optimizers or [None]:
        for prefix, child in module.named_children():
            for name, around in surroundings(child, None, optimizer).items():
                full = f"{prefix}.{name}" if name else prefix
                known = found.get(full, around)
                found[full] = replace(
                    around,
                    before=_under(prefix, around.before),
                    dropout_before=_under(prefix, around.dropout_before),
                    decay=max((x for x in (known.decay, around.decay) if x is not None), default=None),
                    decay_before=max(
                        (x for x in (known.decay_before, around.decay_before) if x is not None), default=None
                    ),
                )
    return found


def _under(prefix: str, name: str | None) -> str | None:
    return None if name is None else f"{prefix}.{name}" if name else prefix


def _updates(recorder: Recorder) -> dict[str, int | None]:
    """Return how often each layer was updated so far, as it counted."""
    return {
        name: None if (n := layer.num_batches_tracked) is None else int(n) for name, layer in recorder.layers.items()
    }


def _size(batch: Any) -> int:
    """Return how many images a batch holds; of the first tensor that can hold images."""
    tensors = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim()]
    return next((len(x) for x in tensors if x.dim() > 1), len(tensors[0]) if tensors else 1)


def _scalars(probed: Probed, findings: tuple[Finding, ...]) -> dict[str, float]:
    """Return what goes to the loggers."""
    scalars = {
        f"norm/findings/{severity}": float(sum(finding.severity == severity for finding in findings))
        for severity in SEVERITIES
    }
    noises: dict[str, list[float]] = {}
    distances: dict[str, list[float]] = {}
    for group, layer in _groups(probed.layers):
        state, seen = layer.state, layer.seen
        if seen is None or seen.images < 2:
            continue
        noises.setdefault(group, []).append(noise(seen, probed.batch_size))
        if state.running_mean is not None and state.running_var is not None:
            apart = distance(seen.moments, state.running_mean, state.running_var, state.eps)
            distances.setdefault(group, []).append(median(apart))
    scalars |= {f"norm/{group}/noise": max(values) for group, values in noises.items()}
    scalars |= {f"norm/{group}/distance": sorted(values)[len(values) // 2] for group, values in distances.items()}
    return {name: value for name, value in scalars.items() if value == value}


def _groups(layers: tuple[Layer, ...]) -> list[tuple[str, Layer]]:
    """Name the group of each layer: the first part of its name after what all names have in common."""
    parts = [layer.name.split(".") for layer in layers]
    common = 0
    while len({each[common] for each in parts}) == 1 and all(len(each) > common + 1 for each in parts):
        common += 1
    return [(each[common], layer) for each, layer in zip(parts, layers, strict=True)]
