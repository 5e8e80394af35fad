"""Which modules of a network are meant: `where`, for everything that changes networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

from mednorm.errors import ConfigError

Where = str | Iterable[str] | Callable[[str, nn.Module], bool]


def chosen(model: nn.Module, where: Where | None, who: str) -> list[tuple[str, nn.Module]]:
    """List the modules meant, each once, under the first of its names; the network itself is named by its class.

    Args:
        model: the network.
        where: a name, which stands for all below it too; a pattern with ``*``, ``?`` or ``[...]``; several of them; a
            function of name and module; None for all.
        who: the caller, for the message.

    Raises:
        ConfigError: no network, or a name or pattern that no module has.

    Example:
        >>> network = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Identity())
        >>> [name for name, _ in chosen(network, "0", "freeze")]
        ['0', '0.0']
        >>> [name for name, _ in chosen(network, None, "freeze")]
        ['Sequential', '0', '0.0', '1']

    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{who}: expected a network (torch.nn.Module), got {type(model).__name__}.")
    every = list(model.named_modules(remove_duplicate=False))
    if where is None:
        meant = every
    elif callable(where):
        meant = [(name, module) for name, module in every if where(name, module)]
    else:
        patterns = [where] if isinstance(where, str) else list(where)
        for pattern in patterns:
            if not any(_matches(name, pattern) for name, _ in every):
                raise ConfigError(
                    f"{who}: expected where to name modules of the network, got {pattern!r}, which none has. "
                    "`[name for name, _ in model.named_modules()]` lists the names."
                )
        meant = [(name, module) for name, module in every if any(_matches(name, pattern) for pattern in patterns)]
    ids = {id(module) for _, module in meant}
    return [(name or type(module).__name__, module) for name, module in model.named_modules() if id(module) in ids]


def _matches(name: str, pattern: str) -> bool:
    if pattern == "":
        return True
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
