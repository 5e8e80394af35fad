"""Refuse a conversion that cannot be, before a network is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from mednorm.errors import ConfigError
from mednorm.surgery.families import OPTIONS, OURS


def check_request(
    to: str, dims: int | None, fuse_activation: bool, lean: bool | None, options: Mapping[str, Any]
) -> None:
    """Pass if there is such a target, with these options in their ranges.

    Raises:
        ConfigError: there is not.

    """
    if not isinstance(to, str) or to not in OPTIONS:
        close = get_close_matches(str(to), OPTIONS, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"convert: expected to= to be one of {', '.join(OPTIONS)}, got {to!r}.{hint}")
    for name in options:
        if name not in OPTIONS[to]:
            close = get_close_matches(name, OPTIONS[to], 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(OPTIONS[to]) or "none"
            raise ConfigError(f"convert: expected the options of {to!r}, which are {known}, got {name!r}.{hint}")
    if dims is not None and dims not in (1, 2, 3):
        raise ConfigError(f"convert: expected dims to be 1, 2 or 3, got {dims!r}.")
    if fuse_activation and to not in OURS:
        raise ConfigError(
            f"convert: expected a target that has a place for the activation, {', '.join(OURS)}, with "
            f"fuse_activation=True, got {to!r}."
        )
    if lean and to not in OURS:
        raise ConfigError(
            f"convert: expected a target of ours, {', '.join(OURS)}, with lean=True, got {to!r}. Around forward passes "
            "of any network with batch normalization stands mednorm.lean_activations."
        )
    groups = options.get("num_groups", 1)
    if not isinstance(groups, Integral) or isinstance(groups, bool) or groups < 1:
        raise ConfigError(f"convert: expected num_groups to be a whole number of at least 1, got {groups!r}.")
    if to == "domain" and "domains" not in options:
        options = {**options, "domains": 1}  # layers that are of this kind already have their own
    if to in OURS:
        OURS[to][0](1, **options)
