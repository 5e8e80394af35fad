"""The command line, one file a command, with no logic of its own."""

from __future__ import annotations

import sys
from types import ModuleType

# A module by this name tells TensorBoard to use its own stand-in for TensorFlow.
_NO_TENSORFLOW = "tensorboard.compat.notf"


def main() -> None:
    """Run the command line; a mistake of the user is one line on stderr and exit status 2, never a traceback."""
    # MONAI imports TensorBoard, and that TensorFlow where it is installed: seconds and lines on stderr for nothing.
    sys.modules.setdefault(_NO_TENSORFLOW, ModuleType(_NO_TENSORFLOW))
    try:
        from mednorm.cli.app import run
    except ModuleNotFoundError as error:
        missing = error.name
        print(f'mednorm: the command line needs {missing}. Run: pip install "mednorm[study]"', file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(run())
