"""A plan or an outcome that says something untrue is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from builders import a100, candidate, deployment, fleet, gpu, node, place, problem, replica, use
from optimizer.domain.config import Prediction
from optimizer.domain.gpu import Use
from optimizer.domain.outcome import Objective, Outcome, Termination
from optimizer.domain.placement import Instance, Placement
from optimizer.domain.plan import Plan, PlanRun, Unmet
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import compose
from optimizer.verify import check_outcome, check_plan, objectives

A100, L40S = a100(), gpu("l40s", memory_gib=48, bandwidth_gbs=864)
SHARE = use(memory_gib=16, bandwidth_gbs=200, compute=0.3)
HELD, FAST = use(memory_gib=8), Prediction(tpot_ms=20.0)
NOW = place(
    replica("chat/0", "a/0", mig="2g.20gb@0"),
    replica("chat/1", "a/1", mig="2g.20gb@2"),
    replica("vision/0", "b/1", share=SHARE),
)
LATER = place(
    replica("big/0", "a/1"),
    replica("chat/0", "a/0", mig="2g.20gb@0"),
    replica("chat/1", "a/0", mig="2g.20gb@2"),
    replica("vision/0", "b/1", share=SHARE),
    empty=["a/0 3g.40gb@4"],
)


def asked() -> PlacementProblem:
    """Two tenants on a MIG node and a plain one; one request per second stays unserved."""
    machines = fleet(node("a", A100, 2, price=2.0), node("b", L40S, 2, price=1.0))
    return problem(
        machines,
        [
            deployment("chat", rps=3, tenant="acme"),
            deployment("big", tenant="acme", priority=5),
            deployment("vision", tenant="globex"),
        ],
        [
            candidate("chat", A100, profile="2g.20gb", rps=1, takes=HELD, predicted=FAST),
            candidate("big", A100, gpus=1),
            candidate("vision", L40S, share=SHARE),
        ],
        NOW,
    )


def outcome(found: Placement = LATER) -> Outcome:
    """All true, with tight bounds."""
    counted = objectives(asked(), found)
    assert counted.disruption_mib is not None
    claims = [Objective("unmet", ppm, ppm, priority) for priority, ppm in counted.unmet_ppm]
    claims.append(Objective("price_per_hour", counted.price_micros, counted.price_micros))
    claims.append(Objective("disruption", counted.disruption_mib, counted.disruption_mib))
    claims.append(Objective("stranded", counted.stranded_mib, 0))
    return Outcome(Termination.OPTIMAL, found, tuple(claims))


def plan() -> Plan:
    """The plan of that outcome."""
    run = PlanRun(0.1, 1, "2026-01-01T00:00:00Z", "proof")
    return compose(asked(), outcome(), inputs=(), options={}, run=run, dropped={})


def first(values: tuple[Any, ...], **changes: Any) -> tuple[Any, ...]:
    """The first one changed."""
    return (replace(values[0], **changes), *values[1:])


def claim(which: str, **changes: Any) -> Callable[[Outcome], Outcome]:
    """That objective changed."""
    return lambda o: replace(
        o,
        objectives=tuple(replace(c, **changes) if c.name == which else c for c in o.objectives),
    )


@pytest.mark.parametrize(
    ("tamper", "rules"),
    [
        (lambda o: o, set()),
        (claim("stranded", value=7), {"objectives"}),
        (claim("price_per_hour", value=3_999_999), {"objectives", "bound"}),
        (claim("price_per_hour", bound=5_000_001), {"bound"}),
        (claim("price_per_hour", bound=4_999_999), {"status"}),
        (claim("disruption", name="effort"), {"objectives"}),
        (claim("unmet", priority=5), {"objectives"}),
        (lambda o: replace(o, objectives=o.objectives[1:]), {"objectives"}),
        (lambda o: replace(o, termination=Termination.INFEASIBLE), {"status"}),
        (lambda o: replace(o, incumbent=None), {"status"}),
        (lambda o: replace(o, incumbent=None, termination=Termination.NOTHING_FOUND), set()),
        (lambda o: replace(o, incumbent=place(*LATER.replicas[1:])), {"objectives"}),
    ],
    ids=[
        "all true",
        "another stranded room",
        "a lower price",
        "a bound above the value",
        "optimal with a gap",
        "an objective nobody has",
        "a priority twice",
        "an objective left out",
        "infeasible with a placement",
        "optimal without one",
        "nothing found",
        "another placement",
    ],
)
def test_outcome(tamper: Callable[[Outcome], Outcome], rules: set[str]) -> None:
    found = {v.rule for v in check_outcome(asked(), tamper(outcome()))}
    assert found == rules


def test_a_broken_rule_of_the_placement_is_told() -> None:
    broken = replace(
        LATER, instances=(*LATER.instances, Instance("a/1", LATER.instances[0].placed))
    )
    assert [v.rule for v in check_outcome(asked(), replace(outcome(), incumbent=broken))] == [
        "slot_legality"
    ]


TAMPERED: dict[str, tuple[Callable[[Plan], dict[str, Any]], set[str]]] = {
    "nothing": (lambda p: {}, set()),
    "a replica left out": (
        lambda p: {"placement": place(*LATER.replicas[:-1], empty=["a/0 3g.40gb@4"])},
        {"unmet", "deployments", "gpus", "moves", "price", "tenants", "objectives", "uses"}
        | {"arrival"},
    ),
    "a cheaper GPU": (lambda p: {"gpus": first(p.gpus, price_micros=1)}, {"price", "gpus"}),
    "a GPU left out": (lambda p: {"gpus": p.gpus[:-1]}, {"gpus", "price"}),
    "a GPU twice": (lambda p: {"gpus": (*p.gpus, p.gpus[-2])}, {"gpus"}),
    "another mode": (lambda p: {"gpus": first(p.gpus, mode="whole")}, {"gpus"}),
    "another product": (lambda p: {"gpus": first(p.gpus, gpu="l40s")}, {"gpus"}),
    "an instance hidden": (
        lambda p: {"gpus": first(p.gpus, instances=p.gpus[0].instances[:2])},
        {"gpus"},
    ),
    "a cordon hidden": (lambda p: {"gpus": first(p.gpus, cordoned=True)}, {"gpus"}),
    "another unit": (lambda p: {"unit": "GPUs"}, {"price"}),
    "a tenant pays less": (
        lambda p: {"tenants": first(p.tenants, price_micros=p.tenants[0].price_micros - 9)},
        {"tenants"},
    ),
    "a tenant pays another's": (
        lambda p: {
            "tenants": (
                replace(p.tenants[0], price_micros=p.tenants[0].price_micros - 1000),
                replace(p.tenants[1], price_micros=p.tenants[1].price_micros + 1000),
            )
        },
        {"tenants"},
    ),
    "no unused room": (lambda p: {"tenants": first(p.tenants, stranded_micros=0)}, {"tenants"}),
    "unmet demand hidden": (lambda p: {"unmet": ()}, {"unmet"}),
    "unmet demand made up": (
        lambda p: {"unmet": (*p.unmet, Unmet("big", 0, 1, "no reason"))},
        {"unmet"},
    ),
    "a protected tenant disturbed": (
        lambda p: {"options": {"protected_tenants": sorted({d.tenant for d in p.deployments})}},
        {"do_not_disturb"},
    ),
    "more capacity": (
        lambda p: {"deployments": first(p.deployments, capacity_mrps=3000)},
        {"deployments"},
    ),
    "less demand": (
        lambda p: {"deployments": first(p.deployments, demand_mrps=2000)},
        {"deployments"},
    ),
    "more replicas": (lambda p: {"deployments": first(p.deployments, replicas=3)}, {"deployments"}),
    "less memory": (
        lambda p: {"uses": {**p.uses, "big/0": Use(1, 1, 1)}},
        {"uses"},
    ),
    "a GPU that holds nothing": (lambda p: {"gpus": first(p.gpus, use=Use())}, {"uses"}),
    "faster than sized": (
        lambda p: {"deployments": first(p.deployments, predicted=Prediction(tpot_ms=19.9))},
        {"predictions"},
    ),
    "slower than sized": (
        lambda p: {"deployments": first(p.deployments, predicted=Prediction(tpot_ms=20.1))},
        set(),
    ),
    "a deployment left out": (lambda p: {"deployments": p.deployments[1:]}, {"deployments"}),
    "a deployment made up": (
        lambda p: {"deployments": (*p.deployments, replace(p.deployments[0], name="new"))},
        {"deployments"},
    ),
    "a move hidden": (lambda p: {"moves": p.moves[1:]}, {"moves"}),
    "a move twice": (lambda p: {"moves": (*p.moves, p.moves[0])}, {"moves"}),
    "a move elsewhere": (
        lambda p: {"moves": first(p.moves, after=replica("big/0", "b/0"))},
        {"moves"},
    ),
    "a repartition hidden": (lambda p: {"repartitions": ()}, {"repartitions"}),
    "a step left out": (
        lambda p: {"steps": tuple(s for s in p.steps if s.action != "stop")},
        {"slot_legality", "arrival", "step_order"},
    ),
    "infeasible": (lambda p: {"status": "infeasible"}, {"status"}),
}


@pytest.mark.parametrize(("tamper", "rules"), TAMPERED.values(), ids=TAMPERED)
def test_tampered_plan(tamper: Callable[[Plan], dict[str, Any]], rules: set[str]) -> None:
    honest = plan()
    assert {v.rule for v in check_plan(asked(), replace(honest, **tamper(honest)))} == rules


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        ({}, 0),
        ({"max_moves": 2}, 0),
        ({"max_moves": 1}, 1),
        ({"max_load_gib": 0.0}, 0),
        ({"max_load_gib": -0.1}, 1),
    ],
    ids=["no limit", "just as many", "one too many", "just as heavy", "too heavy"],
)
def test_move_limit(options: dict[str, Any], faults: int) -> None:
    """big starts and chat/1 moves: two copies, each a load of its own."""
    made = plan()
    told = dict(options)
    if "max_load_gib" in told:
        told["max_load_gib"] += sum(m.load_mib for m in made.moves) / 1024
    judged = check_plan(asked(), replace(made, options=told))
    found = [v for v in judged if v.rule == "move_limit"]
    assert len(found) == faults
