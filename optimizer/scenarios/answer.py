"""What a scenario's plan comes to, in few values: cheap to send, to store and to compare."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimizer.domain import words
from optimizer.domain.outcome import Objective
from optimizer.domain.plan import DeploymentPlan, Plan, Unmet
from optimizer.domain.units import MICROS, money, rps

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tightest:
    """The promise that a plan comes closest to breaking. Milliseconds, at the SLO's percentile."""

    deployment: str
    what: str  # ttft_ms | tpot_ms
    predicted_ms: float
    promised_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One scenario's result. Prices in millionths per hour; None: there is no plan.

    ``failed`` is the reason why there is no result at all; everything else is then empty.
    ``conflict``: a minimal set of hard rules that clash, ``fixes`` single changes with which a plan
    is possible; both only where there is no plan.
    """

    name: str
    status: str | None = None
    price_micros: int | None = None
    bound_micros: int | None = None
    gpus_used: int | None = None
    gpus_by_product: tuple[tuple[str, int], ...] = ()
    unmet: tuple[Unmet, ...] = ()
    unmet_proved: bool = False  # no plan leaves less unserved
    moves: int | None = None
    tightest: Tightest | None = None
    conflict: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    reproducible: bool = True
    failed: str | None = None

    @property
    def planned(self) -> bool:
        """Whether there is a placement."""
        return self.gpus_used is not None

    @property
    def clash(self) -> tuple[str, ...]:
        """The rules that do not all hold: hard ones that clash, else the demand that gives way."""
        return self.conflict or tuple(f"demand_met: {one.deployment}" for one in self.unmet)

    @property
    def fix(self) -> str | None:
        """The smallest change known to help: with all rules kept, or for each who is short."""
        if self.fixes:
            return self.fixes[0]
        found = [f"{u.deployment}: {u.smallest_fix}" for u in self.unmet if u.smallest_fix]
        return "; ".join(found) or None


@dataclass(frozen=True, slots=True)
class Summary:
    """What differences are told of: the answer, and how each deployment runs.

    ``fingerprint``: a hash of demand and placement, by which answers know their baseline.
    """

    answer: Answer
    unit: str
    fingerprint: str = ""
    tenants: Mapping[str, str] = field(default_factory=dict)  # of each deployment
    ways: Mapping[str, str] = field(default_factory=dict)


def summary(plan: Plan, name: str = "baseline", gap: float = 0.0) -> Summary:
    """A plan in short; ``gap`` is what was asked for."""
    return Summary(
        answer=_answer(plan, name, gap),
        unit=plan.unit,
        fingerprint=_fingerprint(plan),
        tenants={d.name: d.tenant for d in plan.deployments},
        ways={d.name: _ways(d) for d in plan.deployments},
    )


def _fingerprint(plan: Plan) -> str:
    """The same for a plan read back from its file, and another for any other placement."""
    asked = [(d.name, d.demand_mrps) for d in plan.deployments]
    placed = [(r.id, r.gpus, r.mig, r.share) for r in plan.placement.replicas]
    said = repr((plan.unit, plan.price_micros, asked, placed))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


FIX = "a plan is possible "  # how notes of an impossible plan name a change that helps


def _answer(plan: Plan, name: str, gap: float) -> Answer:
    if plan.status in ("infeasible", "nothing_found"):
        return Answer(
            name,
            plan.status,
            conflict=plan.conflict,
            fixes=tuple(n.removeprefix(FIX) for n in plan.notes if n.startswith(FIX)),
            reproducible=plan.reproducible,
        )
    used = [gpu for gpu in plan.gpus if gpu.mode != "empty"]
    price: Objective | None = next((o for o in plan.objectives if o.name == "price_per_hour"), None)
    return Answer(
        name,
        _status(plan, gap),
        price_micros=plan.price_micros,
        bound_micros=None if price is None else price.bound,
        gpus_used=len(used),
        gpus_by_product=tuple(sorted(Counter(gpu.gpu for gpu in used).items())),
        unmet=plan.unmet,
        unmet_proved=all(o.proved for o in plan.objectives if o.name == "unmet"),
        moves=len(plan.moves),
        tightest=min(_promises(plan), key=_room, default=None),
        reproducible=plan.reproducible,
    )


def _status(plan: Plan, gap: float) -> str:
    """What is known of who goes unserved and of the price; moves need not be proved the fewest.

    Whoever compares scenarios asks for these: a scenario starts from the baseline, so moves are a
    level of its search, and the bound on them is seldom reached.
    """
    told = [o for o in plan.objectives if o.name in ("unmet", "price_per_hour")]
    if plan.status != "limit" or not all(o.gap <= gap for o in told):
        return plan.status
    return "optimal" if all(o.proved for o in told) else "within_gap"


def _promises(plan: Plan) -> Iterator[Tightest]:
    for d in plan.deployments:
        if d.slo is None or d.predicted is None or not d.replicas:
            continue
        for what in ("ttft_ms", "tpot_ms"):
            promised, predicted = getattr(d.slo, what), getattr(d.predicted, what)
            if promised is not None and predicted is not None:
                yield Tightest(d.name, what, predicted, promised)


def _room(one: Tightest) -> tuple[float, str, str]:
    return (1 - one.predicted_ms / one.promised_ms, one.deployment, one.what)


def _ways(deployment: DeploymentPlan) -> str:
    """``2 x h100-80gb-sxm 2g.20gb fp8 vllm + 1 x l40s fp8 vllm``."""
    parts = []
    for use in deployment.configs:
        room = words.room(use.gpu, use.profile, use.sharing, use.gpus_per_replica)
        parts.append(f"{use.count} x {room} {words.settings(use.config)}".rstrip())
    return " + ".join(parts)


def entry(answer: Answer) -> Json:
    """The answer as ``whatif -o json`` and its result lines have it."""
    if answer.failed is not None:
        nothing = dict.fromkeys(("status", "price_per_hour", "bound", "gpus_used"))
        rest: Json = {"unmet": [], "moves": None, "failed": answer.failed, "differences": []}
        return {"name": answer.name, **nothing, **rest}
    close = answer.tightest
    return {
        "name": answer.name,
        "status": answer.status,
        "price_per_hour": _money(answer.price_micros),
        "bound": _money(answer.bound_micros),
        "gpus_used": answer.gpus_used,
        "gpus_by_product": dict(answer.gpus_by_product),
        "unmet": unmet_rows(answer.unmet),
        "unmet_proved": answer.unmet_proved,
        "moves": answer.moves,
        "tightest_slo": None
        if close is None
        else {
            "deployment": close.deployment,
            "what": close.what,
            "predicted_ms": close.predicted_ms,
            "promised_ms": close.promised_ms,
        },
        "clash": list(answer.clash),
        "fix": answer.fix,
        "fixes": list(answer.fixes),
        "failed": None,
        "differences": list(answer.differences),
        "reproducible": answer.reproducible,
    }


def unmet_rows(unmet: Sequence[Unmet]) -> list[Json]:
    """Unserved demand in people's units."""
    return [
        {
            "deployment": one.deployment,
            "missing_rps": rps(one.missing_mrps),
            "missing_replicas": one.missing_replicas,
            "reason": one.reason,
            "smallest_fix": one.smallest_fix,
        }
        for one in unmet
    ]


def read_entry(data: Mapping[str, Any]) -> Answer:
    """The answer that ``entry`` wrote. Raises KeyError, TypeError or ValueError on another's."""
    if data["failed"] is not None:
        return Answer(str(data["name"]), failed=str(data["failed"]))
    close = data["tightest_slo"]
    return Answer(
        name=data["name"],
        status=data["status"],
        price_micros=_micros(data["price_per_hour"]),
        bound_micros=_micros(data["bound"]),
        gpus_used=data["gpus_used"],
        gpus_by_product=tuple(data["gpus_by_product"].items()),
        unmet=tuple(
            Unmet(
                one["deployment"],
                round(one["missing_rps"] * 1000),
                one["missing_replicas"],
                one["reason"],
                one["smallest_fix"],
            )
            for one in data["unmet"]
        ),
        unmet_proved=data["unmet_proved"],
        moves=data["moves"],
        tightest=None if close is None else Tightest(**close),
        conflict=tuple(data["clash"]) if data["status"] == "infeasible" else (),
        fixes=tuple(data["fixes"]),
        differences=tuple(data["differences"]),
        reproducible=data["reproducible"],
    )


def _money(micros: int | None) -> float | None:
    return None if micros is None else money(micros)


def _micros(price: float | None) -> int | None:
    return None if price is None else round(price * MICROS)
