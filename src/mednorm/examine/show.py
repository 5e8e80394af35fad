"""An examination as a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mednorm.examine.wording import Group, evidence, groups, headline, plural

if TYPE_CHECKING:
    from mednorm.examine.examination import Examination

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


def show(found: Examination, console: Console | None = None) -> None:
    """Print the headline, a row for each rule that found something, and below what mends it, ready to be copied."""
    console = console or Console()
    colour = _COLOURS[found.worst] if found.worst else "green"
    console.print(f"[{colour}]{escape(headline(found))}[/]", highlight=False)
    gathered = groups(found)
    if not gathered:
        return
    probed = found.probed
    console.print(_table(gathered, f"{probed.network}, {plural(probed.images, 'image')}", len(probed.layers)))
    for group in gathered:
        if group.remedies:
            others = len(group.remedies) - 1
            more = f", and {others} more for other layers" if others else ""
            console.print(f"[bold]{group.code}[/] mended by{more}:", highlight=False)
            console.print(f"  {group.remedies[0]}", highlight=False, markup=False, soft_wrap=True)  # copied as one line


def _table(gathered: list[Group], title: str, layers: int) -> Table:
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("what is wrong, and how it shows", overflow="fold", ratio=1)
    table.add_column("layers", justify="right", no_wrap=True)
    for group in gathered:
        shown = [f"[bold]{escape(group.title)}[/]", *(escape(evidence(each)) for each in group.first.evidence)]
        if group.layers:
            first, worst = group.layers[0], group.worst
            shown.append(escape(f"worst in {worst}" + (f", first in {first}" if first != worst else "")))
        if group.sites:
            shown.append(escape(f"at {', '.join(group.sites)}"))
        colour = _COLOURS[group.severity]
        count = f"{len(group.layers)}/{layers}" if group.layers else "network"
        table.add_row(f"[{colour}]{group.severity}[/]\n{group.code}", "\n".join(shown), count)
    return table
