"""Networks to look at, what reaches their layers, and every bit they hold."""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm import BatchNorm
from mednorm.guards import evaluation_mode
from mednorm.population.batches import call


def head():
    """2-D: two convolutions, and a norm of single values behind the pooling."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)),
        *(nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 2)),
    )


def volume_network():
    """3-D, with our layers, the activation within them."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv3d(1, 3, 3, padding=1), BatchNorm(3, activation="relu")),
        *(nn.Conv3d(3, 2, 1), BatchNorm(2), nn.Conv3d(2, 1, 1)),
    )


def inputs_of(network, batches):
    """Return the inputs of each layer, call by call, as (N, C, S) in float64."""
    reached = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: (
                reached.setdefault(name, []).append(args[0].double().flatten(2).numpy())
                if args[0].dim() > 2
                else reached.setdefault(name, []).append(args[0].double()[..., None].numpy())
            )
        )
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
    ]
    with evaluation_mode(network):
        for batch in batches:
            call(network, batch)
    for handle in handles:
        handle.remove()
    return reached


def everything(network):
    """Return every bit that looking at a network could change, its random generators included."""
    modules = [
        (
            module.training,
            {name: id(buffer) for name, buffer in module._buffers.items()},
            *(len(hooks) for key, hooks in vars(module).items() if key.endswith("hooks")),
            id(getattr(module, "batch_moments", None)),
        )
        for module in network.modules()
    ]
    tensors = {
        name: tensor.detach().numpy().tobytes()
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    gradients = {
        name: None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes())
        for name, p in network.named_parameters()
    }
    state = np.random.get_state()  # noqa: NPY002
    randoms = torch.get_rng_state().tolist(), random.getstate(), state[1].tolist(), state[2:]
    return copy.deepcopy((modules, tensors, gradients, randoms))
