"""mednorm: the normalization inside networks that look at medical images.

Names are imported when first used, so that `mednorm --help` and a page from results need no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mednorm._version import __version__ as __version__

if TYPE_CHECKING:
    from mednorm.advise.advice import Advice as Advice
    from mednorm.advise.batch_size import advise_batch_size as advise_batch_size
    from mednorm.allocator import AllocatorReport as AllocatorReport
    from mednorm.allocator import tune_allocator as tune_allocator
    from mednorm.errors import MednormError as MednormError
    from mednorm.examine.examination import Examination as Examination
    from mednorm.examine.examine import examine as examine
    from mednorm.examine.findings import Finding as Finding
    from mednorm.functional import normalize as normalize
    from mednorm.layers.accumulation import accumulate as accumulate
    from mednorm.layers.batch import BatchNorm as BatchNorm
    from mednorm.layers.domain import DomainBatchNorm as DomainBatchNorm
    from mednorm.layers.frozen import FrozenBatchNorm as FrozenBatchNorm
    from mednorm.layers.ghost import GhostBatchNorm as GhostBatchNorm
    from mednorm.layers.moving import MovingBatchNorm as MovingBatchNorm
    from mednorm.layers.range import RangeBatchNorm as RangeBatchNorm
    from mednorm.layers.renorm import BatchRenorm as BatchRenorm
    from mednorm.layers.renorm import set_total_steps as set_total_steps
    from mednorm.layers.sites import domain as domain
    from mednorm.lean.activations import lean_activations as lean_activations
    from mednorm.lean.memory import activation_memory as activation_memory
    from mednorm.lean.report import ActivationMemory as ActivationMemory
    from mednorm.lightning import AccumulateStatistics as AccumulateStatistics
    from mednorm.lightning import FreezeStatistics as FreezeStatistics
    from mednorm.moments import Moments as Moments
    from mednorm.monitor import NormMonitor as NormMonitor
    from mednorm.population.adapt import adapt as adapt
    from mednorm.population.recalibrate import recalibrate as recalibrate
    from mednorm.population.report import AdaptReport as AdaptReport
    from mednorm.population.report import RecalibrationReport as RecalibrationReport
    from mednorm.surgery.centralize import centralize as centralize
    from mednorm.surgery.conversion import ConversionReport as ConversionReport
    from mednorm.surgery.convert import convert as convert
    from mednorm.surgery.fold import fold as fold
    from mednorm.surgery.fold_report import FoldReport as FoldReport
    from mednorm.surgery.freeze import freeze as freeze
    from mednorm.surgery.freeze import is_frozen as is_frozen
    from mednorm.surgery.freeze import unfreeze as unfreeze
    from mednorm.surgery.freezing import FreezeReport as FreezeReport
    from mednorm.surgery.port import port as port
    from mednorm.surgery.report import PortReport as PortReport

_HOME = {
    "AccumulateStatistics": "mednorm.lightning",
    "ActivationMemory": "mednorm.lean",
    "AdaptReport": "mednorm.population",
    "Advice": "mednorm.advise",
    "AllocatorReport": "mednorm.allocator",
    "BatchNorm": "mednorm.layers",
    "BatchRenorm": "mednorm.layers",
    "ConversionReport": "mednorm.surgery",
    "DomainBatchNorm": "mednorm.layers",
    "Examination": "mednorm.examine",
    "Finding": "mednorm.examine",
    "FoldReport": "mednorm.surgery",
    "FreezeReport": "mednorm.surgery",
    "FreezeStatistics": "mednorm.lightning",
    "FrozenBatchNorm": "mednorm.layers",
    "GhostBatchNorm": "mednorm.layers",
    "MednormError": "mednorm.errors",
    "Moments": "mednorm.moments",
    "MovingBatchNorm": "mednorm.layers",
    "NormMonitor": "mednorm.monitor",
    "PortReport": "mednorm.surgery",
    "RangeBatchNorm": "mednorm.layers",
    "RecalibrationReport": "mednorm.population",
    "accumulate": "mednorm.layers",
    "activation_memory": "mednorm.lean",
    "adapt": "mednorm.population",
    "advise_batch_size": "mednorm.advise",
    "centralize": "mednorm.surgery",
    "convert": "mednorm.surgery",
    "domain": "mednorm.layers",
    "fold": "mednorm.surgery",
    "freeze": "mednorm.surgery",
    "is_frozen": "mednorm.surgery",
    "lean_activations": "mednorm.lean",
    "normalize": "mednorm.functional",
    "port": "mednorm.surgery",
    "recalibrate": "mednorm.population",
    "set_total_steps": "mednorm.layers",
    "tune_allocator": "mednorm.allocator",
    "unfreeze": "mednorm.surgery",
}

__all__ = [
    "AccumulateStatistics",
    "ActivationMemory",
    "AdaptReport",
    "Advice",
    "AllocatorReport",
    "BatchNorm",
    "BatchRenorm",
    "ConversionReport",
    "DomainBatchNorm",
    "Examination",
    "Finding",
    "FoldReport",
    "FreezeReport",
    "FreezeStatistics",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "MednormError",
    "Moments",
    "MovingBatchNorm",
    "NormMonitor",
    "PortReport",
    "RangeBatchNorm",
    "RecalibrationReport",
    "__version__",
    "accumulate",
    "activation_memory",
    "adapt",
    "advise_batch_size",
    "centralize",
    "convert",
    "domain",
    "examine",
    "fold",
    "freeze",
    "is_frozen",
    "lean_activations",
    "normalize",
    "port",
    "recalibrate",
    "set_total_steps",
    "tune_allocator",
    "unfreeze",
]


def __getattr__(name: str) -> Any:
    # `mednorm.monai.register_norms()` after `import mednorm` alone; and a package that is called like a function.
    if name in ("examine", "monai"):
        return importlib.import_module(f"mednorm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mednorm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
