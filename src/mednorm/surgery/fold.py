"""Make batch normalization part of the convolutions and dense layers beside it, for inference."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from mednorm.errors import ConfigError
from mednorm.surgery.affine import Linear
from mednorm.surgery.chains import replace
from mednorm.surgery.copying import copied
from mednorm.surgery.flow import named
from mednorm.surgery.fold_plan import Plan
from mednorm.surgery.fold_report import FoldedLayer as FoldedLayer
from mednorm.surgery.fold_report import FoldReport as FoldReport
from mednorm.surgery.fold_report import LeftNorm as LeftNorm
from mednorm.surgery.fold_report import allowed
from mednorm.surgery.parity import Run, compare


def fold(
    model: nn.Module,
    example: Any = None,
    *,
    inplace: bool = True,
    seed: int = 0,
    tolerance: float | None = None,
) -> FoldReport:
    r"""Fold batch normalization into the convolution or dense layer beside it; the network infers as before, faster.

    With its running statistics batch normalization is :math:`y = s\,x + t` in each channel,

    .. math:: s = \frac{\gamma}{\sqrt{\sigma^2+\epsilon}}, \quad t = \beta - s\,\mu, \qquad
              s\,(W x + b) + t = (sW)\,x + (s\,b + t), \qquad W(s\,x + t) + b = (Ws)\,x + (b + Wt)

    with W and b of the layer before (the middle equation) or after it (the last). Layers before come first:
    convolutions and transposed convolutions of 1 to 3 dimensions, in groups or not, and dense layers. A bias is made
    where there was none. An activation that our layers apply themselves stays, as ``nn.ReLU`` or ``nn.LeakyReLU``.

    Folded is only what is exact, and shown to be: the layer's output goes to the normalization and nowhere else
    (`mednorm.surgery.chains`), at each place where either is used. Left, with the reason: a normalization
    whose input is a sum or a concatenation; one before a convolution that pads with zeros, unless it shifts nothing (a
    zero beside the image would have been t); statistics of each image or each domain; layers with hooks, computed or
    shared weights. All arithmetic is done in float64 and compared on random numbers before anything is written.

    Args:
        model: a network in evaluation mode.
        example: an input of the network, or the tuple of its inputs, to compare the whole network on, before and
            after. It also helps where the network cannot be traced.
        inplace: change `model`; else a copy, in the report.
        seed: of the random numbers.
        tolerance: largest difference, relative to the output; None for what rounding makes of it, 1e-5 in float32.

    Returns:
        The network with what was folded, what was left and why, and the differences. A network with nothing to fold
        is said aloud in its text.

    Raises:
        ConfigError: the network, or a normalization or dropout in it, is in training mode; it does not take the
            example; or outputs differ by more than rounding. The network is then as it was, bit by bit.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> report = fold(network, torch.randn(2, 1, 8, 8))
        >>> [(layer.norm, layer.into, layer.direction) for layer in report.folded], report.equivalent
        ([('1', '0', 'before')], True)
        >>> network
        Sequential(
          (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )

    Note:
        For deployment: fold last, after validation, with a real image as `example`, and keep the report with the
        weights. A folded network cannot be trained on, calibrated on a new site's images, or adapted at test time: the
        statistics are gone. Without `example` a dense layer is taken to see (N, C), not (N, L, C) with L equal to its
        features.

        What the network does is read from its code in evaluation mode, as it is called: with what `example` has, with
        True and with False for arguments that are one of them by default, and with the defaults of the others, which
        the report names. A network whose code cannot be traced is watched on `example` instead; paths that it did not
        take there (other images, other arguments) are not seen, and the report says so. Outputs are compared on
        `example` alone. Other public methods of the network's classes are not run: a layer that one of them seems to
        use without its partner is left.

    Reference:
        Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", section 3.2.

    """
    _check(model, seed, tolerance)
    inputs = None if example is None else _inputs(example)
    if not inplace:
        model = copied(model, "fold")
    run = None if inputs is None else Run(model, inputs, seed)
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    before = [] if run is None else run.outputs(watching=layers)
    plan = Plan(model, inputs, {} if run is None else run.ranks, seed, tolerance)
    with torch.no_grad():
        changes = _Changes(model)
        try:
            changes.apply(plan)
            if run is None:
                return plan.report()
            limit = plan.tolerance_of_all
            worst, scale, equal = compare(before, run.outputs(state="folded "), limit)
            if not equal:
                raise ConfigError(
                    f"fold: expected the network to give the same on the example, within {allowed(limit, scale):.2g} "
                    f"at up to {scale:.3g}, got a difference of {worst:.2g} after folding "
                    f"{', '.join(layer.norm for layer in plan.folded)}. Nothing was changed. If half precision or very "
                    f"large statistics explain it, pass tolerance=."
                )
        except BaseException:
            changes.undo()
            raise
    return plan.report(worst, scale)


class _Changes:
    """Changes of a network that can be undone to the last bit."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps: list[Callable[[], Any]] = []

    def apply(self, plan: Plan) -> None:
        """Write the weights, and take the normalizations out."""
        for name, (weight, bias) in plan.weights.items():
            layer = plan.modules[name]
            assert isinstance(layer, Linear)
            self._write(layer.weight, weight)
            if layer.bias is not None:
                assert bias is not None
                self._write(layer.bias, bias)
            elif bias is not None:
                self.steps.append(partial(layer.register_parameter, "bias", None))
                made = nn.Parameter(bias.to(layer.weight.device), requires_grad=layer.weight.requires_grad)
                layer.register_parameter("bias", made)
        for name, module in plan.replacements.items():
            old = plan.modules[name]
            self.steps.append(partial(replace, self.model, module, old))
            replace(self.model, old, module)

    def undo(self) -> None:
        """Put everything back."""
        for step in reversed(self.steps):
            step()

    def _write(self, parameter: Tensor, values: Tensor) -> None:
        # Other numbers for the same parameter: what the old ones are a view of, if anything, does not change with it.
        self.steps.append(partial(setattr, parameter, "data", parameter.data))
        parameter.data = torch.empty_like(parameter.data).copy_(values)


def _check(model: Any, seed: Any, tolerance: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"fold: expected a network, got {type(model).__name__}. Pass a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"fold: expected a network in Python, got {type(model).__name__}. Fold first, then script or trace."
        )
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise ConfigError(f"fold: expected seed to be a whole number, got {seed!r}.")
    if tolerance is not None and not (isinstance(tolerance, Real) and 0 < float(tolerance) < math.inf):
        raise ConfigError(f"fold: expected tolerance above 0 and finite, or None, got {tolerance!r}.")
    for name, module in model.named_modules():
        if module.training and (module is model or isinstance(module, _NormBase | _DropoutNd)):
            raise ConfigError(
                f"fold: expected a network in evaluation mode, got {named(module, name)} in training mode. Call "
                ".eval() on the network first: its statistics are to become weights."
            )


def _inputs(example: Any) -> tuple[Any, ...]:
    if isinstance(example, Tensor):
        return (example,)
    if isinstance(example, tuple | list) and example and any(isinstance(x, Tensor) for x in tree_leaves(example)):
        return tuple(example)
    raise ConfigError(
        f"fold: expected example to be a tensor or the tuple of the network's inputs, got {type(example).__name__}."
    )
