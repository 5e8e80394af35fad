"""Turn the normalization layers of a network into another kind, and keep all that can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mednorm.errors import ConfigError
from mednorm.layers import BatchNorm
from mednorm.lean import is_lean, make_lean, make_ordinary
from mednorm.surgery.conversion import NOT_ASKED_FOR, ConversionReport, LeftLayer, kind_of
from mednorm.surgery.copying import copied
from mednorm.surgery.families import Norm, recognize
from mednorm.surgery.flow import named
from mednorm.surgery.fuse import Fusions, find_fusions
from mednorm.surgery.plan import Plan
from mednorm.surgery.request import check_request
from mednorm.surgery.where import Where, chosen


def convert(
    model: nn.Module,
    to: str,
    *,
    where: Where | None = None,
    inplace: bool = True,
    fuse_activation: bool = False,
    lean: bool | None = None,
    dims: int | None = None,
    example: Sequence[Any] | None = None,
    **options: Any,
) -> ConversionReport:
    """Convert every normalization layer of a network to another kind.

    ============  =====================================================  ==========================================
    to            becomes                                                options
    ============  =====================================================  ==========================================
    ``batch``     `BatchNorm`                                            momentum
    ``sync``      `BatchNorm` over all processes, or `process_group`     momentum, process_group (None: all)
    ``renorm``    `BatchRenorm`                                          and r_max, d_max, schedule, total_steps
    ``ghost``     `GhostBatchNorm`                                       and ghost_size
    ``moving``    `MovingBatchNorm`                                      and refresh_every, window, centering
    ``range``     `RangeBatchNorm`                                       momentum, process_group
    ``domain``    `DomainBatchNorm`                                      and domains (needed), domain_affine
    ``frozen``    `FrozenBatchNorm`                                      momentum, process_group
    ``group``     ``nn.GroupNorm``, 8 groups, or the largest number      num_groups
                  below that divides the channels
    ``layer``     ``nn.GroupNorm(1, C)``: over channels and space        none
    ``instance``  ``nn.InstanceNorm1d/2d/3d``                            track_running_stats, momentum
    ``torch``     ``nn.BatchNorm1d/2d/3d``, or ``nn.SyncBatchNorm``      momentum
                  where the layer once was one
    ============  =====================================================  ==========================================

    Found by type are torch's and our batch normalization, ``nn.GroupNorm`` and ``nn.InstanceNorm``. A layer changes
    its class where it stands, as torch's lazy modules do: it stays the same object, so that optimizers, hooks and
    their handles, layers used twice and lists on the side keep what they hold. γ and β stay the same parameters; eps,
    momentum, running statistics, `training`, dtype and device stay, and all that a user hung onto the layer.
    What is asked for and impossible is found out before anything is changed.

    Between the kinds with running statistics evaluation stays equal. Group, instance and layer normalization keep
    none, so γ and β alone carry over, either way: the report says so, layer by layer.

    Args:
        model: the network, or one layer.
        to: the kind, see above.
        where: which layers: a name, which stands for all below it too, or a pattern such as ``"encoder.*"``; several
            of them; a function of name and module; None for all.
        inplace: change `model` itself; False for a copy.
        fuse_activation: let each layer take in the ReLU or leaky ReLU after it, where nothing else takes the layer's
            output; the activation becomes an ``nn.Identity``. See the note. Turning such a layer into one that has no
            place for an activation gives it back.
        lean: let the network keep less for its backward pass whenever it trains, as within `lean_activations`: True or
            False; by default it stays as it is. A network without any of our layers left is lean no longer.
        dims: number of spatial axes, 1 to 3, for layers of which nothing says it: ``torch`` and ``instance`` need it.
            By default that of the convolutions.
        example: the network's positional inputs; helps to find activations where ``torch.fx`` cannot trace it.
        **options: keywords of the new layers, see above; what is not given stays as it was.

    Returns:
        What was changed and left, each with the reason.

    Raises:
        ConfigError: an unknown target or option, one out of its range, `where` names nothing, `dims` is needed, it is
            called within `mednorm.accumulate`, or the network cannot be copied for ``inplace=False``. The network is
            as it was.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> print(convert(network, "renorm", fuse_activation=True, r_max=2.0))
        1 layer converted to renorm; outputs in evaluation are equal.
          1  BatchNorm2d -> BatchRenorm + relu  exact    [1]
          1. Takes in the activation after it.
        >>> network[1].r_max, network[2]
        (2.0, Identity())
        >>> report = convert(network, "torch")
        >>> network
        Sequential(
          (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
          (2): ReLU()
        )

    Note:
        Equal in evaluation does not mean equal in training: how the batch is used there is what differs. A pretrained
        network converted to ``group`` must be trained before it says anything.

        What follows a layer, for `fuse_activation`, is read from the network's code in training and in evaluation: with
        True and with False for arguments that are one of them by default, and with the defaults of others, which the
        report names. A network whose code cannot be traced is watched on `example`, in evaluation; paths that it did
        not take there are not seen, and the report says so. Public methods besides ``forward`` are not run: a layer
        that one of them seems to use without its activation takes in none.

    """
    check_request(to, dims, fuse_activation, lean, options)
    model = model if inplace or not isinstance(model, nn.Module) else copied(model, "convert")
    picked = {id(module) for _, module in chosen(model, where, "convert")}
    _check_nothing_waits(model)
    plan = Plan(model, to, options, dims)
    names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
    found = {name: recognize(module) for name, module in model.named_modules()}
    norms = [norm for norm in found.values() if isinstance(norm, Norm) and id(norm.module) in picked]
    fusions = find_fusions(model, norms, example) if fuse_activation else Fusions()
    for name, norm in found.items():
        shown = name or type(model).__name__
        if isinstance(norm, str):
            plan.left.append(LeftLayer(shown, type(model.get_submodule(name)).__name__, norm))
        elif norm is not None and id(norm.module) not in picked:
            plan.left.append(LeftLayer(shown, kind_of(norm.module), NOT_ASKED_FOR))
        elif norm is not None:
            plan.prepare(shown, norm, fusions.by_norm.get(id(norm.module)), fusions.reasons.get(name, ""))
    plan.left += [LeftLayer(names[id(module)], type(module).__name__, reason) for module, reason in fusions.left]
    model = plan.apply()
    notes = (*fusions.notes, *_settle_lean(model, lean), *(_wrappings(model) if plan.steps else ()))
    return ConversionReport(model, to, tuple(plan.changed), tuple(plan.left), notes)


def _check_nothing_waits(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and module.accumulating:
            raise ConfigError(
                f"convert: expected a network outside of mednorm.accumulate, got {named(module, name)} within, whose "
                "batches that wait for the end of a step would be lost. Convert before or after. Nothing was changed."
            )


def _settle_lean(model: nn.Module, lean: bool | None) -> tuple[str, ...]:
    was, ours = is_lean(model), any(isinstance(module, BatchNorm) for module in model.modules())
    if lean and ours:
        make_lean(model)
        return () if was else ("Lean: outputs of normalization are computed again in the backward pass, not kept.",)
    if lean is False or not ours:
        make_ordinary(model)
    if lean:
        return ("Not lean: it has none of our layers.",)
    return ("No longer lean.",) if was and not is_lean(model) else ()


def _wrappings(model: nn.Module) -> tuple[str, ...]:
    kinds = {type(module).__name__ for module in model.modules()}
    notes = []
    if "DistributedDataParallel" in kinds:
        notes.append("DistributedDataParallel listed parameters and buffers when it was built: build it again.")
    if "OptimizedModule" in kinds or any(module._compiled_call_impl is not None for module in model.modules()):
        notes.append("The network is compiled: the next call compiles it anew.")
    return tuple(notes)
