"""Each rule of the formulation by itself: nothing to say, just allowed, one too many."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from ortools.sat.python import cp_model

from builders import a100, candidate, deployment, fleet, gpu, node, place, problem, replica, use
from optimizer.domain.fleet import Limits
from optimizer.domain.outcome import Limits as Search
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import formulation as rules
from optimizer.solver import solve
from optimizer.solver.columns import coarse_sites, colours, fine_sites
from optimizer.verify import check_outcome

PLAIN = gpu("plain", memory_gib=48, bandwidth_gbs=800, tdp_w=300)
EMPTY, LIMIT, BEYOND = "nothing to say", "just allowed", "one too many"
Counts = Mapping[str, int]  # replicas by deployment, or by deployment@node


def holds(
    rule: rules.Rule,
    asked: PlacementProblem,
    counts: Counts,
    *,
    served: str | None = None,
    coarse: bool = False,
) -> bool:
    """Whether that rule alone lets so many replicas run (and ``served`` miss nothing)."""
    needed = () if rule is rules.demand_met else (rules.demand_met,)
    sites = coarse_sites(asked) if coarse else fine_sites(asked)
    f = rules.build(asked, sites, (*needed, rule))
    for key, count in counts.items():
        name, _, where = key.partition("@")
        here = [
            c.count
            for c in f.of(name)
            if not where or where in {n.name for n in f.sites[c.site].nodes}
        ]
        f.model.add(rules.total(here) == count)
    if served:
        f.model.add(f.missing[served] == 0)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    return solver.solve(f.model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)


def one_node(product: Any, gpus: int = 1, **node_facts: Any) -> Callable[..., PlacementProblem]:
    """Problems on one node: ``of(deployments, candidates)``."""
    machines = fleet(node("n0", product, gpus, **node_facts))

    def of(deployments: list[Any], ways: list[Any], **limits: Any) -> PlacementProblem:
        return problem(replace(machines, limits=Limits(**limits)), deployments, ways)

    return of


def case(*counts: Counts) -> pytest.MarkDecorator:
    """The three cases of a rule."""
    return pytest.mark.parametrize(
        ("counts", "allowed"),
        tuple(zip(counts, (True, True, False), strict=True)),
        ids=(EMPTY, LIMIT, BEYOND),
    )


@case({"chat": 0}, {"chat": 2}, {"chat": 1})
def test_demand_met(counts: Counts, allowed: bool) -> None:
    rps = 0.001 if counts["chat"] == 0 else 2
    chat = deployment("chat", rps=rps)
    if counts["chat"] == 0:
        chat = replace(chat, demand=None, min_replicas=0)
    asked = one_node(PLAIN, 4)([chat], [candidate("chat", PLAIN, rps=1)])
    assert holds(rules.demand_met, asked, counts, served="chat") is allowed


@case({"chat": 0}, {"chat": 2}, {"chat": 3})
def test_replica_bounds(counts: Counts, allowed: bool) -> None:
    chat = deployment("chat", rps=9, max_replicas=2)
    asked = one_node(PLAIN, 4)([chat], [candidate("chat", PLAIN, rps=1)])
    assert holds(rules.replica_bounds, asked, counts) is allowed


@case({"chat": 0}, {"chat": 2}, {"chat": 3})
def test_slot_legality(counts: Counts, allowed: bool) -> None:
    asked = one_node(a100())(
        [deployment("chat", rps=9)], [candidate("chat", a100(), profile="3g.40gb", rps=1)]
    )
    assert holds(rules.slot_legality, asked, counts) is allowed


@pytest.mark.parametrize(
    "share",
    [use(16, 1, 0.01), use(1, 266, 0.01), use(1, 1, 0.33)],
    ids=["device_memory", "device_bandwidth", "device_compute"],
)
@case({"chat": 0}, {"chat": 3}, {"chat": 4})
def test_device_shares(counts: Counts, allowed: bool, share: Any) -> None:
    asked = one_node(PLAIN)(
        [deployment("chat", rps=9)], [candidate("chat", PLAIN, share=share, rps=1)]
    )
    legal = holds(rules.device_shares, asked, counts) and holds(rules.slot_legality, asked, counts)
    assert legal is allowed


@case({"chat": 0}, {"chat": 2}, {"chat": 3})
def test_interconnect(counts: Counts, allowed: bool) -> None:
    two = fleet(node("n0", PLAIN, 3), node("n1", PLAIN, 3))
    asked = problem(two, [deployment("chat", rps=9)], [candidate("chat", PLAIN, gpus=2, rps=1)])
    assert holds(rules.interconnect, asked, counts, coarse=True) is allowed


@pytest.mark.parametrize(
    "rule", [rules.host_cpu, rules.host_memory], ids=lambda rule: rule.__name__
)
@case({"chat": 0}, {"chat": 2}, {"chat": 3})
def test_host(counts: Counts, allowed: bool, rule: rules.Rule) -> None:
    chat = deployment("chat", rps=9, cpu_cores=4, memory_gib=32)
    asked = one_node(PLAIN, 4, cpu_cores=9, memory_gib=70)(
        [chat], [candidate("chat", PLAIN, rps=1)]
    )
    assert holds(rule, asked, counts) is allowed


@case({}, {"chat@n0": 1, "chat@n1": 1}, {"chat@n0": 2, "chat@n1": 0})
def test_spread_over_nodes(counts: Counts, allowed: bool) -> None:
    two = fleet(node("n0", PLAIN, 2), node("n1", PLAIN, 2))
    chat = deployment("chat", rps=9, spread_node=1)
    asked = problem(two, [chat], [candidate("chat", PLAIN, rps=1)])
    assert holds(rules.spread, asked, counts) is allowed


@case({}, {"chat@n0": 1, "chat@n1": 1}, {"chat@n0": 2, "chat@n1": 1})
def test_spread_over_racks(counts: Counts, allowed: bool) -> None:
    two = fleet(node("n0", PLAIN, 2, rack="r"), node("n1", PLAIN, 2, rack="r"))
    chat = deployment("chat", rps=9, spread_rack=2)
    asked = problem(two, [chat], [candidate("chat", PLAIN, rps=1)])
    assert holds(rules.spread, asked, counts) is allowed


@case({}, {"own@n0": 2, "other@n0": 0}, {"own@n0": 1, "other@n0": 1})
def test_isolation_of_nodes(counts: Counts, allowed: bool) -> None:
    own = deployment("own", rps=9, tenant="acme", isolate="node")
    other = deployment("other", rps=9, tenant="globex")
    ways = [candidate(name, PLAIN, rps=1) for name in ("own", "other")]
    assert holds(rules.isolation, one_node(PLAIN, 2)([own, other], ways), counts) is allowed


@pytest.mark.parametrize("isolate", ["tenant", "gpu"])
@case({}, {"own": 2, "other": 0}, {"own": 1, "other": 1})
def test_isolation_of_gpus(counts: Counts, allowed: bool, isolate: str) -> None:
    own = deployment("own", rps=9, tenant="acme", isolate=isolate)
    other = deployment("other", rps=9, tenant="globex")
    ways = [candidate(name, a100(), profile="3g.40gb", rps=1) for name in ("own", "other")]
    assert holds(rules.slot_legality, one_node(a100())([own, other], ways), counts) is allowed


@case({}, {"one": 2, "other": 0}, {"one": 1, "other": 1})
def test_anti_affinity(counts: Counts, allowed: bool) -> None:
    one = deployment("one", rps=9, avoid=("other",))
    other = deployment("other", rps=9)
    ways = [candidate(name, a100(), profile="3g.40gb", rps=1) for name in ("one", "other")]
    assert holds(rules.slot_legality, one_node(a100())([one, other], ways), counts) is allowed


def test_many_who_avoid_each_other_keep_to_one_shade_each_and_are_free_in_the_bound() -> None:
    names = [f"d{i:02}" for i in range(20)]
    pairs = dict(zip(names[::2], names[1::2], strict=True))
    asked = problem(
        fleet(node("n0", a100())),
        [deployment(n, rps=1, avoid=(pairs[n],) if n in pairs else ()) for n in names],
    )
    apart = colours(asked)
    assert all(set(apart[a]).isdisjoint(apart[b]) for a, b in pairs.items())
    assert set(colours(asked, exact=False).values()) == {("open",)}


@case({}, {"chat@n0": 2, "ranker@n0": 1}, {"chat@n0": 1, "ranker@n0": 0, "ranker@n1": 2})
def test_affinity(counts: Counts, allowed: bool) -> None:
    two = fleet(node("n0", PLAIN, 3), node("n1", PLAIN, 3))
    chat = deployment("chat", rps=9, near=("ranker",))
    ways = [candidate(name, PLAIN, rps=1) for name in ("chat", "ranker")]
    asked = problem(two, [chat, deployment("ranker", rps=9)], ways)
    assert holds(rules.affinity, asked, counts) is allowed


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        (rules.price_limit, {"price_micros_per_hour": 2_000_000}),
        (rules.power_limit, {"rack_power_w": 600}),
    ],
    ids=["price_limit", "power_limit"],
)
@case({"chat": 0}, {"chat": 2}, {"chat": 3})
def test_limits(counts: Counts, allowed: bool, rule: rules.Rule, limit: Mapping[str, int]) -> None:
    asked = one_node(PLAIN, 4)(
        [deployment("chat", rps=9)], [candidate("chat", PLAIN, rps=1)], **limit
    )
    together = (
        holds(rule, asked, counts)
        if rule is rules.price_limit
        else holds(rule, asked, counts) and holds(rules.slot_legality, asked, counts)
    )
    assert together is allowed


@pytest.mark.parametrize(
    ("disturb", "leaves"), [("allowed", True), ("never", False)], ids=[EMPTY, BEYOND]
)
def test_do_not_disturb(disturb: str, leaves: bool) -> None:
    now = place(replica("chat/0", "n0/0"))
    chat = deployment("chat", rps=1, disturb=disturb)
    machines = fleet(node("n0", PLAIN, 2))
    asked = problem(machines, [chat], [candidate("chat", PLAIN, rps=1)], now)
    assert holds(rules.do_not_disturb, asked, {"chat": 0}) is leaves
    assert holds(rules.do_not_disturb, asked, {"chat": 1})


@pytest.mark.parametrize(
    ("facts", "places"),
    [({}, 2), ({"pin": ("n0",)}, 1), ({"pin": ("n0/1",)}, 1)],
    ids=["anywhere", "a node", "a GPU"],
)
def test_pin_leaves_only_the_places_named(facts: Mapping[str, Any], places: int) -> None:
    two = fleet(node("n0", PLAIN, 2), node("n1", PLAIN, 2))
    asked = problem(two, [deployment("chat", rps=9, **facts)], [candidate("chat", PLAIN, rps=1)])
    f = rules.build(asked, fine_sites(asked))
    sites = {c.site for c in f.of("chat")}
    assert len(sites) == places
    if facts.get("pin") == ("n0/1",):
        assert not holds(rules.slot_legality, asked, {"chat": 2})
    assert holds(rules.slot_legality, asked, {"chat": 1})


@pytest.mark.parametrize(
    ("cordoned", "most"), [((), 2), ((0,), 1), ((0, 1), 0)], ids=["none", "one", "all"]
)
def test_cordon_leaves_no_place(cordoned: tuple[int, ...], most: int) -> None:
    machines = fleet(node("n0", PLAIN, 2, cordoned_gpus=cordoned))
    asked = problem(machines, [deployment("chat", rps=9)], [candidate("chat", PLAIN, rps=1)])
    assert holds(rules.slot_legality, asked, {"chat": most})
    assert not holds(rules.slot_legality, asked, {"chat": most + 1})


@pytest.mark.parametrize(
    ("sharing", "places"), [("whole shared", 1), ("shared", 0)], ids=[LIMIT, BEYOND]
)
def test_allowed_keeps_to_the_modes_of_the_node(sharing: str, places: int) -> None:
    machines = fleet(node("n0", PLAIN, 1, sharing=sharing))
    asked = problem(machines, [deployment("chat", rps=9)], [candidate("chat", PLAIN, rps=1)])
    assert len(rules.build(asked, fine_sites(asked)).of("chat")) == places


@pytest.mark.parametrize(("running", "most"), [(0, 0), (1, 1), (2, 2)], ids=[EMPTY, LIMIT, BEYOND])
@pytest.mark.parametrize("coarse", [False, True])
def test_a_way_kept_for_who_runs_is_not_for_new_replicas(
    running: int, most: int, coarse: bool
) -> None:
    kept = replace(candidate("chat", PLAIN, rps=1), running_only=True)
    now = place(*(replica(f"chat/{n}", f"n0/{n}") for n in range(running)))
    asked = problem(fleet(node("n0", PLAIN, 4)), [deployment(rps=4)], [kept], now)
    assert holds(rules.allowed, asked, {"chat": most}, coarse=coarse)
    assert not holds(rules.allowed, asked, {"chat": most + 1}, coarse=coarse)


def test_shares_of_too_many_sizes_for_patterns_lie_on_gpus_of_their_own() -> None:
    ways = [candidate("chat", PLAIN, share=use(30 + i / 10, 10, 0.1)) for i in range(61)]
    ways.append(candidate("alone", PLAIN))
    asked = problem(
        fleet(node("n0", PLAIN, 3)),
        [deployment("chat", replicas=2), deployment("alone", replicas=1)],
        ways,
    )
    found = solve(asked, Search(effort=5, workers=1))
    assert found.incumbent is not None
    assert not check_outcome(asked, found)
    assert {o.name: o.value for o in found.objectives}["unmet"] == 0
