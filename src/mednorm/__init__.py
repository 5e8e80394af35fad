"""mednorm: the normalization inside networks that look at medical images.

Names are imported when first used, so that `mednorm --help` and a page from results need no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mednorm._version import __version__ as __version__

if TYPE_CHECKING:
    from mednorm.errors import MednormError as MednormError
    from mednorm.functional import normalize as normalize
    from mednorm.layers.batch import BatchNorm as BatchNorm
    from mednorm.moments import Moments as Moments
    from mednorm.surgery import PortReport as PortReport
    from mednorm.surgery import port as port

_HOME = {
    "BatchNorm": "mednorm.layers",
    "MednormError": "mednorm.errors",
    "Moments": "mednorm.moments",
    "PortReport": "mednorm.surgery",
    "normalize": "mednorm.functional",
    "port": "mednorm.surgery",
}

__all__ = ["BatchNorm", "MednormError", "Moments", "PortReport", "__version__", "normalize", "port"]


def __getattr__(name: str) -> Any:
    if name == "monai":  # `mednorm.monai.register_norms()` after `import mednorm` alone
        return importlib.import_module("mednorm.monai")
    if name not in _HOME:
        raise AttributeError(f"module 'mednorm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
