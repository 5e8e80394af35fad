"""The loops behind a normalization. Here is the seam: `functional` calls these names and has no loop of its own."""

from mednorm.kernels.aten import Reduce as Reduce
from mednorm.kernels.aten import activate_ as activate_
from mednorm.kernels.aten import normalize as normalize
from mednorm.kernels.aten import normalize_backward as normalize_backward
from mednorm.kernels.aten import per_channel as per_channel
