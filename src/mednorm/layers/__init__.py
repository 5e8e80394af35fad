"""Normalization layers, one family a file."""

from mednorm.layers.batch import BatchNorm as BatchNorm
from mednorm.layers.none import NoNorm as NoNorm
