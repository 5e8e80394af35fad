"""A network of the user's own, by ``package.module:factory``."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from mednorm.data import Kind
from mednorm.errors import ConfigError
from mednorm.guards import evaluation_mode
from mednorm.layers import NoNorm
from mednorm.monai import NormSpec
from mednorm.tasks.networks import Network, Shape

PARAMETERS = ("spatial_dims", "in_channels", "out_channels", "norm")
_FOLLOW_NORM = (_BatchNorm, _InstanceNorm, nn.GroupNorm, NoNorm)


def own_network(name: str, kind: Kind) -> Network:
    """Import the user's factory and make a `Network` of it.

    The factory is called as ``factory(spatial_dims=…, in_channels=…, out_channels=…, norm=…)`` and returns the network;
    `norm` is what every MONAI network and block takes as ``norm``. "none" is handed over as a layer that shifts each
    channel, since the convolutions may have no bias of their own. The current folder is searched as well, as
    ``python -m`` does, while the module is imported and while the factory runs.

    Raises:
        ConfigError: the module or the factory is not there or cannot be called that way. Building raises it too: the
            factory failed, returned no network, or returned one whose norm layers do not follow `norm`.

    """
    factory = own_object(name)
    _check_factory(name, factory)
    return Network(
        name=name,
        kind=kind,
        text=name,
        build=lambda shape, norm: _build(name, factory, kind, shape, norm),
        multiple=1,
        smallest=1,
        dims=(1, 2, 3),
        shifts=True,
    )


def own_object(name: str, what: str = "network") -> Any:
    """Import what a user calls ``package.module:name``; the current folder is searched as well.

    Raises:
        ConfigError: the module or the name in it is not there, or importing it failed.

    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{what}: expected package.module:factory, got {name!r}.")
    module = _import(name, module_name, what)
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, [other for other in vars(module) if not other.startswith("_")])
        hint = f"Did you mean {', '.join(map(repr, near))}?" if near else ""
        where = getattr(module, "__file__", None) or module_name
        raise ConfigError(f"{what} {name}: expected a factory {attribute!r} in {where}, got none. {hint}".rstrip())
    return getattr(module, attribute)


@contextmanager
def current_folder_searched() -> Iterator[None]:
    """Let modules of the current folder be found inside, as ``python -m`` does."""
    before = list(sys.path)
    sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _import(name: str, module_name: str, what: str) -> Any:
    try:
        with current_folder_searched():
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{what} {name}: importing {module_name} raised {_told(error)}.") from None
        raise ConfigError(
            f"{what} {name}: expected a module {module_name}, got none of that name ({error.name!r} was not found). "
            "The current folder and the installed packages are searched."
        ) from None
    except Exception as error:
        raise ConfigError(f"{what} {name}: importing {module_name} raised {_told(error)}.") from None


def _check_factory(name: str, factory: Any) -> None:
    if not callable(factory):
        raise ConfigError(f"network {name}: expected a function or class, got {type(factory).__name__}.")
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # a builtin that does not tell; calling it will
        return
    kinds = inspect.Parameter
    named = {
        key: each for key, each in parameters.items() if each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes_all = any(each.kind is kinds.VAR_KEYWORD for each in parameters.values())
    missing = [] if takes_all else [key for key in PARAMETERS if key not in named]
    unknown = [
        key
        for key, each in parameters.items()
        if each.default is kinds.empty
        and each.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
        and (key not in PARAMETERS or key not in named)
    ]
    if missing or unknown:
        wrong = f"no {', '.join(missing)}" if missing else f"{', '.join(unknown)} without a default"
        raise ConfigError(
            f"network {name}: expected a factory that takes {', '.join(PARAMETERS)} by keyword, got {wrong} in "
            f"({', '.join(map(str, parameters.values()))})."
        )


def _build(name: str, factory: Callable[..., Any], kind: Kind, shape: Shape, norm: NormSpec) -> nn.Module:
    values = dict(zip(PARAMETERS, (len(shape.size), shape.channels, shape.classes, norm), strict=True))
    try:
        with current_folder_searched():
            network = factory(**values)
    except Exception as error:
        told = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise ConfigError(f"network {name}: the factory raised {_told(error)} when called with {told}.") from None
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network {name}: expected a torch.nn.Module, got {type(network).__name__}.")
    _check_norms(name, network, norm)
    _check_output(name, network, kind, shape)
    return network


def _check_output(name: str, network: nn.Module, kind: Kind, shape: Shape) -> None:
    """Pass if one image through the network, in evaluation mode, gives one logit a class, or a class and pixel."""
    expected = (1, shape.classes) if kind == "classification" else (1, shape.classes, *shape.size)
    try:
        with torch.random.fork_rng(devices=[]), evaluation_mode(network):
            output = network(torch.zeros(1, shape.channels, *shape.size))
    except Exception as error:
        raise ConfigError(
            f"network {name}: expected it to take an image of {shape.channels} channels and size {shape.size}, got "
            f"{_told(error)}."
        ) from None
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != expected:
        raise ConfigError(f"network {name}: expected logits of shape {expected} for one image, got {got}.")


def _check_norms(name: str, network: nn.Module, norm: NormSpec) -> None:
    """Pass if the norm layers are those of `norm`; a comparison of norms would compare nothing otherwise.

    A LayerNorm, which transformers have whatever `norm` is, is left alone.
    """
    from monai.networks.layers.factories import Norm, split_args

    asked, _ = split_args(norm)
    kinds = tuple(Norm[asked, dim] for dim in (1, 2, 3))
    layers = {place: each for place, each in network.named_modules() if isinstance(each, _FOLLOW_NORM)}
    others = {place: each for place, each in layers.items() if type(each) not in kinds}
    if not layers:
        raise ConfigError(
            f"network {name}: expected norm layers built from norm={norm!r}, got no norm layer at all. "
            "Hand `norm` on to MONAI's blocks, or to monai.networks.layers.utils.get_norm_layer."
        )
    if others:
        place, layer = next(iter(others.items()))
        raise ConfigError(
            f"network {name}: expected every norm layer to be built from norm={norm!r}, got {type(layer).__name__} "
            f"in {place or 'the network'} ({len(others)} of {len(layers)} norm layers). "
            "Hand `norm` on there too, or to monai.networks.layers.utils.get_norm_layer."
        )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ").rstrip(".")
