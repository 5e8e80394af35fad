"""Weights and statistics from Keras to PyTorch and back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import ArrayLike
from torch import nn

from mednorm.errors import ConfigError
from mednorm.surgery import pytorch
from mednorm.surgery.compare import Comparison, checked_input, random_input
from mednorm.surgery.pairs import pair_up
from mednorm.surgery.report import PortedLayer, PortReport

_HINT = (
    "The outputs differ although the weights are the same. Look for: another activation or none after a layer, "
    "padding 'same' (with strides Keras pads more behind than before), pooling, strides or dilation, a Reshape in "
    "place of Flatten, half precision on one side, and layers of the same shape in another order."
)
_CONVERTED = "Moving variances were converted for training on, which alone makes the outputs differ: see the layers."
_VARIANCE = (
    "Moving variances are copied as they are, so inference is equal. In training, Keras's follow the biased variance "
    "of a batch and PyTorch's the unbiased one, n/(n-1) times it: values_per_channel=n converts."
)


def port(
    source: Any,
    target: Any,
    *,
    example: ArrayLike | None = None,
    values_per_channel: int | Mapping[str, int] | None = None,
) -> PortReport:
    r"""Write the weights and statistics of a Keras network or layer into one of PyTorch, or the other way.

    Layers with weights are paired in order: convolutions of 1 to 3 dimensions, dense layers and batch normalization
    (every `torch.nn.modules.batchnorm._BatchNorm`, every `keras.layers.BatchNormalization`). Kernels change their
    layout, a dense layer after a channels-last Flatten the order of its inputs, and

    .. math:: m_{\text{PyTorch}} = 1 - m_{\text{Keras}}, \qquad \epsilon \text{ and } \sigma^2 \text{ stay, or } \qquad
              \sigma^2_{\text{PyTorch}} = \tfrac{n}{n-1}\,\sigma^2_{\text{Keras}}

    with m the momentum and :math:`\sigma^2` the moving variance: inference uses the stored number, whichever estimator
    made it, so by default it stays. Then both run in inference on the same input, and the report says how far their
    outputs are apart. If Keras's network ends in softmax or sigmoid and PyTorch's gives logits, the same function
    is applied to these first.

    Everything is checked, and both networks are run, before anything is written: an error leaves the target as it was.
    The source is only read; the target keeps its device and type.

    Args:
        source: what to read: a built Keras layer or network, or a torch one. It is never changed.
        target: what to write, of the other framework. A compiled Keras network is made to forget the functions it
            traced, which hold the old epsilon; one that merely contains a layer given here is not known, and needs
            ``compile`` again.
        example: a few images in Keras's layout to compare on; random numbers without. Needed where the Keras network
            does not know the size of its input.
        values_per_channel: n, how many values a channel had in a training batch: batch size · height · width. Converts
            moving variances between the two estimators, for training on; or a mapping of layer names, of either side,
            to n, which leaves the others as they are.

    Returns:
        The pairs, notes of what did not carry over, and the difference of the outputs. A difference is not an error:
        see `PortReport.equivalent`.

    Raises:
        ConfigError: not one of each framework; a layer with weights of another kind, not built, or without a
            counterpart; a network with several inputs or outputs, or that cannot take the input.
        ShapeError: two weights differ in shape.
        DataError: a weight is not finite or does not fit the target's type.

    Example:
        >>> import mednorm.keras, numpy, torch
        >>> trained = mednorm.keras.BNLayer(momentum=0.9)
        >>> for seed in range(3):
        ...     out = trained(numpy.random.default_rng(seed).normal(5, 2, (8, 16, 16, 3)), training=True)
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> report = port(trained, norm)
        >>> report.equivalent, norm.eps, norm.momentum
        (True, 0.001, 0.1)

    Note:
        For deployment: train where the data are, run where the hospital's software is. Port, then pass real images as
        `example`, and keep the report with the weights: a network whose normalization is off by an epsilon or by
        Keras's default momentum of 0.99 looks well and errs at the margin.

    """
    to_keras = _direction(source, target)
    # Not above: `import mednorm` imports no Keras, and who has a layer of Keras has imported it already.
    from mednorm.keras import portable, running
    from mednorm.keras.flattened import channels_first

    keras_network, network = (target, source) if to_keras else (source, target)
    here, there = (pytorch, portable) if to_keras else (portable, pytorch)
    found = pair_up(here.parts_of(source), there.parts_of(target), values_per_channel)
    for pair in found if to_keras else ():
        if pair.norm:
            portable.check_norm(pair.target, pair.norm)
    x = random_input(running.input_shape(keras_network)) if example is None else checked_input(example)
    both = Comparison(
        x,
        partial(running.run, keras_network),
        partial(pytorch.run, network),
        channels_first(keras_network) is False,
        running.ending(keras_network),
    )
    both.check()

    for pair in found:
        there.write(pair.target, pair.arrays, pair.norm)
    if to_keras:
        portable.forget_traces(target)
    difference, scale, notes = both.compare(to_keras)
    if any(pair.norm for pair in found):
        notes.append(_VARIANCE if values_per_channel is None else _CONVERTED)
    layers = tuple(PortedLayer(pair.source.name, pair.target.name, pair.source.kind, pair.notes) for pair in found)
    report = PortReport(target, layers, tuple(notes), x.shape, difference, scale)
    return report if report.equivalent else replace(report, notes=(*report.notes, _HINT))


def _direction(source: object, target: object) -> bool:
    """Whether the target is Keras's.

    Raises:
        ConfigError: not one is Keras's and the other PyTorch's.

    """
    kinds = [_framework(thing) for thing in (source, target)]
    if sorted(kinds) != ["Keras", "PyTorch"]:
        got = (f"{type(thing).__name__} ({kind})" for thing, kind in zip((source, target), kinds, strict=True))
        raise ConfigError(
            "port: expected a layer or network of Keras and one of PyTorch, got source "
            f"{next(got)} and target {next(got)}. Between two of one framework, use load_state_dict or set_weights."
        )
    return kinds[1] == "Keras"


def _framework(thing: object) -> str:
    if "keras" in sys.modules:  # else nothing of Keras can exist, and importing it would take seconds
        from mednorm.keras.portable import is_keras

        if is_keras(thing):
            return "Keras"
    return "PyTorch" if isinstance(thing, nn.Module) else "neither"
