"""The curve of price against disruption, for people and for machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report.ink import Ink

Row = Mapping[str, Any]


def render_frontier(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """The points of ``rebalance --frontier -o json``, dearest first, the knee marked."""
    ink = Ink.of(console, ascii)
    points: Sequence[Row] = data["points"]
    unit = str(data["unit"])
    price = unit if unit == words.GPUS else f"{unit}/h"
    console.print(Text("Price against disruption: every replica keeps its configuration", "bold"))
    table = ink.table()
    for name in (price, "GPUs", "moves", "GiB", "GiB at least", "moves per GPU"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for before, point in zip([None, *points], points, strict=False):
        cells = [
            f"{point['price_per_hour']:.2f}",
            str(point["gpus_used"]),
            str(point["moves"]),
            f"{point['disruption_gib']:.1f}",
            "proved" if point["proved"] else f"{point['disruption_bound_gib']:.1f}",
            _per_gpu(before, point),
            "knee" if point["knee"] else "",
        ]
        table.add_row(*cells, style="bold" if point["knee"] else "")
    console.print(table)
    console.print(Text(_told(points, price)))


def _per_gpu(before: Row | None, point: Row) -> str:
    """What each GPU freed since the point before costs in moves."""
    if before is None or before["gpus_used"] <= point["gpus_used"]:
        return ""
    freed = before["gpus_used"] - point["gpus_used"]
    return f"{(point['moves'] - before['moves']) / freed:.1f}"


def _told(points: Sequence[Row], price: str) -> str:
    """The knee and the end of the curve in one sentence."""
    if len(points) < 2:
        return "Nothing can be saved by moving."
    first, last = points[0], points[-1]
    bend = next((p for p in points if p["knee"]), last)
    saved = first["price_per_hour"] - bend["price_per_hour"]
    told = f"The knee saves {saved:.2f} {price} with {words.plural(bend['moves'], 'move')}"
    if bend is last:
        return f"{told}; nothing more can be saved."
    more = bend["price_per_hour"] - last["price_per_hour"]
    moves = words.plural(last["moves"] - bend["moves"], "more move")
    return f"{told}; the last {more:.2f} {price} would cost {moves}."
