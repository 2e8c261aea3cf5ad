"""The plan as one value: prices, places, reasons, and what is unmet and why."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from builders import (
    a100,
    candidate,
    deployment,
    fleet,
    gpu,
    node,
    place,
    placed,
    problem,
    replica,
    use,
)
from optimizer.domain import words
from optimizer.domain.config import Candidate, Dropped, Prediction, ReplicaConfig
from optimizer.domain.fleet import Fleet
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Plan, PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.planning import compose
from optimizer.planning.match import Matcher
from optimizer.planning.reasons import reasons
from optimizer.planning.unmet import unmet
from optimizer.verify import check_plan

A100, PLAIN = a100(), gpu("plain", memory_gib=48)
RUN = PlanRun(0.1, 1, "2026-01-01T00:00:00Z", "proof")
BF16, FP8 = ReplicaConfig(precision="bf16"), ReplicaConfig(precision="fp8")


def plan_of(
    where: PlacementProblem, found: Placement | None, status: str = "limit", **other: Any
) -> Plan:
    """The composed plan, without objectives."""
    outcome = Outcome(Termination(status), found)
    return compose(where, outcome, inputs=(), options={}, run=RUN, dropped={}, **other)


def slices(name: str, *places: str) -> list[Any]:
    """``slices("chat", "a/0 1g.10gb@0")``."""
    split = [text.split() for text in places]
    return [replica(f"{name}/{n}", gpu, mig=mig) for n, (gpu, mig) in enumerate(split)]


def two_tenants() -> PlacementProblem:
    """chat of acme and rank of globex in slices of two A100s at 3.00 an hour."""
    return problem(
        fleet(node("a", A100, 2, price=3.0)),
        [deployment("chat", rps=2, tenant="acme"), deployment("rank", tenant="globex")],
        [
            candidate("chat", A100, profile="2g.20gb", rps=1),
            candidate("rank", A100, profile="1g.10gb"),
            candidate("rank", A100, gpus=1),
        ],
    )


def test_a_mig_gpu_is_paid_by_the_slices_held() -> None:
    """2 + 2 of chat and 1 of rank: four fifths and one fifth of 3.00; three slices unused."""
    found = place(
        *slices("chat", "a/0 2g.20gb@0", "a/0 2g.20gb@2"), *slices("rank", "a/0 1g.10gb@4")
    )
    plan = plan_of(two_tenants(), found)
    assert [(t.name, t.price_micros) for t in plan.tenants] == [
        ("acme", 2_400_000),
        ("globex", 600_000),
    ]
    assert sum(t.stranded_micros for t in plan.tenants) == 3_000_000 * 3 // 8
    assert [d.price_micros for d in plan.deployments] == [2_400_000, 600_000]
    assert plan.price_micros == 3_000_000


def test_a_whole_gpu_strands_nothing() -> None:
    plan = plan_of(two_tenants(), place(replica("rank/0", "a/1")))
    assert [(t.price_micros, t.stranded_micros) for t in plan.tenants] == [(0, 0), (3_000_000, 0)]
    assert [g.mode for g in plan.gpus] == ["empty", "whole"]


def test_replicas_and_instances_are_shown_in_order() -> None:
    found = place(
        *reversed(slices("chat", "a/0 2g.20gb@4", "a/0 2g.20gb@0")), empty=["a/0 2g.20gb@2"]
    )
    plan = plan_of(two_tenants(), found)
    assert [r.id for r in plan.placement.replicas] == ["chat/0", "chat/1"]
    assert [(i.placed.start, i.replica) for i in plan.gpus[0].instances] == [
        (0, "chat/1"),
        (2, None),
        (4, "chat/0"),
    ]


def test_configs_are_counted_alike() -> None:
    where = problem(
        fleet(node("b", PLAIN, 4)),
        [deployment(rps=9)],
        [candidate(product=PLAIN, rps=1, config=c) for c in (BF16, FP8)],
    )
    ways = [BF16, FP8, BF16, BF16]
    found = place(*(replica(f"chat/{i}", f"b/{i}", config=c) for i, c in enumerate(ways)))
    configs = plan_of(where, found).deployments[0].configs
    assert [(c.config.precision, c.count, c.capacity_mrps) for c in configs] == [
        ("bf16", 3, 3000),
        ("fp8", 1, 1000),
    ]


def test_the_worst_replica_is_predicted() -> None:
    fast = Prediction(ttft_ms=100, tpot_ms=30, error_band_percent=(("ttft", 10.0),))
    slow = Prediction(ttft_ms=90, tpot_ms=40, error_band_percent=(("tpot", 20.0),))
    where = problem(
        fleet(node("b", PLAIN, 2)),
        [deployment(rps=2)],
        [
            candidate(product=PLAIN, rps=2, config=BF16, predicted=fast),
            candidate(product=PLAIN, rps=2, config=FP8, predicted=slow),
        ],
    )
    found = place(replica("chat/0", "b/0", config=BF16), replica("chat/1", "b/1", config=FP8))
    told = plan_of(where, found).deployments[0].predicted
    assert told is not None
    assert (told.ttft_ms, told.tpot_ms) == (100, 40)
    assert told.error_band_percent == (("tpot", 20.0), ("ttft", 10.0))
    asked_of = []
    plan_of(where, found, predict=lambda d, c, rate: asked_of.append(rate))
    assert asked_of == [1000, 1000], "each carries its part of the demand"


def test_without_a_placement_the_plan_is_empty() -> None:
    plan = plan_of(two_tenants(), None, "infeasible")
    assert (plan.moves, plan.steps, plan.unmet, plan.price_micros) == ((), (), (), 0)
    assert check_plan(two_tenants(), plan) == ()


SHARE = use(memory_gib=16, bandwidth_gbs=100, compute=0.1)
OFFERED = [
    candidate("chat", A100, profile="1g.10gb", config=BF16),
    candidate("chat", A100, profile="2g.20gb", config=FP8),
    candidate("chat", PLAIN, share=SHARE, load_gib=5),
    candidate("chat", PLAIN, gpus=2, rps=4),
]


@pytest.mark.parametrize(
    ("one", "way"),
    [
        (replica("chat/0", "a/0", mig="1g.10gb@3", config=BF16), 0),
        (replica("chat/0", "a/0", mig="1g.10gb@3", config=ReplicaConfig()), 0),
        (replica("chat/0", "a/0", mig="1g.10gb@3", config=FP8), None),
        (replica("chat/0", "b/0", share=SHARE), 2),
        (replica("chat/0", "b/0", share=use(memory_gib=20)), 2),
        (replica("chat/0", "b/0", "b/1"), 3),
        (replica("chat/0", "b/0"), None),
        (replica("chat/0", "gone/0"), None),
    ],
    ids=[
        "a slice",
        "settings not said",
        "other settings",
        "a share",
        "a larger share",
        "a pair",
        "one GPU",
        "no such node",
    ],
)
def test_match(one: Any, way: int | None) -> None:
    where = problem(
        fleet(node("a", A100), node("b", PLAIN, 2)), [deployment("chat", rps=1)], OFFERED
    )
    assert Matcher(where).candidate(one) == (None if way is None else OFFERED[way])


def why(
    asked: Deployment,
    ways: Sequence[Candidate],
    found: Placement | None = None,
    machines: Fleet | None = None,
    dropped: Sequence[Dropped] = (),
) -> tuple[str, str | None]:
    """Reason and smallest fix of the one unmet deployment."""
    where = problem(machines or fleet(node("b", PLAIN, 2, price=1.5)), [asked], ways)
    (one,) = unmet(where, found or place(), {asked.name: tuple(dropped)})
    return one.reason, one.smallest_fix


def whole(count: int, name: str = "chat") -> list[Any]:
    """So many replicas on GPUs of b."""
    return [replica(f"{name}/{i}", f"b/{i}") for i in range(count)]


WAY = [candidate("chat", PLAIN, rps=1)]


def test_unmet_for_want_of_gpus() -> None:
    reason, fix = why(deployment(rps=5), WAY, place(*whole(2)))
    assert "no room: a whole plain is not free" in reason
    assert fix == "3 more plain (4.50 USD/h)"


def test_unmet_by_replicas_max() -> None:
    reason, fix = why(deployment(rps=2, max_replicas=1), WAY, place(*whole(1)))
    assert "replicas.max is 1" in reason
    assert fix == "replicas.max 2: there is room"


def test_unmet_because_nothing_fits() -> None:
    refused = [
        Dropped("chat", "plain bf16", "needs 60.0 GiB, has 48.0"),
        Dropped("chat", "plain fp8", "TPOT 61 ms at batch 1, SLO 40 ms"),
        Dropped("chat", "plain int4", "TPOT 45 ms at batch 1, SLO 40 ms"),
    ]
    reason, fix = why(deployment(rps=1), [], dropped=refused)
    assert "3 ways to run it tried" in reason
    assert "plain int4: TPOT 45 ms" in reason, "the one that came closest is named"
    assert fix is None


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"pin": ("b/0", "b/1")}, "pin: b/0, b/1 is full"),
        ({"spread_node": 2}, "spread: at most 2 a node"),
        ({"cpu_cores": 3}, "host CPU or memory"),
    ],
    ids=["pin", "spread", "host"],
)
def test_unmet_by_one_rule(rule: dict, word: str) -> None:
    machines = fleet(node("b", PLAIN, 4, cpu_cores=8))
    reason, _ = why(deployment(rps=3, **rule), WAY, place(*whole(2)), machines)
    assert word in reason


@pytest.mark.parametrize(
    ("cordoned", "rps", "word", "fix"),
    [
        ([], 3, "no room: a whole plain is not free", "1 more plain (1.50 USD/h)"),
        ([2], 3, "cordon: only GPUs that are cordoned have room for it", "uncordon b/2"),
        ([2], 9, "; b/2 has room for some of it, but cordoned", "7 more plain (10.50 USD/h)"),
    ],
    ids=["none", "holds what is missing", "holds some of it"],
)
def test_unmet_by_a_cordon(cordoned: list[int], rps: float, word: str, fix: str) -> None:
    gpus = 3 if cordoned else 2
    machines = fleet(node("b", PLAIN, gpus, price=1.5, cordoned_gpus=cordoned))
    reason, told = why(deployment(rps=rps), WAY, place(*whole(2)), machines)
    assert word in reason
    assert told == fix


@pytest.mark.parametrize("shut", ["cordoned", "not shared", "pinned away"])
def test_ways_that_no_node_may_hold_are_not_called_cheaper(shut: str) -> None:
    """A share of half a cheap GPU, where the cheap node takes nothing or gives no shares."""
    half = candidate("chat", PLAIN, share=use(memory_gib=24), rps=1, config=FP8)
    other: dict[str, Any] = {"cordoned": {"cordoned": True}, "not shared": {"sharing": "whole"}}
    machines = fleet(node("a", A100, price=1.5), node("b", PLAIN, price=1.0, **other.get(shut, {})))
    asked = deployment(rps=1, pin=("a",) if shut == "pinned away" else ())
    ways = [candidate("chat", A100, gpus=1, rps=1), half]
    told = reasons(problem(machines, [asked], ways), asked, [replica("chat/0", "a/0")], ())
    assert told[-1] == "a100 costs 1.50 USD/h per req/s; nothing else fits"


def test_room_left_unused_is_not_called_full() -> None:
    reason, _ = why(deployment(rps=2), WAY, place(*whole(1)))
    assert "the search ended before it was used" in reason


def test_replicas_missing() -> None:
    where = problem(fleet(node("b", PLAIN, 1)), [deployment(replicas=3)], WAY)
    (one,) = unmet(where, place(*whole(1)), {})
    assert (one.missing_mrps, one.missing_replicas) == (0, 2)
    assert unmet(where, place(*whole(3)), {}) == ()


def test_reasons_compare_with_the_next_best() -> None:
    where = problem(
        fleet(node("a", A100, 1, price=4.0), node("b", PLAIN, 2, price=1.0)),
        [deployment("chat", rps=2)],
        [
            candidate("chat", PLAIN, rps=1, takes=use(memory_gib=30), config=BF16),
            candidate("chat", A100, gpus=1, rps=2, config=BF16),
        ],
    )
    told = reasons(where, where.deployments[0], [replica("chat/0", "b/0", config=BF16)], ())
    assert "each uses 30.0 GiB of 48.0 GiB" in told[0]
    assert "a100 bf16" in told[1]
    assert "+100 %" in told[1]


def test_reasons_where_nothing_runs() -> None:
    where = problem(fleet(node("b", PLAIN)), [deployment("chat")], WAY)
    assert "it could run as plain" in reasons(where, where.deployments[0], [], ())[0]
    nothing = replace(where, candidates={"chat": ()})
    refused = (Dropped("chat", "plain bf16", "needs 60.0 GiB, has 48.0"),)
    told = reasons(nothing, where.deployments[0], [], refused)[0]
    assert "no way to run it was found" in told
    assert "needs 60.0 GiB" in told


def test_slots_left_over_are_kept_in_the_plan() -> None:
    """An instance that stands and is in nobody's way is shown and costs no repartition."""
    now = place(*slices("chat", "a/0 2g.20gb@0", "a/0 2g.20gb@2"))
    where = replace(two_tenants(), current=now)
    plan = plan_of(where, place(*slices("chat", "a/0 2g.20gb@0"), *slices("rank", "a/0 1g.10gb@6")))
    assert placed("2g.20gb@2") in [i.placed for i in plan.gpus[0].instances]
    assert plan.repartitions == ("a/0",)


@pytest.mark.parametrize(
    ("cores", "asked", "told"),
    [
        (8, 4, []),
        (None, 0, []),
        (None, 4, ["nobody states cpu_cores of b; whatever deployments ask of it counts as there"]),
    ],
    ids=["stated", "nothing asked", "asked and not stated"],
)
def test_host_room_that_nobody_states_is_noted(
    cores: float | None, asked: float, told: list[str]
) -> None:
    machines = fleet(node("b", PLAIN, cpu_cores=cores))
    where = problem(machines, [deployment(rps=1, cpu_cores=asked)], WAY)
    plan = plan_of(where, place(*whole(1)), "optimal")
    assert [note for note in plan.notes if "states" in note] == told


@pytest.mark.parametrize(
    ("noun", "told"),
    [("a30", "an a30"), ("h100-80gb-sxm", "an h100-80gb-sxm"), ("t4", "a t4"), ("plain", "a plain")]
    + [("3g.40gb", "a 3g.40gb"), ("rtx-pro-6000", "an rtx-pro-6000"), ("b200", "a b200")],
)
def test_articles(noun: str, told: str) -> None:
    assert words.one(noun) == told
