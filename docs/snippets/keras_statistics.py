"""The three statistics of the article, of one batch."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

from mednorm.keras import batch_statistics

hounsfield = np.random.default_rng(0).normal((40, -700), (15, 120), (8, 64, 64, 2)).astype("float32")
lung = hounsfield[..., 1] < -400  # a mask: statistics inside the lung alone
for name, mask in (("all voxels", None), ("inside", lung)):
    found = batch_statistics(hounsfield, axis=-1, mask=mask)
    mean, deviation, extent = (np.asarray(value).round(-1) for value in (found.mean, found.variance**0.5, found.range))
    print(f"{name:10}  mean {mean}, std {deviation}, range {extent}, count {int(found.count)}")
