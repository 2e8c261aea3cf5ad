"""Short answers: a few sentences, and a table where there is one."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.report.ink import Ink


def render_question(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """What ``says`` says, and ``rows`` with a column for each of their fields."""
    ink = Ink.of(console, ascii)
    for sentence in data["says"]:
        console.print(Text(ink.plain(str(sentence))))
    rows = data["rows"]
    if not rows:
        return
    table = ink.table()
    for name, value in rows[0].items():
        numeric = isinstance(value, (int, float))
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(ink.plain(str(value))) for value in row.values()))
    console.print()
    console.print(table)
