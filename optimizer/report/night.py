"""The report of one night: what happened, then the plan, for a terminal's pager or a browser."""

from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.domain.plan import Plan
from optimizer.report.data import markdown
from optimizer.report.html import render_html, render_night_html

Night = Mapping[str, Any]


def night_markdown(night: Night, plan: Plan | None) -> str:
    """The night as markdown; ``night`` as of ``night.summary.data``."""
    parts = [f"# {night['fleet']}, night {night['night']}: {night['headline']}\n"]
    parts.append(_facts(night) + "\n")
    parts += [f"- {line}" for line in night["lines"]]
    for title, lines in (("Noted", night["notes"]), ("Failed", _failed(night))):
        if lines:
            parts += ["", f"## {title}", "", *(f"- {line}" for line in lines)]
    if night["simulated"]:
        rows = [
            (r["deployment"], r["requests"], r["percentile"], _attained(r))
            for r in night["simulated"]
        ]
        heads = ("deployment", "requests", "asked %", "met %")
        parts += ["", "## Traffic replayed", "", _table(heads, rows)]
    phases = [(p["phase"], p["began"], p["told"]) for p in night["phases"]]
    parts += ["", "## Phases", "", _table(("phase", "began", "what came of it"), phases)]
    if plan is not None:
        parts += ["", markdown(plan)]
    return "\n".join(parts).rstrip() + "\n"


def night_html(night: Night, plan: Plan | None) -> str:
    """The same as one self-contained page, over the page of the plan."""
    said = {**night, "facts": _facts(night)}
    return render_night_html(said) if plan is None else render_html(plan, night=said)


def _facts(night: Night) -> str:
    code = "" if night["code"] is None else f", exit code {int(night['code'])}"
    took = f", took {night['took']}" if night["took"] else ""
    starts = f", in {night['starts']} starts" if night["starts"] > 1 else ""
    return f"Began {night['began']}{took}{starts}{code}."


def _failed(night: Night) -> list[str]:
    return [f"{one['step']} {one['replica']}: {one['reason']}".strip() for one in night["failed"]]


def _attained(row: Mapping[str, Any]) -> str:
    found = row["attained_percent"]
    return "no SLO" if found is None else f"{found:g}{'' if row['meets'] else ' (missed)'}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(x) for x in row) + " |" for row in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
