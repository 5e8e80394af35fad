"""Compile the loops now rather than at their first use, for example into an image of a container, and say which run."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch

from mednorm import kernels


def main() -> None:
    """Measure a little of each type, and print what `mednorm.kernels.info` says."""
    for dtype in (torch.float32, torch.float64):
        kernels.measure(torch.zeros(2, 1, 2, dtype=dtype))
    print(json.dumps(asdict(kernels.info()), indent=1))


if __name__ == "__main__":
    main()
