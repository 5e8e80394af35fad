"""Normalization layers, one family a file."""

from mednorm.layers.batch import BatchNorm as BatchNorm
