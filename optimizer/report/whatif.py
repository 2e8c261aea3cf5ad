"""Scenarios side by side with the baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report.ink import Ink

Row = Mapping[str, Any]

ALL_SHOWN = 40  # of more scenarios, only the worst and the best are shown
ENDS_SHOWN = 15

STYLES = {"optimal": "green", "within_gap": "green", "limit": "yellow"}
WORDS = {
    "optimal": "optimal",
    "within_gap": "in gap",
    "limit": "limit",
    "infeasible": "infeasible",
    "nothing_found": "none found",
}


def render_whatif(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """The comparison of ``whatif -o json``: a row per scenario, differences from the baseline."""
    ink = Ink.of(console, ascii)
    baseline, scenarios = data["baseline"], data["scenarios"]
    unit = str(data.get("unit") or "per hour")
    price = unit if unit in (words.GPUS, "per hour") else f"{unit}/h"
    failed = [s for s in scenarios if s.get("failed")]
    done = len(scenarios) - len(failed)
    title = Text(f"{words.plural(done, 'scenario')} against the baseline", "bold")
    if failed:
        title.append(f", {len(failed)} failed", "bold red")
    console.print(title)
    if not scenarios:
        console.print(Text("No scenarios: add a document of kind Scenarios.", "dim"))
        return
    wide = ink.width >= 110
    promises = wide and any(s.get("tightest_slo") for s in scenarios)
    table = ink.table()
    table.add_column("scenario", max_width=30)
    table.add_column("status", no_wrap=True)
    table.add_column(price, justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("GPUs", justify="right", no_wrap=True)
    table.add_column("unmet", justify="right", no_wrap=True)
    table.add_column("moves", justify="right", no_wrap=True)
    if promises:
        table.add_column("closest to its SLO", max_width=28)
    if wide:
        table.add_column("what is different")
    shown, left_out = _ends(scenarios)
    rows = [({**baseline, "name": "baseline"}, "bold"), *((s, "") for s in shown)]
    for scenario, style in rows:
        cells = _cells(scenario, baseline or {}, ink)
        promise = [_promise(scenario)] if promises else []
        table.add_row(*cells, *promise, *([_different(scenario, ink)] if wide else []), style=style)
    console.print(table)
    if left_out:
        told = f"The worst first; {words.plural(left_out, 'scenario')} between are left out here."
        console.print(Text(told, "dim"))
    for scenario in shown:
        if scenario.get("failed"):
            line = Text(f"{ink.glyphs.bad} {scenario['name']}: ", "bold red")
            console.print(line.append(ink.plain(str(scenario["failed"])), "not bold"))
        elif not wide and scenario.get("differences"):
            line = Text(f"{scenario['name']}: ", "bold")
            console.print(line.append(_different(scenario, ink), "not bold"))


def _ends(scenarios: Sequence[Row]) -> tuple[list[Row], int]:
    """All in their order; of many those that failed, the worst and the best, and how many not."""
    if len(scenarios) <= ALL_SHOWN:
        return list(scenarios), 0
    ranked = sorted(scenarios, key=_badness, reverse=True)
    failed = sum(bool(s.get("failed")) for s in ranked)
    worst, best = ranked[: failed + ENDS_SHOWN], ranked[failed + ENDS_SHOWN :][-ENDS_SHOWN:]
    return [*worst, *best], len(ranked) - len(worst) - len(best)


def _badness(row: Row) -> tuple[bool, bool, float, float]:
    """Failed, without a plan, what is unserved, the price."""
    unmet = row.get("unmet") or 0
    short = float(unmet) if isinstance(unmet, (int, float)) else float(len(unmet))
    price = row.get("price_per_hour")
    return (bool(row.get("failed")), price is None, short, price or 0.0)


def _cells(row: Row, baseline: Row, ink: Ink) -> list[Text]:
    name = Text(str(row["name"]))
    if row.get("failed"):
        return [name, Text("failed", "red"), *(Text("-") for _ in range(5))]
    status = str(row.get("status") or "")
    price, was = row.get("price_per_hour"), baseline.get("price_per_hour")
    change = Text("")
    if row["name"] != "baseline" and price is not None and was:
        part = (price - was) / was * 100
        change = Text("same" if abs(part) < 0.05 else f"{part:+.1f} %")
        change.stylize("green" if part < -0.05 else "red" if part > 0.05 else "dim")
    unmet = _amount(row.get("unmet"))
    return [
        name,
        Text(WORDS.get(status, status), STYLES.get(status, "red")),
        Text("-" if price is None else f"{price:,.2f}"),
        change,
        Text(_amount(row.get("gpus_used"))),
        Text("none" if unmet == "0" else unmet, "" if unmet in ("0", "-") else "red"),
        Text(_amount(row.get("moves"))),
    ]


def _promise(row: Row) -> str:
    """``chat TPOT 48.6 of 50 ms``."""
    close = row.get("tightest_slo")
    if not close:
        return ""
    what = str(close["what"]).removesuffix("_ms").upper()
    predicted, promised = (words.number(close[k], 1) for k in ("predicted_ms", "promised_ms"))
    return f"{close['deployment']} {what} {predicted} of {promised} ms"


def _amount(value: object) -> str:
    """A number as it is, of a list how many."""
    if value is None:
        return "-"
    if isinstance(value, (int, float)):
        return words.number(value, 2)
    return str(len(value)) if isinstance(value, (Sequence, Mapping)) else str(value)


def _different(row: Row, ink: Ink) -> str:
    found = row.get("differences") or []
    if isinstance(found, str):
        return ink.plain(found)
    if isinstance(found, Mapping):
        found = [f"{key} {value}" for key, value in found.items()]
    told = "; ".join(str(one) for one in found[:3])
    more = f"; {len(found) - 3} more" if len(found) > 3 else ""
    return ink.plain(told + more)
