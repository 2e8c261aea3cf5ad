"""One self-contained page: the plan as a map, tables and a time line; nothing is loaded."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any

from optimizer.domain import words
from optimizer.domain.placement import node_of, replica_order
from optimizer.domain.plan import DeploymentPlan, GpuPlan, Plan, Step
from optimizer.domain.units import MIB_PER_GIB, money
from optimizer.report import status
from optimizer.report.data import deployment_rows
from optimizer.report.ink import PALETTE
from optimizer.report.pieces import Layout, Piece
from optimizer.report.tables import end, moves_sentence, ordered

STEPS = 400  # bars of the time line; more would hide each other
Row = dict[str, Any]


def render_html(plan: Plan, whatif: Mapping[str, Any] | None = None) -> str:
    """The page of a plan; with ``whatif`` (as of ``whatif -o json``) its scenarios too."""
    tenants = sorted({d.tenant for d in plan.deployments})
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(tenants)}
    page: str = _page().render(
        plan=plan,
        headline=status.headline(plan),
        totals=status.totals(plan),
        demand=status.demand(plan),
        levels=status.levels(plan),
        colours=colours,
        priced=plan.unit != words.GPUS,
        nodes=list(_nodes(plan, Layout(plan))),
        facts=_script_json(_facts(plan)),
        deployments=[_deployment(plan, d, row) for d, row in _paired(plan)],
        tenants=_tenants(plan),
        products=_products(plan),
        moves=[_move(m) for m in plan.moves],
        moves_told=moves_sentence(plan) if plan.moves else "",
        lanes=list(_lanes(plan)),
        steps_hidden=max(0, len(plan.steps) - STEPS),
        duration=words.duration(end(plan)),
        whatif=whatif,
    )
    return page


@lru_cache(maxsize=1)
def _page() -> Any:
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("optimizer.report", "page")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("report.html.j2")


def _script_json(data: Any) -> str:
    """JSON that may stand inside a script element, whatever its texts say."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# --- the map --------------------------------------------------------------------------------------


def _nodes(plan: Plan, layout: Layout) -> Iterator[Row]:
    for name, run in groupby(plan.gpus, lambda g: node_of(g.id)):
        gpus = list(run)
        first = gpus[0]
        yield {
            "name": name,
            "product": first.gpu,
            "rack": first.rack or "",
            "price": words.price(first.price_micros, plan.unit),
            "used": sum(g.mode != "empty" for g in gpus),
            "gpus": [_gpu(g, layout) for g in gpus],
        }


def _gpu(gpu: GpuPlan, layout: Layout) -> Row:
    memory, bandwidth, compute = (round(100 * part) for part in gpu.use.parts_of(gpu.room))
    if gpu.mode == "empty":
        pieces = [Piece(0, 1, "free")]
        told = "cordoned, empty" if gpu.cordoned else "empty"
    else:
        pieces = layout.pieces(gpu)
        told = f"{', '.join(gpu.replicas)}; {memory} % of memory"
    return {
        "index": gpu.id.rpartition("/")[2],
        "id": gpu.id,
        "cordoned": gpu.cordoned,
        "empty": gpu.mode == "empty",
        "told": told,
        "memory": memory,
        "bandwidth": bandwidth,
        "compute": compute,
        "pieces": [(round(100 * (p.end - p.start), 2), p) for p in pieces],
    }


def _facts(plan: Plan) -> Row:
    """What a hover shows: replicas by id, and the predictions of their deployments."""
    known = {d.name: d for d in plan.deployments}
    return {
        "replicas": {
            r.id: [r.deployment, words.place(r), words.settings(r.config), _use(plan, r.id)]
            for r in plan.placement.replicas
        },
        "deployments": {
            name: {
                "tenant": d.tenant,
                "rate": "" if d.demand_mrps is None else words.rate(d.demand_mrps),
                "room": "" if d.capacity_mrps is None else words.rate(d.capacity_mrps),
                "ttft": _told_time(d, "ttft"),
                "tpot": _told_time(d, "tpot"),
            }
            for name, d in known.items()
        },
    }


def _use(plan: Plan, replica: str) -> str:
    use = plan.uses.get(replica)
    if use is None:
        return ""
    bandwidth = words.number(use.bandwidth_mbs / 1000, 0)
    return (
        f"{words.gib(use.memory_mib)}, {bandwidth} GB/s, {words.percent(use.compute_ppm / 1e6, 0)}"
        " of the SMs"
    )


def _told_time(d: DeploymentPlan, name: str) -> str:
    one = status.promise(d, name)
    return "" if one is None else str(one)


# --- tables ---------------------------------------------------------------------------------------


def _paired(plan: Plan) -> Iterator[tuple[DeploymentPlan, Row]]:
    return zip(ordered(plan), deployment_rows(plan), strict=True)


def _deployment(plan: Plan, d: DeploymentPlan, row: Row) -> Row:
    return {
        **row,
        "price": f"{row['price_per_hour']:,.2f}",
        "asked": "" if d.demand_mrps is None else words.number(d.demand_mrps / 1000, 2),
        "room": "" if d.capacity_mrps is None else words.number(d.capacity_mrps / 1000, 2),
        "ttft": _against(d, "ttft"),
        "tpot": _against(d, "tpot"),
        "reasons": d.reasons,
    }


def _against(d: DeploymentPlan, name: str) -> Row | None:
    """A prediction on a scale that ends at 1.5 times the SLO (or at the band's end)."""
    one = status.promise(d, name)
    if one is None:
        return None
    value, band, promised = one.value_ms, (one.band or 0) / 100, one.promised_ms
    end = 1.5 * promised if promised is not None else value * (1 + band) or 1.0
    return {
        "value": value,
        "text": str(one),
        "at": min(100, round(100 * value / end, 1)),
        "low": min(100, round(100 * value * max(0.0, 1 - band) / end, 1)),
        "high": min(100, round(100 * value * (1 + band) / end, 1)),
        "slo": None if promised is None else round(100 / 1.5, 1),
        "verdict": one.verdict,
    }


def _tenants(plan: Plan) -> list[Row]:
    total = max(1, sum(t.price_micros for t in plan.tenants))
    return [
        {
            "name": t.name,
            "price": f"{money(t.price_micros):,.2f}",
            "unused": f"{money(t.stranded_micros):,.2f}",
            "part": round(100 * t.price_micros / total, 1),
        }
        for t in sorted(plan.tenants, key=lambda t: (-t.price_micros, t.name))
    ]


def _products(plan: Plan) -> list[Row]:
    """How full the used GPUs of each product are, in memory, bandwidth and compute."""
    rows = []
    for product, run in groupby(sorted(plan.gpus, key=lambda g: g.gpu), lambda g: g.gpu):
        gpus = list(run)
        used = [g for g in gpus if g.mode != "empty"]
        parts = [g.use.parts_of(g.room) for g in used]
        means = [round(100 * sum(p) / len(used)) for p in zip(*parts, strict=True)] or [0, 0, 0]
        rows.append(
            {
                "name": product,
                "count": len(gpus),
                "used": len(used),
                "price": f"{money(sum(g.price_micros for g in used)):,.2f}",
                "bars": list(zip(("memory", "bandwidth", "compute"), means, strict=True)),
            }
        )
    return rows


def _move(move: Any) -> Row:
    return {
        "replica": move.replica,
        "kind": move.kind,
        "before": "" if move.before is None else words.place(move.before),
        "after": "" if move.after is None else words.place(move.after),
        "gib": words.number(move.load_mib / MIB_PER_GIB, 1) if move.load_mib else "",
        "reason": move.reason,
    }


# --- the time line --------------------------------------------------------------------------------


def _lanes(plan: Plan) -> Iterator[Row]:
    """A lane per GPU, or per group of GPUs, with its steps as bars."""
    steps, last = plan.steps[:STEPS], max(1, end(plan))
    by_place = sorted(steps, key=lambda s: (_lane(s), s.start_s, s.id))
    for place, run in groupby(by_place, _lane):
        yield {
            "name": words.gpus(place),
            "bars": [
                {
                    "left": round(100 * s.start_s / last, 2),
                    "width": max(0.4, round(100 * s.seconds / last, 2)),
                    "action": s.action,
                    "told": f"{words.clock(s.start_s)} {s.action.replace('_', ' ')} "
                    f"{s.replica or ''} ({words.duration(s.seconds)}): {s.because}",
                }
                for s in run
            ],
        }


def _lane(step: Step) -> tuple[str, ...]:
    return tuple(sorted(step.gpus, key=replica_order))
