"""Compile the loops now rather than at their first use, for example into an image of a container, and say which run."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch

from mednorm import kernels


def main() -> None:
    """Compile for each type, and print what `mednorm.kernels.info` says."""
    kernels.prepare(torch.float32)
    kernels.prepare(torch.float64)
    print(json.dumps(asdict(kernels.info()), indent=1))


if __name__ == "__main__":
    main()
