"""The command line, one file a command, with no logic of its own."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a mistake of the user is one line on stderr and exit status 2, never a traceback."""
    try:
        from mednorm.cli.app import run
    except ModuleNotFoundError as error:
        missing = error.name
        print(f'mednorm: the command line needs {missing}. Run: pip install "mednorm[study]"', file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(run())
