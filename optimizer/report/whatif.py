"""Scenarios side by side with the baseline."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report import compared
from optimizer.report.compared import Row
from optimizer.report.ink import Ink

STYLES = {"optimal": "green", "in gap": "green", "limit": "yellow"}


def render_whatif(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """The comparison of ``whatif -o json``: a row per scenario, differences from the baseline."""
    ink = Ink.of(console, ascii)
    baseline, scenarios = compared.rows(data)
    unit = str(data.get("unit") or "per hour")
    price = unit if unit in (words.GPUS, "per hour") else f"{unit}/h"
    failed = sum(bool(s.failed) for s in scenarios)
    title = Text(
        f"{words.plural(len(scenarios) - failed, 'scenario')} against the baseline", "bold"
    )
    if failed:
        title.append(f", {failed} failed", "bold red")
    console.print(title)
    if not scenarios:
        console.print(Text("No scenarios: add a document of kind Scenarios.", "dim"))
        return
    wide = ink.width >= 110
    promises = wide and any(s.promise for s in scenarios)
    table = ink.table()
    table.add_column("scenario", max_width=30)
    table.add_column("status", no_wrap=True)
    table.add_column(price, justify="right", no_wrap=True)
    for name in ("change", "GPUs", "unmet", "moves"):
        table.add_column(name, justify="right", no_wrap=True)
    if promises:
        table.add_column("closest to its SLO", max_width=28)
    if wide:
        table.add_column("what is different")
    shown, left_out = compared.ends(scenarios)
    for one in (baseline, *shown):
        extra = [one.promise] if promises else []
        extra += [_different(one, ink)] if wide else []
        table.add_row(*_cells(one), *extra, style="bold" if one is baseline else "")
    console.print(table)
    if left_out:
        told = f"The worst first; {words.plural(left_out, 'scenario')} between are left out here."
        console.print(Text(told, "dim"))
    for one in shown:
        if one.failed:
            line = Text(f"{ink.glyphs.bad} {one.name}: ", "bold red")
            console.print(line.append(ink.plain(one.failed), "not bold"))
        elif not wide and one.differences:
            line = Text(f"{one.name}: ", "bold")
            console.print(line.append(_different(one, ink), "not bold"))


def _cells(one: Row) -> list[Text]:
    if one.failed:
        return [Text(one.name), Text("failed", "red"), *(Text("-") for _ in range(5))]
    change = Text(one.change_told, "dim")
    if one.change is not None and one.change_told != "same":
        change.stylize("not dim red" if one.change > 0 else "not dim green")
    short = Text("-") if one.price is None else Text("none")
    return [
        Text(one.name),
        Text(one.status, STYLES.get(one.status, "red")),
        Text("-" if one.price is None else f"{one.price:,.2f}"),
        change,
        Text(_count(one.gpus)),
        Text(str(len(one.unmet)), "red") if one.unmet else short,
        Text(_count(one.moves)),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _different(one: Row, ink: Ink) -> str:
    told = "; ".join(one.differences[:3])
    more = len(one.differences) - 3
    return ink.plain(f"{told}; {more} more" if more > 0 else told)
