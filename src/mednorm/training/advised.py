"""A task's network and training images, as a run would have them, ready for `mednorm.advise_batch_size`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mednorm.layers import set_total_steps
from mednorm.lean.network import make_lean
from mednorm.tasks import Prepared, Task
from mednorm.tasks.scaling import fit_input_scaling
from mednorm.training.batches import training_loader
from mednorm.training.evaluation import judging_device
from mednorm.training.examined import PatchBatches
from mednorm.training.patches import patch_loader
from mednorm.training.settings import RunSettings

IMAGES = 256  # that the noise rests on, at most


@dataclass(frozen=True)
class Untrained:
    """What a run begins with.

    Attributes:
        network: the part that a training step runs, on the device of the run.
        loader: batches of training images, or of patches of them, in a random order.
        loss: of logits and targets.

    """

    network: nn.Module
    loader: PatchBatches
    loss: nn.Module


def untrained(settings: RunSettings, task: Task, prepared: Prepared) -> Untrained:
    """Build what a run with these settings would begin with; the batch size is that of the batches.

    Args:
        settings: of the run.
        task: network and loss.
        prepared: the images.

    """
    train = prepared.splits(settings.fold)["train"]
    network = task.network_for(
        prepared.shape_for(settings.patch_size),
        settings.network,
        settings.norm,
        settings.dropout_rate,
        settings.placement,
        settings.scaling,
    )
    fit_input_scaling(network, train.images)
    set_total_steps(network, settings.epochs)
    if settings.lean:
        make_lean(network)
    network.to(judging_device(settings.device))
    each = 1 if settings.patch_size is None else settings.patches_per_volume
    size = min(settings.batch_size, len(train.names)) if settings.patch_size is None else settings.batch_size
    steps = -(-min(IMAGES, len(train.names) * each) // size)
    if settings.patch_size is None:
        return Untrained(network, PatchBatches(training_loader(train, size, 0, steps), train), task.loss())
    patches = patch_loader(train, network.get_submodule("scaling"), settings.patch_size, size, 0, steps)
    return Untrained(network.get_submodule("net"), PatchBatches(patches, train), task.loss())
