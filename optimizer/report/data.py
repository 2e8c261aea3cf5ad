"""The same facts as plain dicts, CSV and markdown."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimizer.domain import words
from optimizer.domain.placement import Replica
from optimizer.domain.plan import DeploymentPlan, Plan
from optimizer.domain.units import gib, money, rps
from optimizer.report import status
from optimizer.report.amounts import by_deployment, paid, two
from optimizer.report.changes import alike
from optimizer.report.diff import Diff, sentences, side
from optimizer.report.tables import moves_sentence, ordered, ways, where

Row = Mapping[str, Any]


def deployment_rows(plan: Plan) -> list[dict[str, Any]]:
    """A flat row per deployment: demand, capacity, predictions beside the SLO, price."""
    missing = {u.deployment: u for u in plan.unmet}
    return [_deployment_row(plan, d, missing.get(d.name) is not None) for d in ordered(plan)]


def _deployment_row(plan: Plan, d: DeploymentPlan, short: bool) -> dict[str, Any]:
    predicted, slo = d.predicted, d.slo
    return {
        "deployment": d.name,
        "tenant": d.tenant,
        "replicas": d.replicas,
        "runs_as": "; ".join(ways(d)),
        "where": where(plan, d.name),
        "demand_rps": None if d.demand_mrps is None else rps(d.demand_mrps),
        "capacity_rps": None if d.capacity_mrps is None else rps(d.capacity_mrps),
        "ttft_ms": getattr(predicted, "ttft_ms", None),
        "slo_ttft_ms": getattr(slo, "ttft_ms", None),
        "tpot_ms": getattr(predicted, "tpot_ms", None),
        "slo_tpot_ms": getattr(slo, "tpot_ms", None),
        "price_per_hour": money(d.price_micros),
        "met": not short,
    }


def replica_rows(plan: Plan) -> list[dict[str, Any]]:
    """A flat row per replica: where it runs and how."""
    return [_replica_row(r) for r in plan.placement.replicas]


def _replica_row(replica: Replica) -> dict[str, Any]:
    mig, share = replica.mig, replica.share
    return {
        "replica": replica.id,
        "deployment": replica.deployment,
        "gpus": " ".join(replica.gpus),
        "profile": None if mig is None else mig.profile,
        "start": None if mig is None else mig.start,
        "share_gib": None if share is None else gib(share.memory_mib),
        "engine": replica.config.engine,
        "precision": replica.config.precision,
    }


def gpu_rows(plan: Plan) -> list[dict[str, Any]]:
    """A flat row per GPU: mode, how full, price, who is on it."""
    return [
        {
            "gpu": g.id,
            "product": g.gpu,
            "rack": g.rack,
            "mode": g.mode,
            "replicas": " ".join(g.replicas),
            "memory_used": round(g.use.parts_of(g.room)[0], 4),
            "bandwidth_used": round(g.use.parts_of(g.room)[1], 4),
            "compute_used": round(g.use.parts_of(g.room)[2], 4),
            "price_per_hour": money(g.price_micros) if g.mode != "empty" else 0.0,
        }
        for g in plan.gpus
    ]


def to_csv(rows: Sequence[Row]) -> str:
    """Rows of one shape as CSV with a heading; nothing for no rows."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def diff_data(found: Diff) -> dict[str, Any]:
    """A difference as plain data."""
    prices = found.price_micros
    return {
        "same": found.same,
        "changes": [
            {"replica": c.replica, "kind": c.kind, "from": _side(c.before), "to": _side(c.after)}
            for c in found.changes
        ],
        "gpus_on": list(found.gpus_on),
        "gpus_off": list(found.gpus_off),
        "price_per_hour": None if prices is None else [money(p) for p in prices],
        "unmet": [
            {"deployment": name, "missing_rps": [rps(was), rps(now)]}
            for name, was, now in found.unmet
        ],
    }


def _side(replica: Replica | None) -> dict[str, Any] | None:
    return None if replica is None else _replica_row(replica)


def markdown(plan: Plan) -> str:
    """The plan for a ticket or a pull request."""
    parts = [
        f"## Plan for {plan.fleet}: {status.headline(plan)}",
        *([f"{status.totals(plan)}. {status.demand(plan)}."] if status.planned(plan) else []),
        *filter(None, [status.undone(plan) and f"{status.undone(plan)}."]),
        *(f"- {rule}" for rule in plan.conflict),
        *filter(None, [status.way_out(plan)]),
    ]
    if plan.placement.replicas:
        parts += ["### What runs where", _deployments(plan)]
        parts += [f"### Price by tenant ({plan.unit} per hour)", _tenants(plan)]
    if plan.unmet:
        parts += ["### Unmet demand", "\n".join(_unmet(plan))]
    if plan.moves and any(m.kind != "start" for m in plan.moves):
        parts += ["### Moves", f"{moves_sentence(plan)}.", _moves(plan)]
        parts += [f"{left}." for left in (status.left(plan),) if left]
    if plan.objectives:
        levels = [[v.name, v.value, v.bound, v.gap] for v in status.levels(plan)]
        parts += [
            "### Value and bound",
            _table(["objective", "value", "no plan below", "gap"], levels),
            *filter(None, [status.counted(plan)]),
        ]
    parts += [f"Note: {note}" for note in plan.notes]
    parts += [f"- `{i.path}` {i.sha256[:12]}" for i in plan.inputs]
    return "\n\n".join(_joined(parts)) + "\n"


def diff_markdown(found: Diff) -> str:
    """A difference for a ticket or a pull request."""
    parts = [f"- {line}" for line in sentences(found)]
    if found.changes:
        rows = [
            [c.replica, found.tenant_of(c), c.kind, side(c.before), side(c.after)]
            for c in found.changes
        ]
        parts.append(_table(["replica", "tenant", "change", "from", "to"], rows))
    return "\n\n".join(_joined(parts)) + "\n"


def _joined(parts: Iterable[str]) -> list[str]:
    """List items in a row belong to one block."""
    found: list[str] = []
    for part in parts:
        if part.startswith("- ") and found and found[-1].startswith("- "):
            found[-1] += f"\n{part}"
        else:
            found.append(part)
    return found


def _deployments(plan: Plan) -> str:
    rows, costs = [], by_deployment(plan)
    for d, row in zip(ordered(plan), deployment_rows(plan), strict=True):
        asked, room = row["demand_rps"], row["capacity_rps"]
        rates = "" if asked is None else f"{words.number(asked, 2)} / {words.number(room, 2)}"
        rows.append(
            [
                row["tenant"],
                row["deployment"],
                row["runs_as"] or "nothing runs",
                row["where"],
                rates,
                *(_against(d, name) for name in ("ttft", "tpot")),
                costs.get(d.name, f"{row['price_per_hour']:,.2f}"),
            ]
        )
    head = ["tenant", "deployment", "runs as", "where", "req/s asked / room"]
    return _table([*head, "TTFT of SLO", "TPOT of SLO", "price"], rows)


def _against(d: DeploymentPlan, name: str) -> str:
    """``187 ms ±62 % of 800 ms``, with a mark where that may miss the SLO."""
    one = status.promise(d, name)
    if one is None:
        return ""
    return str(one) + {"late": " (missed)", "near": " (may miss)", "good": ""}[one.verdict]


def _tenants(plan: Plan) -> str:
    found = paid(plan)
    rows = [[t.name, two(t.cents), two(t.unused_cents)] for t in found]
    total, unused = sum(t.cents for t in found), sum(t.unused_cents for t in found)
    rows.append(["**total**", two(total), two(unused)])
    return _table(["tenant", "price", "of it unused room"], rows)


def _unmet(plan: Plan) -> Iterable[str]:
    for one in plan.unmet:
        fix = f" Would help: {one.smallest_fix}." if one.smallest_fix else ""
        yield f"- **{one.deployment}** misses {status.missing(plan, one)}: {one.reason}.{fix}"


def _moves(plan: Plan) -> str:
    rows = [
        [one.replicas, one.kind, one.before, one.after, one.load, one.reason]
        for one in alike(plan.moves, plan.left)
    ]
    return _table(["replica", "kind", "from", "to", "GiB", "why"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)
