"""Hold batch normalization still while the rest of a network trains, and let it go again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.hooks import RemovableHandle

from mednorm.errors import ConfigError
from mednorm.surgery.freezing import FreezeReport, FrozenLayer
from mednorm.surgery.where import Where, chosen


@dataclass
class _Hold:
    """What a layer remembers while it is frozen; it travels with the layer's copies and pickles."""

    # The handles come along so that a hook registered after unpickling gets a number of its own.
    hooks: tuple[RemovableHandle, ...] = ()
    requires_grad: dict[str, bool] = field(default_factory=dict)


def freeze(
    model: nn.Module, statistics: bool = True, affine: bool = False, *, where: Where | None = None
) -> FreezeReport:
    r"""Keep the running statistics of batch normalization, γ and β, or all of them, as they are while a network trains.

    .. math:: y = \gamma\,\frac{x-\mu_{\text{running}}}{\sqrt{\sigma^2_{\text{running}}+\epsilon}} + \beta
              \qquad\text{in training too}

    A layer with frozen statistics runs each forward pass in evaluation mode and has its own mode back afterwards. So
    ``model.train()`` does not undo it, nothing of the layer is changed (momentum, buffers and the keys of the
    state_dict stay), loading a state_dict leaves it frozen, and copies and pickles of the network are frozen as well.
    Nor does ``reset_running_stats``, which then does nothing: so ``torch.optim.swa_utils.update_bn`` leaves the layer
    alone and renews the statistics of the others.
    A state_dict does not say that a layer is frozen: freeze again after building the network anew. ``torch.jit.script``
    cannot read what holds it: unfreeze before, as evaluation needs none of it.

    Layers are found by type, at every rank: each ``torch.nn.modules.batchnorm._BatchNorm``, torch's and ours, and
    instance normalization that keeps running statistics. The last call counts: freezing a layer again sets what is
    held to what that call says. Freeze γ and β before wrapping the network in DistributedDataParallel, which expects
    a gradient of whatever could have one when it was built; statistics may be frozen after.

    Args:
        model: the network, or one layer.
        statistics: hold the running statistics and normalize with them.
        affine: hold γ and β, that is every parameter of the layer: ``requires_grad`` is off, gradients so far are
            dropped.
        where: which layers: a pattern such as ``"encoder.*"`` (a name alone stands for all below it too), a sequence
            of them, or a function of name and module; None for all.

    Returns:
        Names of what was frozen; a network without such layers is said aloud in its text.

    Raises:
        ConfigError: nothing is to be held, or `where` names no module.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> print(freeze(network))
        1 layer frozen.
          1  BatchNorm2d  statistics
        >>> import torch
        >>> _ = network.train()(torch.randn(2, 1, 8, 8))
        >>> network[1].running_mean
        tensor([0., 0., 0., 0.])

    Note:
        Fine-tuning with the two or four volumes that fit into memory moves the statistics of a pretrained network
        towards those few patients. Frozen statistics keep what many images taught, as long as the new images look
        like the old; where they do not, recalibrate first.

    Reference:
        Wu & Johnson (2021), "Rethinking 'Batch' in BatchNorm", section 5.

    """
    if not statistics and not affine:
        raise ConfigError(
            f"freeze: expected statistics or affine to be true, got statistics={statistics!r}, affine={affine!r}. "
            "To let layers go, call unfreeze."
        )
    held, left = [], []
    for name, module in chosen(model, where, "freeze"):
        if not isinstance(module, _BatchNorm | _InstanceNorm):
            continue
        kind = type(module).__name__
        reason = _why_not(module) if statistics else ""
        learned = not isinstance(module, LazyModuleMixin) and any(True for _ in module.parameters(recurse=False))
        hold_statistics, hold_affine = statistics and not reason, affine and learned
        if not statistics and not learned:
            reason = "it has no γ and β yet, or none at all"
        if reason:
            left.append(FrozenLayer(name, kind, statistics=False, affine=hold_affine, reason=reason))
        if hold_statistics or hold_affine:
            held.append((module, FrozenLayer(name, kind, hold_statistics, hold_affine)))
    for module, layer in held:
        hold = module.__dict__.setdefault("_mednorm_frozen", _Hold())
        _hold_statistics(module, hold, layer.statistics)
    _hold_parameters(model, [module for module, layer in held if layer.affine])
    _release_parameters(model, [module for module, layer in held if not layer.affine])
    return FreezeReport("frozen", tuple(layer for _, layer in held), tuple(left))


def unfreeze(model: nn.Module, where: Where | None = None) -> FreezeReport:
    """Undo `freeze`: statistics move again, and each γ and β requires a gradient if it did before.

    Args:
        model: the network, or one layer.
        where: as in `freeze`.

    Returns:
        Names of what was let go; that nothing was frozen is said aloud in its text.

    Raises:
        ConfigError: `where` names no module.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm3d(2))
        >>> report = freeze(network, affine=True)
        >>> unfreeze(network).names
        ('0',)
        >>> print(unfreeze(network))
        Nothing was unfrozen: found no frozen layer.

    """
    found = [(name, module) for name, module in chosen(model, where, "unfreeze") if _hold_of(module) is not None]
    layers = []
    for name, module in found:
        hold = module.__dict__["_mednorm_frozen"]
        layers.append(FrozenLayer(name, type(module).__name__, bool(hold.hooks), bool(hold.requires_grad)))
        _hold_statistics(module, hold, False)
    _release_parameters(model, [module for _, module in found])
    for _, module in found:
        del module.__dict__["_mednorm_frozen"]
    return FreezeReport("unfrozen", tuple(layers))


def is_frozen(module: nn.Module) -> bool:
    """Say whether `freeze` holds the statistics of a layer, or of every such layer in a network with at least one.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
        >>> report = freeze(network, where="0")
        >>> is_frozen(network[0]), is_frozen(network)
        (True, False)

    """
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm | _InstanceNorm) and not _why_not(part)]
    return bool(layers) and all((hold := _hold_of(layer)) is not None and bool(hold.hooks) for layer in layers)


def adopt_parameters(module: nn.Module, names: list[str]) -> None:
    """Hold parameters that a layer got while its others were frozen, to be let go with them."""
    hold = _hold_of(module)
    if hold is not None and hold.requires_grad:
        for name in names:
            parameter = module._parameters[name]
            if parameter is not None:
                like = hold.requires_grad.get(name.removeprefix("domain_"), parameter.requires_grad)
                hold.requires_grad.setdefault(name, like)
                parameter.requires_grad_(False)


def _why_not(module: nn.Module) -> str:
    """Why the statistics of a layer cannot be held; empty where they can."""
    if isinstance(module, LazyModuleMixin):
        return "it is lazy and has no statistics yet: run one batch first"
    if getattr(module, "running_mean", None) is None:
        return "it keeps no running statistics to normalize with"
    return ""


def _hold_of(module: nn.Module) -> _Hold | None:
    return module.__dict__.get("_mednorm_frozen")


def _hold_statistics(module: nn.Module, hold: _Hold, wanted: bool) -> None:
    if wanted and not hold.hooks:
        before = module.register_forward_pre_hook(_enter_evaluation, prepend=True)
        hold.hooks = (before, module.register_forward_hook(_leave_evaluation, always_call=True))
        # Not the class's own: this goes with the copies and pickles of the layer.
        module.__dict__.setdefault("reset_running_stats", _reset_nothing)
    elif not wanted:
        if module.__dict__.get("reset_running_stats") is _reset_nothing:
            del module.__dict__["reset_running_stats"]
        for handle in hold.hooks:
            handle.remove()
        hold.hooks = ()
        modes = module.__dict__.pop("_mednorm_modes", ())
        if modes:  # Ctrl-C came in the middle of a forward pass
            module.training = modes[0]


def _reset_nothing() -> None:
    """Stand before `reset_running_stats` of a layer whose statistics are held."""


# A tuple on the layer itself: the replicas that DataParallel makes share whatever can be changed in place.
def _enter_evaluation(module: nn.Module, args: Any) -> None:
    module._mednorm_modes = (*getattr(module, "_mednorm_modes", ()), module.training)  # type: ignore[assignment]
    module.training = False


def _leave_evaluation(module: nn.Module, args: Any, output: Any) -> None:
    modes: Any = getattr(module, "_mednorm_modes", ())
    if modes:  # none where another hook raised before ours
        module.training = modes[-1]
        module._mednorm_modes = modes[:-1]


def _holders(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every held parameter, once a layer that holds it, and whether it required a gradient before."""
    for module in model.modules():
        hold = _hold_of(module)
        if hold is not None:
            yield from _held_by(module, hold)


def _held_by(module: nn.Module, hold: _Hold) -> list[tuple[nn.Parameter, bool]]:
    named = ((module._parameters.get(name), required) for name, required in hold.requires_grad.items())
    return [(parameter, required) for parameter, required in named if parameter is not None]


def _hold_parameters(model: nn.Module, modules: list[nn.Module]) -> None:
    # A parameter that two layers share may be held already: what it required before is what the first remembers.
    before = {id(parameter): required for parameter, required in _holders(model)}
    for module in modules:
        hold = module.__dict__["_mednorm_frozen"]
        for name, parameter in module.named_parameters(recurse=False):
            required = before.setdefault(id(parameter), parameter.requires_grad)
            hold.requires_grad.setdefault(name, required)
            parameter.requires_grad_(False)
            parameter.grad = None


def _release_parameters(model: nn.Module, modules: list[nn.Module]) -> None:
    released: list[tuple[nn.Parameter, bool]] = []
    for module in modules:
        hold = module.__dict__["_mednorm_frozen"]
        released += _held_by(module, hold)
        hold.requires_grad = {}
    still_held = {id(parameter) for parameter, _ in _holders(model)}
    for parameter, required in released:
        if id(parameter) not in still_held:
            parameter.requires_grad_(required)
