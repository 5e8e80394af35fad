"""`mednorm.advise_batch_size`: how many images a training step should have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.advise.advice import Advice
from mednorm.advise.amount import bytes_of, readable
from mednorm.advise.fit import MemoryFit
from mednorm.advise.grow import MARGIN, grow
from mednorm.advise.noise import ENOUGH, MOST, noise_by_size, smallest_sufficient
from mednorm.advise.step import Loss, MakeOptimizer, Trainer, cost_of_weights, largest_images, optimizer_maker
from mednorm.advise.wording import decide
from mednorm.errors import ConfigError
from mednorm.examine.probe import probe
from mednorm.guards import random_state_kept
from mednorm.lean.activations import hooks_are_free
from mednorm.lean.network import is_lean
from mednorm.memory import available, in_use
from mednorm.population.batches import Batches, Prepare, device_of

_LEFT = 0.1  # of what is free, which is not used to find out


def advise_batch_size(
    model: nn.Module,
    loader: Iterable[Any],
    memory: str | float | None = None,
    *,
    loss: Loss | None = None,
    optimizer: str | MakeOptimizer | None = None,
    batch_size: int | None = None,
    image: str = "image",
    label: str | None = "label",
    site: str = "site",
    prepare: Prepare | None = None,
    limit: int | None = None,
    enough: float = ENOUGH,
    seconds: float = 60.0,
    progress: Callable[[str], object] | None = None,
) -> Advice:
    """Say which batch size a network should be trained with: enough images for its statistics, and that fit.

    Peak memory is measured. Whole training steps, with forward and backward pass and the optimizer, run on a copy of
    the network with 1, 2, 4, … images; a line is fitted to the peaks and checked at the largest, left out. No size is
    run whose predicted peak is above the limit or above what the machine has. On Linux the peak is that of the whole
    process, on a GPU what PyTorch holds there: what a training in this process would take.

    Noise is that of rule MN003: how far the statistics of n images lie from those of all, in σ, where the values of
    one image are correlated. It is told of the network as it is now, and changes as that learns; of one that is not
    trained it is a first answer.

    Args:
        model: any network of PyTorch, on the device that it is trained on. It is left bit-identical, whatever happens.
        loader: gives batches, as often as it is iterated; images of the size that is trained on, in a random order.
        memory: that the training may take, such as ``"8GB"`` or bytes; None for what is free now beside what this
            process holds.
        loss: of the outputs and the labels; None for the mean square of the outputs, which needs no labels.
        optimizer: ``"adam"`` (default), ``"adamw"``, ``"sgd"``, a class, or a function of parameters: its state counts.
        batch_size: that is used now, and kept where it is enough and fits; by default the largest of the loader.
        image: key of the images in a dictionary; several keys, with commas between, for several inputs.
        label: key of the labels, None for none.
        site: key of the hospitals or scanners.
        prepare: turns what the loader gives into one of the forms that `mednorm.examine` takes.
        limit: look at so many batches at most for the noise.
        enough: σ; noise below it is good enough. Rule MN003 warns from its default on.
        seconds: that measuring may last, about; at least four sizes are measured.
        progress: called with a line before each thing that takes its time.

    Returns:
        What to do in one sentence, and the figures behind it.

    Raises:
        ConfigError: an amount of memory that is none, or below what weights and gradients need; a network that cannot
            be copied or does not learn; a system that does not tell the peak of a process.
        DataError: a batch of the loader is not one.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> images = [torch.randn(8, 1, 16, 16) for _ in range(4)]
        >>> advice = advise_batch_size(network, images, "64GB", seconds=0)
        >>> advice.smallest_sufficient, advice.action
        (1, 'batch')

    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"advise_batch_size: expected a torch.nn.Module, got {type(model).__name__}.")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1 image or None, got {batch_size!r}.")
    if not enough > 0:
        raise ConfigError(f"enough: expected a noise above 0 σ, got {enough!r}.")
    tell = progress or (lambda line: None)
    make, device = optimizer_maker(optimizer), device_of(model)
    wanted, most = _limits(memory, model, device, in_use(device), states=_STATES.get(optimizer or "adam", 0))
    batches = Batches(loader, device, image=image, label=label, site=site, prepare=prepare, limit=limit)
    batch = largest_images(batches)
    with random_state_kept(model), torch.compiler.set_stance("force_eager"):
        trainer = Trainer(model, batch, loss, make)
        held = trainer.held()  # before the search for noise, which leaves free heap between its blocks
    probed = probe(
        model, batches, compare=0, try_step=False, progress=lambda done: tell(f"noise of the layers: batch {done}")
    )
    sufficient = smallest_sufficient(probed, enough)

    def measured(lean: bool) -> Any:
        return grow(
            (Trainer(model, batch, loss, make, lean=True, held=held) if lean else trainer).measure,
            most,
            held + trainer.state(),
            seconds,
            lambda size: tell(f"memory{', lean' if lean else ''}: {size} image{'s' * (size > 1)} in a step"),
        )

    with random_state_kept(model), torch.compiler.set_stance("force_eager"):
        sizes, memory_fit = measured(lean=False)
        if memory_fit is None:
            raise ConfigError(
                f"memory: expected room for a step of one image, got {readable(most)}, which was not enough. Give "
                "smaller images or patches, or convert the network to be lean."
            )
        largest = fits(memory_fit, wanted)
        lean = None
        if _lean_may_help(model, sufficient, largest, sizes[0].batch_size):
            lean_fit = measured(lean=True)[1]
            lean = None if lean_fit is None else fits(lean_fit, wanted)
    shown = sorted({2**power for power in range(9)} | {max(1, min(largest, MOST))} | {sufficient or 1})
    noise = noise_by_size(probed, shown, enough)
    return decide(
        network=type(model).__name__,
        device=str(device),
        limit=wanted,
        memory=memory_fit,
        measured=sizes,
        noise=noise,
        smallest_sufficient=sufficient,
        largest_that_fits=largest if largest >= sizes[0].batch_size else 0,
        lean_largest=lean,
        batch_size=batch_size or probed.batch_size,
        images=probed.images,
    )


_STATES: dict[Any, int] = {"adam": 2, "adamw": 2, "sgd": 1}


def fits(found: MemoryFit, limit: float) -> int:
    """Return the largest batch that fits with the margin, or with that by which the check of the fit was off."""
    return found.largest(limit, max(MARGIN, abs(found.error or 0.0)))


def _limits(
    memory: str | float | None, model: nn.Module, device: torch.device, held: int | None, states: int
) -> tuple[int, int]:
    """Return the limit of the advice, and that of what is run to find out, which this machine must have."""
    free = available(device)
    here = None if held is None or free is None else held + int((1 - _LEFT) * free)
    if memory is None:
        if here is None:
            raise ConfigError("memory: expected an amount such as '8GB', as this system does not say what is free.")
        wanted = here
    else:
        wanted = bytes_of(memory)
    needed = (held or 0) + cost_of_weights(model, states)
    if wanted <= needed:
        raise ConfigError(
            f"memory: expected more than {readable(needed)}, which this process with weights, gradients and the "
            f"optimizer's state needs without any image, got {readable(wanted)}."
        )
    return wanted, wanted if here is None else min(wanted, here)


def _lean_may_help(model: nn.Module, sufficient: int | None, largest: int, smallest: int) -> bool:
    """Tell whether lean activations are worth a look: a sufficient batch does not fit, and they are not in use."""
    short = largest < smallest or (sufficient is not None and sufficient > largest)
    has_norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    return short and has_norms and hooks_are_free() and not is_lean(model)
