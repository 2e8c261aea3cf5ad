"""What a person reads of a night, as lines and as the data of its report."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from optimizer.domain.plan import Plan
from optimizer.domain.words import duration, percent, plural, price
from optimizer.night.record import Record

Facts = Mapping[str, Any]

HEADLINES = {
    "done": "carried out",
    "nothing": "nothing worth doing",
    "frozen": "frozen: nothing was changed",
    "looked": "only looked",
    "waiting": "waits for approval",
    "held": "held back: an SLO would be missed",
    "no_plan": "no plan",
    "undone": "undone",
    "partly": "partly carried out",
    "stale": "approval is stale",
    "superseded": "never approved",
    "failed": "failed: nothing was changed",
}


def nothing(plan: Plan) -> tuple[str, ...]:
    """A night without moves, in one line; the second names the report."""
    now = price(plan.price_micros, plan.unit)
    runs = plural(len(plan.placement.replicas), "replica")
    first = f"nothing worth doing: {runs} for {now}{_bound(plan)}"
    return (first, *_unmet(plan), *_left(plan))


def _bound(plan: Plan) -> str:
    found = [o for o in plan.objectives if o.name == "price_per_hour"]
    if not found or found[0].proved:
        return ", proved best" if found else ""
    return f", at most {percent(found[0].gap)} above the best"


def change(plan: Plan, facts: Facts, *, done: bool = False) -> tuple[str, ...]:
    """What the plan changes, and what that saves."""
    before = round(1e6 * facts.get("price_per_hour", {}).get("before", 0))
    after = price(plan.price_micros, plan.unit)
    count = plural(len(plan.moves), "move")
    if done:
        count = f"{facts.get('moves_done', 0)} of {count} made"
    freed = facts.get("freed_gpus", 0)
    gpus = f", {plural(freed, 'GPU')} freed" if freed > 0 else ""
    line = f"{count}: from {price(before, plan.unit)} to {after}{gpus}{_bound(plan)}"
    return (line, *_unmet(plan), *_left(plan))


def _unmet(plan: Plan) -> list[str]:
    return [f"unmet: {one.deployment}: {one.reason}" for one in plan.unmet]


def _left(plan: Plan) -> list[str]:
    return [f"left as it is, no safe order: {', '.join(plan.left)}"] if plan.left else []


def how_to_approve(record: Record, why: Sequence[str], until: datetime) -> tuple[str, ...]:
    """Why it waits, what to read, and what to type."""
    path, plan = record.approval_path, record.plan_path
    return (
        f"waits for approval: {'; '.join(why)}",
        f"read:    {record.folder / 'report.html'}",
        f"approve: sha256sum {plan} > {path}",
        f"then start it again, before {until:%Y-%m-%d %H:%M}; without approval the next night "
        "plans anew",
    )


def data(
    record: Record,
    notes: Sequence[str],
    failed: Sequence[Mapping[str, Any]],
    simulated: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the report shows beside the plan."""
    outcome = str(record.outcome or "partly")
    began = datetime.fromisoformat(record.began)
    ended = datetime.fromisoformat(record.ended) if record.ended else None
    took = duration((ended - began).total_seconds()) if ended else ""
    return {
        "fleet": record.fleet,
        "night": record.name,
        "outcome": outcome,
        "headline": HEADLINES[outcome],
        "code": record.code,
        "began": f"{began:%Y-%m-%d %H:%M:%S}",
        "took": took,
        "starts": record.starts,
        "lines": list(record.lines),
        "notes": list(dict.fromkeys(notes)),
        "phases": [
            {
                "phase": str(one.phase),
                "began": f"{datetime.fromisoformat(one.began):%H:%M:%S}",
                "told": one.told or ("" if one.ended else "cut short"),
            }
            for one in record.phases
        ],
        "failed": [dict(one) for one in failed],
        "simulated": [dict(one) for one in simulated],
        "documents": [{"path": p, "sha256": s} for p, s in record.documents],
    }
