"""The allocator of a command that trains."""

from __future__ import annotations

from rich.console import Console


def tune_on_cpu(device: str, console: Console) -> None:
    """Tune the allocator where training will be on the CPU, and say in a quiet line what was done.

    Args:
        device: as settings have it: "auto", "cpu" or "cuda".
        console: for the line.

    Raises:
        ConfigError: the variable that switches it off has another value than it may.

    """
    from mednorm.allocator import tune_allocator
    from mednorm.training.evaluation import judging_device

    if judging_device(device).type == "cpu":
        console.print(f"Memory: {tune_allocator()}", style="dim", markup=False, highlight=False, soft_wrap=True)
