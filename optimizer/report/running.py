"""What was launched, and how it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report.ink import Ink

STYLES = {"ready": "green", "starting": "yellow", "pending": "yellow", "backoff": "yellow"}


def render_status(
    rows: Sequence[Mapping[str, Any]], console: Console, *, ascii: bool = False
) -> None:
    """A line per replica: where it runs, its state and address; then why some do not serve."""
    ink = Ink.of(console, ascii)
    table = ink.table()
    for title in ("replica", "tenant", "on", "engine", "state", "address"):
        table.add_column(title, no_wrap=title != "on")
    for title in ("up", "restarts"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        up = row.get("uptime_s")
        table.add_row(
            str(row["replica"]),
            str(row.get("tenant") or "-"),
            " ".join(row.get("devices") or ()) or "-",
            str(row.get("engine") or "-"),
            Text(str(row["state"]), STYLES.get(str(row["state"]), "red")),
            str(row.get("url") or "-"),
            "-" if up is None else words.duration(up),
            str(row.get("restarts") or 0),
        )
    console.print(table)
    for row in rows:
        if row.get("reason"):
            line = Text(f"{ink.glyphs.bad} {row['replica']}: ", "red")
            console.print(line.append(ink.plain(str(row["reason"]))))
    ready = sum(row["state"] == "ready" for row in rows)
    console.print(Text(f"{ready} of {words.plural(len(rows), 'replica')} ready", "bold"))
