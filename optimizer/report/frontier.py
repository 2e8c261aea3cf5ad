"""The curve of price against disruption, for people and for machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report.ink import Ink

Row = Mapping[str, Any]
TITLE = "Price against disruption: every replica keeps its configuration"


def render_frontier(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """The points of ``rebalance --frontier -o json``, dearest first, the knee marked."""
    ink = Ink.of(console, ascii)
    unit = str(data["unit"])
    console.print(Text(TITLE, "bold"))
    table = ink.table()
    for name in columns(unit):
        table.add_column(name, justify="right", no_wrap=True)
    for cells, is_knee in rows(data):
        table.add_row(*cells, style="bold" if is_knee else "")
    console.print(table)
    console.print(Text(told(data)))


def columns(unit: str) -> tuple[str, ...]:
    """The heads of the table."""
    return (_per_hour(unit), "GPUs", "moves", "GiB", "GiB at least", "moves per GPU", "")


def rows(data: Mapping[str, Any]) -> list[tuple[list[str], bool]]:
    """The cells of each point, and whether it is the knee."""
    points: Sequence[Row] = data["points"]
    return [
        (
            [
                f"{point['price_per_hour']:,.2f}",
                str(point["gpus_used"]),
                str(point["moves"]),
                f"{point['disruption_gib']:,.1f}",
                "proved" if point["proved"] else f"{point['disruption_bound_gib']:,.1f}",
                _per_gpu(before, point),
                "knee" if point["knee"] else "",
            ],
            point["knee"],
        )
        for before, point in zip([None, *points], points, strict=False)
    ]


def _per_hour(unit: str) -> str:
    return unit if unit == words.GPUS else f"{unit}/h"


def _per_gpu(before: Row | None, point: Row) -> str:
    """What each GPU freed since the point before costs in moves."""
    if before is None or before["gpus_used"] <= point["gpus_used"]:
        return ""
    freed = before["gpus_used"] - point["gpus_used"]
    return f"{(point['moves'] - before['moves']) / freed:.1f}"


def told(data: Mapping[str, Any]) -> str:
    """The knee and the end of the curve in one sentence."""
    points, price = data["points"], _per_hour(str(data["unit"]))
    if len(points) < 2:
        return "Nothing can be saved by moving."
    first, last = points[0], points[-1]
    bend = next((p for p in points if p["knee"]), last)
    saved = first["price_per_hour"] - bend["price_per_hour"]
    said = f"The knee saves {saved:.2f} {price} with {words.plural(bend['moves'], 'move')}"
    if bend is last:
        return f"{said}; nothing more can be saved."
    more = bend["price_per_hour"] - last["price_per_hour"]
    moves = words.plural(last["moves"] - bend["moves"], "more move")
    return f"{said}; the last {more:.2f} {price} would cost {moves}."
