"""What is known about a plan, in plain words: proved, within a bound, or not known."""

from dataclasses import dataclass

from optimizer.domain import words
from optimizer.domain.outcome import Objective
from optimizer.domain.plan import Plan
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
        name = NAMES.get(objective.name, objective.name)
        if objective.name == "price_per_hour" and objective.bound > 0:
            above = (objective.value - objective.bound) / objective.bound
            return f"price at most {_rounded_up(above)} above the optimum"
        better = amount(objective, objective.value - objective.bound, plan.unit)
        return f"{name} at most {better} above the optimum"
    return "proved in all that counts"


def _rounded_up(part: float) -> str:
    """A claim about a gap is never rounded down."""
    digits = 1 if part >= 0.001 else 3
    scale = 100 * 10**digits
    return f"{words.number(-(-part * scale // 1) / 10**digits, digits)} %"


def amount(objective: Objective, value: int, unit: str) -> str:
    """A value of that objective with its unit."""
    if objective.name == "unmet":
        return f"{words.number(100 * value / PPM, 2)} % missing" if value else "none"
    if objective.name == "price_per_hour":
        return words.price(value, unit)
    return f"{words.number(value / MIB_PER_GIB, 1)} GiB"


def levels(plan: Plan) -> tuple[Level, ...]:
    """Every objective with its value, bound and gap."""
    found = []
    for objective in plan.objectives:
        name = NAMES.get(objective.name, objective.name)
        if objective.priority is not None:
            name += f", priority {objective.priority}"
        found.append(
            Level(
                name,
                amount(objective, objective.value, plan.unit),
                amount(objective, objective.bound, plan.unit),
                "proved" if objective.proved else _rounded_up(objective.gap),
                objective.proved,
            )
        )
    return tuple(found)


def totals(plan: Plan) -> str:
    """``131.50 USD/h on 61 of 64 GPUs``."""
    used = sum(g.mode != "empty" for g in plan.gpus)
    of = f"{used:,} of {words.plural(len(plan.gpus), 'GPU')}"
    if plan.unit == words.GPUS:
        return f"{of} used"
    return f"{words.price(plan.price_micros, plan.unit)} on {of}"


def demand(plan: Plan) -> str:
    """``83 replicas of 25 deployments: all demand met``, or how many miss something."""
    replicas = words.plural(len(plan.placement.replicas), "replica")
    told = f"{replicas} of {words.plural(len(plan.deployments), 'deployment')}"
    if not plan.unmet:
        return f"{told}: all demand met"
    verb = "gets" if len(plan.unmet) == 1 else "get"
    short = words.plural(len(plan.unmet), "deployment")
    return f"{told}: {short} {verb} less than asked"
