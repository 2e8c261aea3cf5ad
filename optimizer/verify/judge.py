"""Every rule, and the judge that asks them all."""

from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.verify.facts import Facts, Violation
from optimizer.verify.fleet_rules import (
    do_not_disturb,
    fixed_layout,
    power_limit,
    price_limit,
    reserve,
)
from optimizer.verify.rules import (
    Rule,
    affinity,
    allowed,
    anti_affinity,
    cordon,
    demand_met,
    device_bandwidth,
    device_compute,
    device_memory,
    host_cpu,
    host_memory,
    identity,
    interconnect,
    isolation,
    network_bandwidth,
    pin,
    replica_bounds,
    slot_legality,
    spread,
    survive,
)

RULES: tuple[Rule, ...] = (
    identity,
    slot_legality,
    device_memory,
    device_bandwidth,
    device_compute,
    host_cpu,
    host_memory,
    network_bandwidth,
    interconnect,
    demand_met,
    replica_bounds,
    spread,
    survive,
    isolation,
    anti_affinity,
    affinity,
    pin,
    allowed,
    cordon,
    fixed_layout,
    reserve,
    price_limit,
    power_limit,
    do_not_disturb,
)


def verify(problem: PlacementProblem, placement: Placement) -> tuple[Violation, ...]:
    """Every violation of every rule, sorted by rule, subject and message; empty when all hold."""
    return judge(Facts.of(problem, placement))


def judge(facts: Facts) -> tuple[Violation, ...]:
    """Every violation in an indexed placement, sorted."""
    return tuple(sorted({violation for rule in RULES for violation in rule(facts)}))
