"""The places of the block of integers that the compiled loops get: what to do, sizes, strides in values, addresses.

One block, since a thread of PyTorch's pool takes one pointer. An address of 0 stands for None.
"""

from __future__ import annotations

# What to do, and with what: EPSILON: address of the float64 ε, slope below 0, momentum.
OPERATION, LAYOUT, ACTIVATION, KINDS, FIXED, EPSILON = range(6)
# Which tasks there are. Each thread takes the next free number; a task is some units of a group, of some channels.
TICKET, TASKS, BLOCKS, TASK_CHANNELS = range(6, 10)
# The shape. A run is what lies one behind the other: a plane, or rows of channels. It is cut into units.
GROUPS, CHANNELS, WIDTH, UNIT, GROUP_RUNS, RUN_SAMPLE, RUN_LENGTH = range(10, 17)
# Images, each with the strides of its samples and channels.
X, X_SAMPLE, X_CHANNEL, GRAD, GRAD_SAMPLE, GRAD_CHANNEL, OUT, OUT_SAMPLE, OUT_CHANNEL = range(17, 26)
# Groups × channels, in the type of the images but for the count (int64).
COUNT, MEAN, M2, MINIMUM, MAXIMUM, WEIGHT, BIAS = range(26, 33)
# Groups × lanes, made from these: y = act((x − CENTRE)·SCALE + SHIFT) and ∂x = SCALE·h − K·(x − CENTRE) − M.
CENTRE, SCALE, SHIFT, K, M, AT_MAXIMUM, AT_MINIMUM = range(33, 40)
# The sums of a backward pass; what the tasks note for them and for the moments (float64, int64); lanes of a task.
SUMS, PARTIAL, EXTREMES, SCRATCH = range(40, 44)
# What moves with each batch, and how often it did.
RUNNING_MEAN, RUNNING_VAR, TRACKED, SKIPPED = range(44, 48)
LENGTH = 48

MEASURE, MERGE, FORWARD, PREPARE, NORMALIZE, ADD_UP, COLLECT, APPLY, BACKWARD, MOVE = range(10)
PLANES, ROWS = range(2)
NOTHING, RELU, LEAKY_RELU = range(3)
GRADIENTS, SQUARES, TIES = range(3)  # kinds of sums: Σh and Σh·d; these with Σd and Σd²; with how many are extreme

MOMENTS_PARTS, SUMS_PARTS, SCRATCH_LANES = 3, 4, 8
