"""The curve of price against disruption, for people and for machines."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report.ink import Ink

Row = Mapping[str, Any]
NAMED = 5  # deployments
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
    return _saved(data) + _unserved(data.get("unserved", ()))


def _unserved(names: Sequence[str]) -> str:
    """Whom moving alone leaves short."""
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    told = ", ".join(names[:NAMED]) + more
    verb = "gets" if len(names) == 1 else "get"
    return (
        f" The curve moves replicas as they run: {told} {verb} less than asked all along it, and "
        "may get more where configurations change (rebalance without --frontier)."
    )


def _saved(data: Mapping[str, Any]) -> str:
    points, price = data["points"], _per_hour(str(data["unit"]))
    if not points:
        return "No way was found to place what is asked as it runs now."
    if len(points) == 1 and points[0]["moves"]:
        starts = words.plural(points[0]["moves"], "move")
        return f"What is missing takes {starts}; nothing can be saved beside."
    if len(points) == 1:
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
