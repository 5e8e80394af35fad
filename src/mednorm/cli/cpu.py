"""What a command that trains on the CPU does first."""

from __future__ import annotations

from rich.console import Console


def prepare_cpu(device: str, console: Console) -> None:
    """Where training will be on the CPU, tune the allocator, say so in a quiet line, and compile the loops.

    Compiled at their first use, they would be part of what the first run with batch normalization took.

    Args:
        device: as settings have it: "auto", "cpu" or "cuda".
        console: for the line.

    Raises:
        ConfigError: the variable that switches it off has another value than it may.

    """
    from mednorm import kernels
    from mednorm.allocator import tune_allocator
    from mednorm.training.evaluation import judging_device

    if judging_device(device).type == "cpu":
        console.print(f"Memory: {tune_allocator()}", style="dim", markup=False, highlight=False, soft_wrap=True)
        kernels.prepare()
