"""What precedes and follows a network's normalization layers, as far as its code or a run of it shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from mednorm.examine.records import Surroundings
from mednorm.population.batches import Batch
from mednorm.surgery.chains import is_identity, pairs_in
from mednorm.surgery.flow import Flow, Step, flows_of

# As they are called in a trace, or by the dispatcher where a network is watched.
_FUNCTIONS = {
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_sigmoid", "logsigmoid", "mish"),
    *("prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"),
}
_LINEAR = {
    *("addmm", "baddbmm", "bilinear", "bmm", "conv1d", "conv2d", "conv3d", "convolution", "einsum", "linear"),
    *("matmul", "mm"),
}


def surroundings(
    network: nn.Module, example: Batch | None = None, optimizer: Optimizer | None = None
) -> dict[str, Surroundings]:
    """Say of each batch normalization layer what precedes and follows it, where that is certain.

    The network is traced, or where that fails watched on the example; what neither shows stays None. A dropout counts
    that reaches a layer through at most one convolution or linear layer, whatever else lies between, but no other
    normalization. Only modules of dropout are seen, no functions.

    Args:
        network: left as it is.
        example: a small batch.
        optimizer: for the weight decay; a parameter that it does not have has none.

    Returns:
        By the layer's name.

    Example:
        >>> network = nn.Sequential(nn.Dropout(0.2), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        >>> around = surroundings(network)["2"]
        >>> around.before, around.before_has_bias, around.dropout_before, around.activation
        ('1', True, '0', 'ReLU')

    """
    inner, prefix = _unwrapped(network)
    found = _Around(inner, _flows(inner, example))
    modules = dict(inner.named_modules())
    decays = {id(p): float(group.get("weight_decay", 0)) for group in _groups(optimizer) for p in group["params"]}

    def decay(parameters: list[nn.Parameter]) -> float | None:
        return None if optimizer is None else max((decays.get(id(each), 0.0) for each in parameters), default=0.0)

    around = {}
    for name, layer in modules.items():
        if not isinstance(layer, _BatchNorm):
            continue
        before, dropout = found.before.get(name), found.dropout(name)
        linear = None if before is None else modules[before]
        around[prefix + name] = Surroundings(
            before=None if before is None else prefix + before,
            before_has_bias=getattr(linear, "bias", None) is not None,
            before_learns=None if linear is None else linear.weight.requires_grad,
            dropout_before=None if dropout is None else prefix + dropout,
            dropout_rate=0.0 if dropout is None else float(modules[dropout].p),
            activation=getattr(layer, "activation", None) or found.activation(name),
            decay=decay(list(layer.parameters(recurse=False))),
            decay_before=None if linear is None else decay([linear.weight]),
        )
    return around


class _Around:
    """What the flows of a network show of the layers in it."""

    def __init__(self, model: nn.Module, flows: list[Flow]) -> None:
        self.modules = dict(model.named_modules())
        self.flows = flows
        self.users = [[_users(graph.steps) for graph in flow.graphs] for flow in flows]
        pairs = pairs_in(model, flows, _is_linear, lambda module: isinstance(module, _BatchNorm)).pairs
        self.before = {second: first for first, second in pairs}

    def dropout(self, name: str) -> str | None:
        """Name the nearest dropout that reaches a layer."""
        found = (self._dropout_above(steps, place) for steps, _, place in self._calls(name))
        return next((dropout for dropout in found if dropout), None)

    def activation(self, name: str) -> str | None:
        """Say what activation follows a layer at every call, and nothing else."""
        found = {self._activation_below(steps, users, place) for steps, users, place in self._calls(name)}
        return found.pop() if len(found) == 1 else None

    def _calls(self, name: str) -> Iterator[tuple[list[Step], list[list[int]], int]]:
        for flow, all_users in zip(self.flows, self.users, strict=True):
            for graph, users in zip(flow.graphs, all_users, strict=True):
                for place, step in enumerate(graph.steps):
                    if step.layer == name:
                        yield graph.steps, users, place

    def _dropout_above(self, steps: list[Step], place: int) -> str | None:
        waiting = deque((source, False) for source in steps[place].inputs)
        seen = set()
        while waiting:
            here, past_linear = waiting.popleft()
            step = steps[here]
            module = None if step.layer is None else self.modules[step.layer]
            linear = _is_linear(module) or (module is None and step.text in _LINEAR)
            if (here, past_linear) in seen or _is_norm(module) or (linear and past_linear):
                continue
            seen.add((here, past_linear))
            if isinstance(module, _DropoutNd) and module.p > 0:
                return step.layer
            # What another layer that learns makes of it, such as attention, is not known.
            if linear or module is None or isinstance(module, nn.PReLU) or not any(True for _ in module.parameters()):
                waiting.extend((source, past_linear or linear) for source in step.inputs)
        return None

    def _activation_below(self, steps: list[Step], users: list[list[int]], place: int) -> str | None:
        while len(users[place]) == 1:
            place = users[place][0]
            step = steps[place]
            if step.layer is None:
                return step.text if step.text in _FUNCTIONS else None
            module = self.modules[step.layer]
            if _is_activation(module):
                return type(module).__name__
            if not (is_identity(module) or isinstance(module, _DropoutNd)):
                return None
        return None


def _flows(model: nn.Module, example: Batch | None) -> list[Flow]:
    def leaf(module: nn.Module) -> bool:
        alone = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
        return isinstance(module, _BatchNorm) or (alone and module is not model)

    try:
        return flows_of(model, leaf, None if example is None else example.inputs)
    except Exception:  # whatever the network's own code does when it is watched: then nothing is known
        return []


def _unwrapped(network: nn.Module) -> tuple[nn.Module, str]:
    """Return what a wrapper of PyTorch's holds, and the beginning of its modules' names in it."""
    prefix = ""
    while True:
        if isinstance(network, DataParallel | DistributedDataParallel):
            network, prefix = network.module, f"{prefix}module."
        elif isinstance(inner := network._modules.get("_orig_mod"), nn.Module):  # compiled
            network, prefix = inner, f"{prefix}_orig_mod."
        else:
            return network, prefix


def _groups(optimizer: Optimizer | None) -> list[dict[str, Any]]:
    return [] if optimizer is None else optimizer.param_groups


def _users(steps: list[Step]) -> list[list[int]]:
    users: list[list[int]] = [[] for _ in steps]
    for place, step in enumerate(steps):
        for source in step.inputs:
            users[source].append(place)
    return users


def _is_linear(module: nn.Module | None) -> bool:
    return isinstance(module, _ConvNd | nn.Linear)


def _is_norm(module: nn.Module | None) -> bool:
    return isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm)


def _is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation of PyTorch's or, by where it is defined, of MONAI's and others'."""
    return "activation" in type(module).__module__ and not isinstance(module, nn.MultiheadAttention)
