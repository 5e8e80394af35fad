"""The rules of `mednorm examine`, listed and explained."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

import mednorm
from mednorm.cli import options as o


def list_rules() -> None:
    """Print one row a rule."""
    from mednorm.examine.rules import RULES

    table = Table(title=f"{len(RULES)} rules; mednorm examine --explain CODE", title_justify="left")
    for column in ("code", "name", "what is wrong"):
        table.add_column(column, no_wrap=column == "code", overflow="fold")
    for rule in RULES:
        table.add_row(rule.code, escape(rule.name), escape(rule.title))
    o.console.print(table)


def explain_rule(text: str) -> None:
    """Print the page of a rule; without one, its title and what its module says.

    Raises:
        ConfigError: there is no such rule.

    """
    from mednorm.examine.order import find
    from mednorm.examine.rules import RULES

    rule = find(RULES, text, "--explain")
    page = _page(rule.code)
    if page is None:
        said = sys.modules[rule.check.__module__].__doc__ or ""
        page = f"# {rule.code}: {rule.title}\n\n{said}\n"
    if o.console.is_terminal:
        o.console.print(Markdown(page))
    else:
        typer.echo(page, nl=not page.endswith("\n"))


def _page(code: str) -> str | None:
    """Read a rule's page: beside the code in a wheel, in docs/rules of a checkout."""
    shipped, checkout = resources.files("mednorm.examine.rules") / "pages", Path(mednorm.__file__).parents[2]
    for folder in (shipped, checkout / "docs" / "rules"):
        page = folder / f"{code.lower()}.md"
        if page.is_file():
            return page.read_text(encoding="utf-8")
    return None
