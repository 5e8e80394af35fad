"""Normalization layers, one family a file."""

from mednorm.layers.accumulation import accumulate as accumulate
from mednorm.layers.batch import BatchNorm as BatchNorm
from mednorm.layers.domain import DomainBatchNorm as DomainBatchNorm
from mednorm.layers.frozen import FrozenBatchNorm as FrozenBatchNorm
from mednorm.layers.ghost import GhostBatchNorm as GhostBatchNorm
from mednorm.layers.moving import MovingBatchNorm as MovingBatchNorm
from mednorm.layers.none import NoNorm as NoNorm
from mednorm.layers.range import RangeBatchNorm as RangeBatchNorm
from mednorm.layers.renorm import BatchRenorm as BatchRenorm
from mednorm.layers.renorm import set_total_steps as set_total_steps
from mednorm.layers.sites import domain as domain
