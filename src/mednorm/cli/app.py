"""The commands, and how their mistakes are said."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from mednorm import __version__
from mednorm.cli.advise import advise
from mednorm.cli.bench import bench
from mednorm.cli.data import data_app
from mednorm.cli.evaluate import evaluate
from mednorm.cli.examine import examine
from mednorm.cli.predict import predict
from mednorm.cli.report import report
from mednorm.cli.study import study
from mednorm.cli.train import train
from mednorm.cli.treat import treat
from mednorm.errors import MednormError

app = typer.Typer(
    name="mednorm",
    help="Train, compare and judge the normalization inside networks that look at medical images.",
    epilog="Example: mednorm study tissue --preset quick --out results",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(study)
app.command()(train)
app.command()(evaluate)
app.command()(examine)
app.command()(predict)
app.command()(treat)
app.command()(advise)
app.command()(report)
app.command()(bench)
app.add_typer(data_app, name="data")


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"mednorm {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    try:
        status: int = app(arguments, prog_name="mednorm", standalone_mode=False) or 0
    except TyperException as error:  # a mistake in options or arguments
        return _say(error.format_message().replace("Value error, ", ""))
    except MednormError as error:
        return _say(str(error))
    except OSError as error:  # such as a full disk, or a folder that may not be written
        return _say(str(error))
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    if status == 130:  # what Typer, too, makes of Ctrl-C, without a word
        print("mednorm: stopped. A study or a training goes on where it was by the same command.", file=sys.stderr)
    return status


def _say(message: str) -> int:
    print(f"mednorm: {' '.join(message.split())}", file=sys.stderr)
    return 2
