"""What is said of a batch that has no variance."""

import torch

from mednorm import BatchNorm
from mednorm.errors import ShapeError

try:
    BatchNorm(64)(torch.zeros(1, 64, 1, 1))
except ShapeError as error:
    print(error)
