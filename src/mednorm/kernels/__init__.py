"""The loops behind a normalization. Here is the seam: `functional` calls these names and has no loop of its own."""

from mednorm.kernels import ops as ops
from mednorm.kernels.aten import Reduce as Reduce
from mednorm.kernels.aten import activate_ as activate_
from mednorm.kernels.aten import per_channel as per_channel
from mednorm.kernels.choice import Info as Info
from mednorm.kernels.choice import info as info
from mednorm.kernels.choice import on_cpu as on_cpu
from mednorm.kernels.choice import use as use
from mednorm.kernels.groups import Groups as Groups
from mednorm.kernels.loops import apply as apply
from mednorm.kernels.loops import can_move as can_move
from mednorm.kernels.loops import forward as forward
from mednorm.kernels.loops import has_sums as has_sums
from mednorm.kernels.loops import measure as measure
from mednorm.kernels.loops import move as move
from mednorm.kernels.loops import normalize as normalize
from mednorm.kernels.loops import normalize_backward as normalize_backward
from mednorm.kernels.loops import prepare as prepare
from mednorm.kernels.loops import sums as sums
