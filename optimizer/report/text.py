"""The terminal report. Every function prints to the console it is given and nothing else."""

from rich.console import Console
from rich.text import Text

from optimizer.domain.plan import Plan
from optimizer.report import status, tables
from optimizer.report.fleetmap import FleetMap
from optimizer.report.ink import Ink

STILL = "Nothing to move: everything may stay where it runs."
HEADLINE = {
    "optimal": "bold green",
    "within_gap": "bold green",
    "limit": "bold yellow",
    "infeasible": "bold red",
    "nothing_found": "bold red",
}


def render_plan(
    plan: Plan, console: Console, *, summary: bool = False, ascii: bool = False
) -> None:
    """The whole report of a plan, or with ``summary`` at most ten lines of it."""
    ink = Ink.of(console, ascii, [d.tenant for d in plan.deployments])
    _header(plan, ink, "Plan for", summary)
    if summary:
        _summary(plan, ink)
        return
    if not status.planned(plan):
        _closing(plan, ink)
        return
    console.print()
    drawn = FleetMap(plan, ink)
    for line in drawn.lines():
        _one_line(ink, line)
    if legend := drawn.legend():
        console.print()
        console.print(legend)
    for part in (tables.running, tables.prices, tables.unmet, tables.moves, tables.steps):
        _section(plan, ink, part)
    _section(plan, ink, tables.bounds)
    _closing(plan, ink)


def render_rebalance(
    plan: Plan, console: Console, *, summary: bool = False, ascii: bool = False
) -> None:
    """What changes and in which order; ``render_plan`` shows where everything ends."""
    ink = Ink.of(console, ascii, [d.tenant for d in plan.deployments])
    _header(plan, ink, "Rebalance of", summary)
    still = Text(STILL, "green") if status.planned(plan) and not plan.moves else None
    if summary:
        _summary(plan, ink)
        if still:
            console.print(still)
        return
    if still:
        console.print()
        console.print(still)
    for part in (tables.moves, tables.steps, tables.unmet, tables.bounds):
        _section(plan, ink, part)
    _closing(plan, ink)


def _closing(plan: Plan, ink: Ink) -> None:
    if way_out := status.way_out(plan):
        ink.console.print(Text(way_out))
    ink.console.print()
    for note in plan.notes:
        ink.console.print(Text(f"Note: {ink.plain(note)}"))
    for line in tables.inputs(plan):
        ink.console.print(line)


def _section(plan: Plan, ink: Ink, part: tables.Part) -> None:
    found = list(part(plan, ink))
    if found:
        ink.console.print()
    for one in found:
        ink.console.print(one)


def _header(plan: Plan, ink: Ink, what: str, summary: bool) -> None:
    title = Text(f"{what} {plan.fleet}: ", "bold")
    told = status.headline(plan)
    ink.console.print(title.append(ink.plain(told), HEADLINE.get(plan.status, "bold")))
    if status.planned(plan):
        ink.console.print(Text(status.totals(plan)))
        ink.console.print(Text(status.demand(plan), "red" if plan.unmet else "green"))
        if undone := status.undone(plan):
            ink.console.print(Text(undone, "yellow"))
    for rule in plan.conflict[: 7 if summary else None]:
        ink.console.print(Text(f"{ink.glyphs.bad} {ink.plain(rule)}", "red"))


def _summary(plan: Plan, ink: Ink) -> None:
    """Prices by tenant, the largest shortfalls and the moves, in a line each; else the way out."""
    if not status.planned(plan):
        for note in plan.notes[:2]:
            _one_line(ink, Text(f"Note: {ink.plain(note)}"))
        return
    top = sorted(plan.tenants, key=lambda t: (-t.price_micros, t.name))[:4]
    if top:
        paid = ", ".join(f"{t.name} {tables.money(t.price_micros)}" for t in top)
        more = f" and {len(plan.tenants) - 4} more" if len(plan.tenants) > 4 else ""
        _one_line(ink, Text(f"{plan.unit} by tenant: {paid}{more}"))
    if risk := status.slos(plan):
        _one_line(ink, Text(ink.plain(risk)))
    for one in plan.unmet[:2]:
        line = f"{ink.glyphs.bad} {one.deployment}: {ink.plain(one.reason)}"
        _one_line(ink, Text(line, "red"))
    if len(plan.unmet) > 2:
        ink.console.print(Text(f"  and {len(plan.unmet) - 2} more miss something", "red"))
    if plan.moves:
        _one_line(ink, Text(tables.moves_sentence(plan)))
    for said in (status.left(plan), status.short(plan)):
        if said:
            _one_line(ink, Text(said, "yellow"))


def _one_line(ink: Ink, text: Text) -> None:
    """Cut what is too long: a wrapped map or summary reads worse."""
    ink.console.print(text, no_wrap=True, overflow="ellipsis", crop=True)
