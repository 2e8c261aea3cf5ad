"""What is known about a plan, in plain words: proved, within a bound, or not known."""

from dataclasses import dataclass, replace
from itertools import groupby

from optimizer.domain import words
from optimizer.domain.outcome import Objective
from optimizer.domain.plan import DeploymentPlan, GpuPlan, Plan, Unmet
from optimizer.domain.units import MIB_PER_GIB, PPM

NAMES = {
    "unmet": "unmet demand",
    "price_per_hour": "price",
    "disruption": "disruption",
    "stranded": "stranded room (tie-break)",
}
STOPPED = {
    "time_limit": "the time limit was reached",
    "effort": "the search effort was spent",
    "gap": "the gap asked for was reached",
    "interrupt": "it was interrupted",
}


@dataclass(frozen=True, slots=True)
class Level:
    """One objective in words."""

    name: str
    value: str
    bound: str
    gap: str
    proved: bool


def planned(plan: Plan) -> bool:
    """Whether there is a placement."""
    return plan.status not in ("infeasible", "nothing_found")


def headline(plan: Plan) -> str:
    """``proved optimal``, ``at most 0.4 % above the optimum``, ``infeasible``..."""
    if plan.status == "optimal":
        return "proved optimal"
    if plan.status == "infeasible":
        return "infeasible: the hard rules clash"
    if plan.status == "nothing_found":
        return "no plan found in time; whether there is one is not known"
    why = STOPPED.get(plan.run.stopped_by, "")
    told = _distance(plan)
    return f"{told}; {why}" if why else told


def _distance(plan: Plan) -> str:
    """How far from the optimum the first level that is not proved may be."""
    for objective in plan.objectives:
        if objective.proved or objective.name == "stranded":
            continue
        name = _name(objective, plan.unit)
        if objective.name == "price_per_hour" and objective.bound > 0:
            above = (objective.value - objective.bound) / objective.bound
            return f"{name} at most {_rounded_up(above)} above the optimum"
        better = amount(objective, objective.value - objective.bound, plan.unit)
        return f"{name} at most {better} above the optimum"
    return "proved in all that counts"


def _rounded_up(part: float) -> str:
    """A claim about a gap is never rounded down."""
    digits = 1 if part >= 0.001 else 3
    scale = 100 * 10**digits
    return f"{words.number(-(-part * scale // 1) / 10**digits, digits)} %"


def _name(objective: Objective, unit: str) -> str:
    if objective.name == "price_per_hour" and unit == words.GPUS:
        return "GPUs used"
    return NAMES.get(objective.name, objective.name)


def amount(objective: Objective, value: int, unit: str) -> str:
    """A value of that objective with its unit."""
    if objective.name == "unmet":
        # A sum over deployments of missing/asked: 0.35 is a third of what one of them asks.
        told = words.number(value / PPM, 2 if value >= PPM // 10 else 6)
        return f"{told} deployment{'' if told == '1' else 's'}" if value else "none"
    if objective.name == "price_per_hour":
        return words.price(value, unit)
    return f"{words.number(value / MIB_PER_GIB, 1)} GiB"


def levels(plan: Plan) -> tuple[Level, ...]:
    """Every objective with its value, bound and gap; priorities that say the same in one line."""
    told = ((_level(objective, plan.unit), objective.priority) for objective in plan.objectives)
    found = []
    for level, run in groupby(told, lambda pair: pair[0]):
        priorities = [str(priority) for _, priority in run if priority is not None]
        if len(priorities) > 1:
            both = f"{priorities[0]} to {priorities[-1]}"
            level = replace(level, name=f"{level.name}, priorities {both}")
        elif priorities:
            level = replace(level, name=f"{level.name}, priority {priorities[0]}")
        found.append(level)
    return tuple(found)


def _level(objective: Objective, unit: str) -> Level:
    return Level(
        _name(objective, unit),
        amount(objective, objective.value, unit),
        amount(objective, objective.bound, unit),
        "proved" if objective.proved else _rounded_up(objective.gap),
        objective.proved,
    )


def totals(plan: Plan) -> str:
    """``131.50 USD/h on 61 of 64 GPUs``, and what runs now where something is to change."""
    used = sum(g.mode != "empty" for g in plan.gpus)
    of = f"{used:,} of {words.plural(len(plan.gpus), 'GPU')}"
    was = gpus_before(plan)
    now = f", now {words.price(sum(g.price_micros for g in was), plan.unit)} on {len(was):,}"
    since = now if was else ""
    if plan.unit == words.GPUS:
        return f"{of} used" + (f", now {len(was):,}" if was else "")
    return f"{words.price(plan.price_micros, plan.unit)} on {of}{since}"


def from_scratch(plan: Plan) -> bool:
    """Whether nothing runs yet: every replica is one to start."""
    started = {m.replica for m in plan.moves if m.kind == "start"}
    return len(started) == len(plan.moves) and all(r.id in started for r in plan.placement.replicas)


def gpus_before(plan: Plan) -> tuple[GpuPlan, ...]:
    """The GPUs that count now, before the moves; none where nothing runs or nothing changes."""
    if not plan.moves or from_scratch(plan):
        return ()
    moved = {m.replica for m in plan.moves}
    ids = {g for r in plan.placement.replicas if r.id not in moved for g in r.gpus}
    ids |= {g for m in plan.moves if m.before is not None for g in m.before.gpus}
    reserved = {g.id for g in plan.gpus if g.mode != "empty" and not g.replicas}
    return tuple(g for g in plan.gpus if g.id in ids | reserved)


def missing(plan: Plan, one: Unmet) -> str:
    """``3 of 12 req/s and 1 replica``: what a deployment does not get of what it asks."""
    asked = next((d.demand_mrps for d in plan.deployments if d.name == one.deployment), None)
    parts = []
    if one.missing_mrps and asked:
        parts.append(f"{words.number(one.missing_mrps / 1000)} of {words.rate(asked)}")
    elif one.missing_mrps:
        parts.append(words.rate(one.missing_mrps))
    if one.missing_replicas:
        parts.append(words.plural(one.missing_replicas, "replica"))
    return " and ".join(parts)


def left(plan: Plan) -> str:
    """Which replicas stay as they are for want of a safe order; empty where none does."""
    if not plan.left:
        return ""
    return f"Left as they are, since no safe order was found: {', '.join(plan.left)}"


def short(plan: Plan) -> str:
    """That the steps lead no farther than this plan, where a better one was found; else empty."""
    told = (note for note in plan.notes if note.startswith(words.NOT_ALL_TONIGHT))
    return next((note[0].upper() + note[1:] for note in told), "")


def undone(plan: Plan) -> str:
    """That some changes stay undone, so what is told of the plan is not yet so; else empty."""
    if not plan.left:
        return ""
    verb = "has" if len(plan.left) == 1 else "have"
    return (
        f"{words.plural(len(plan.left), 'change')} {verb} no safe order and will not be done; "
        "all else here is told as if done"
    )


def counted(plan: Plan) -> str:
    """How unmet demand is counted, where there is some; else empty."""
    if not any(o.name == "unmet" and o.value for o in plan.objectives):
        return ""
    return "Unmet adds up parts of what each asks: 0.5 is half of one."


def way_out(plan: Plan) -> str:
    """What to do when there is no plan; empty where there is one."""
    if plan.status == "nothing_found":
        return "More time may find one: --time-limit SECONDS, --effort SECONDS."
    if plan.status == "infeasible":
        return "Change or take away one of the rules above; only demand and replicas.min give way."
    return ""


def demand(plan: Plan) -> str:
    """``83 replicas of 25 deployments: all demand met``, or how many miss something."""
    if not plan.deployments:
        return "Nothing was asked for: there are no deployments"
    replicas = words.plural(len(plan.placement.replicas), "replica")
    told = f"{replicas} of {words.plural(len(plan.deployments), 'deployment')}"
    if not plan.unmet:
        return f"{told}: all demand met"
    verb = "gets" if len(plan.unmet) == 1 else "get"
    short = words.plural(len(plan.unmet), "deployment")
    return f"{told}: {short} {verb} less than asked"


@dataclass(frozen=True, slots=True)
class Promise:
    """A predicted time beside what the SLO promises; the band is its p90 error in percent."""

    deployment: str
    name: str  # ttft | tpot
    value_ms: float
    promised_ms: float | None
    band: float | None

    @property
    def verdict(self) -> str:
        """``late``: misses the SLO; ``near``: may miss it within the error; else ``good``."""
        if self.promised_ms is None:
            return "good"
        if self.value_ms > self.promised_ms:
            return "late"
        return "near" if self.value_ms * (1 + (self.band or 0) / 100) > self.promised_ms else "good"

    def __str__(self) -> str:
        told = f"{words.number(self.value_ms, 1 if self.value_ms < 20 else 0)} ms"
        told += f" ±{words.number(self.band, 0)} %" if self.band is not None else ""
        promised = self.promised_ms
        return told + (f" of {words.number(promised, 0)} ms" if promised is not None else "")


def promise(d: DeploymentPlan, name: str) -> Promise | None:
    """The predicted ``ttft`` or ``tpot`` of a deployment; None where nothing is predicted."""
    value = getattr(d.predicted, f"{name}_ms", None)
    if value is None or d.predicted is None:
        return None
    band = dict(d.predicted.error_band_percent).get(name)
    return Promise(d.name, name, value, getattr(d.slo, f"{name}_ms", None), band)


def promises(plan: Plan) -> tuple[Promise, ...]:
    """Every predicted time that an SLO speaks of, the closest to its limit first."""
    found = (promise(d, name) for d in plan.deployments for name in ("ttft", "tpot"))
    kept = [p for p in found if p is not None and p.promised_ms]
    return tuple(sorted(kept, key=lambda p: (-p.value_ms / (p.promised_ms or 1), p.deployment)))


def slos(plan: Plan) -> str:
    """How many SLOs hold even at the p90 error, and the closest to its limit; empty without any."""
    found = promises(plan)
    if not found:
        return ""
    first, safe = found[0], sum(p.verdict == "good" for p in found)
    closest = f"{first.deployment} {first.name.upper()} {first}"
    return f"SLOs kept even at the p90 error: {safe} of {len(found)}; closest: {closest}"
