"""A replay for people: what was promised, what the plan predicted, what the traffic met."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report.ink import Ink


def render_simulated(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """A row for each deployment replayed, and a line for each that was not."""
    ink = Ink.of(console, ascii=ascii)
    table = ink.table(
        title=_title(data), caption="predicted / replayed / SLO at its percentile, ms"
    )
    table.add_column("deployment", no_wrap=True)
    table.add_column("requests", justify="right")
    table.add_column("TTFT", justify="right")
    table.add_column("TPOT", justify="right")
    table.add_column("inside SLO", justify="right")
    table.add_column("KV", justify="right")
    table.add_column("preempted", justify="right")
    for row in data["deployments"]:
        style = "" if row["meets"] else "red"
        mark = "" if row["meets"] else " !"
        inside = row["attained_percent"]
        table.add_row(
            Text(row["name"] + mark, style),
            f"{row['requests']:,}",
            _latency(row["ttft"]),
            _latency(row["tpot"]),
            "" if inside is None else f"{inside:.2f} % of {row['percentile']:g} %",
            f"{row['kv_peak_percent']:.0f} %",
            f"{row['preemptions']:,}" if row["preemptions"] else "",
        )
    console.print(table)
    for row in data["deployments"]:
        if row["failed"]:
            console.print(f"{row['name']}: {row['failed']:,} requests are longer than its KV cache")
    for left in data["left"]:
        console.print(Text(f"not replayed: {left['name']}: {left['reason']}", "dim"))
    console.print(_verdict(data))


def _title(data: Mapping[str, Any]) -> str:
    hours = data["seconds"] / 3600
    traffic = data["trace"] or "drawn arrivals at peak rate"
    return f"{hours:g} h of {traffic}, {data['routing']} routing"


def _latency(row: Mapping[str, Any]) -> str:
    if row["percentile_ms"] is None:
        return ""
    parts = (row["predicted_ms"], row["percentile_ms"], row["slo_ms"])
    return " / ".join("-" if part is None else f"{part:,.0f}" for part in parts)


def _verdict(data: Mapping[str, Any]) -> str:
    missed = [row["name"] for row in data["deployments"] if not row["meets"]]
    promised = sum(row["attained_percent"] is not None for row in data["deployments"])
    if not missed:
        return f"{words.plural(promised, 'deployment')} with an SLO, and none misses it."
    return f"{len(missed)} of {promised} deployments with an SLO miss it: {', '.join(missed)}"
