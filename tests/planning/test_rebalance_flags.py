"""What flags and a policy ask of a rebalancing, and the curve as it is shown."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.cli.rebalancing import Wishes, frontier_data
from optimizer.cli.terminal import Stop
from optimizer.domain.outcome import Limits
from optimizer.domain.placement import Placement
from optimizer.domain.policy import Policy
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Workloads
from optimizer.optimize import Inputs
from optimizer.planning import Pace, moves
from optimizer.report.frontier import render_frontier
from optimizer.verify import check_outcome
from scripts.bench.rebalance_fleets import fragmented

rebalance = pytest.importorskip("optimizer.solver.rebalance")

GIB = 1024
LIMITS = Limits(effort=5, time_limit_s=30)
POLICY = Policy(max_moves=4, max_load_mib=8 * GIB, window_s=600)


def test_the_tighter_limit_of_flag_and_policy_counts() -> None:
    asked = Wishes(max_moves=9, max_load_gib=2.5, free_gpus="3").ask(POLICY)
    assert (asked.max_moves, asked.max_load_mib, asked.free_gpus) == (4, 2560, 3)
    assert Wishes().ask(None) == rebalance.Ask()
    pace = Wishes(window_minutes=30, loads_at_once=7).pace(POLICY)
    assert (pace.window_s, pace.loads_at_once, pace.loads_per_node) == (
        600,
        7,
        Pace().loads_per_node,
    )


def test_a_plan_records_the_limits_that_counted() -> None:
    """So that the judge sees those of a policy too."""
    said = Wishes(max_moves=9, drain=["a"]).said(replace(POLICY, protected_tenants=("acme",)))
    assert said == {
        "max_moves": 4,
        "max_load_gib": 8.0,
        "drain": ["a"],
        "protected_tenants": ["acme"],
    }
    assert Wishes(max_moves=3).said(POLICY)["max_moves"] == 3
    assert Wishes().said(None) == {}


def test_only_what_asks_for_more_takes_another_search() -> None:
    assert Wishes().search(None) is None
    assert Wishes(free_gpus="all", window_minutes=9).search(None) is None
    assert Wishes(max_moves=0).search(None) is not None
    assert Wishes().search(Policy(protected_tenants=("acme",))) is not None


def test_free_gpus_is_a_number_or_all() -> None:
    with pytest.raises(Stop):
        Wishes(free_gpus="some").ask(None)


def test_drain_cordons_and_knows_its_nodes() -> None:
    inputs = Inputs(fleet(node("a"), node("b")), Workloads("w", ()), {})
    assert [n.cordoned for n in Wishes(drain=["b"]).drained(inputs).fleet.nodes] == [False, True]
    with pytest.raises(Stop):
        Wishes(drain=["c"]).drained(inputs)


PLAIN = gpu("plain")


def thirds(saving: int | None = None, **other: object) -> PlacementProblem:
    """chat alone on a GPU of a dear node; a cheap one is free."""
    return problem(
        fleet(node("a", PLAIN, 2, price=3.0), node("b", PLAIN, 2, price=1.0)),
        [deployment("chat", rps=1, tenant="acme", **other)],
        [candidate("chat", PLAIN, rps=1, load_gib=16)],
        place(replica("chat/0", "a/0")),
    )


def placed_by(wishes: Wishes, policy: Policy | None, where: PlacementProblem) -> Placement:
    """Where the search of these wishes puts things; judged."""
    search = wishes.search(policy)
    assert search is not None
    outcome = search(where, LIMITS, None)
    assert outcome.incumbent is not None
    assert check_outcome(where, outcome) == ()
    return outcome.incumbent


@pytest.mark.parametrize(
    ("wishes", "policy", "moved"),
    [
        (Wishes(max_moves=1), None, 1),
        (Wishes(max_moves=0), None, 0),
        (Wishes(max_load_gib=15), None, 0),
        (Wishes(max_load_gib=16), None, 1),
        (Wishes(), Policy(protected_tenants=("acme",)), 0),
        (Wishes(), Policy(min_saving_micros_per_move=47_000_000, horizon_hours=24), 1),
        (Wishes(), Policy(min_saving_micros_per_move=49_000_000, horizon_hours=24), 0),
    ],
    ids=[
        "one move",
        "no move",
        "a GiB too few",
        "just enough",
        "a protected tenant",
        "saves more than a move must",
        "saves less",
    ],
)
def test_limits_and_policies(wishes: Wishes, policy: Policy | None, moved: int) -> None:
    """The move saves 2.00 an hour: 48.00 a day."""
    where = thirds()
    assert len(moves(where, placed_by(wishes, policy, where))) == moved


def test_never_disturbed() -> None:
    where = thirds(disturb="never")
    assert placed_by(Wishes(max_moves=9), None, where) == where.current


def test_configurations_are_kept_only_where_they_can_be() -> None:
    """What runs as no candidate cannot stay, so moving alone is no answer."""
    where = fragmented(16)
    search = Wishes(keep_configs=True).search(None)
    assert search is not None
    assert search(where, LIMITS, None).incumbent is not None
    name = where.deployments[0].name
    unfit = replace(where, candidates={**where.candidates, name: ()})
    with pytest.raises(Stop):
        search(unfit, LIMITS, None)


def test_the_curve_is_shown() -> None:
    data = frontier_data(rebalance.frontier(fragmented(40), LIMITS, 5), "USD")
    assert data["points"][0]["moves"] == 0
    assert sum(p["knee"] for p in data["points"]) == 1
    shown = io.StringIO()
    render_frontier(data, Console(file=shown, width=100), ascii=True)
    assert "The knee saves" in shown.getvalue()
    assert shown.getvalue().count("proved") == len(data["points"])


def test_the_curve_tells_what_moving_cannot_do() -> None:
    """A deployment that asks for more in several ways is not served by it, one with one way is."""
    where = fragmented(24)
    first, second = where.deployments[:2]
    asked = (
        replace(first, min_replicas=first.min_replicas + 30),
        replace(second, min_replicas=second.min_replicas + 1),
    )
    two_ways = where.candidates[second.name] + (
        replace(where.candidates[second.name][0], gpu="another"),
    )
    where = replace(
        where,
        deployments=(*asked, *where.deployments[2:]),
        candidates={**where.candidates, second.name: two_ways},
    )
    assert rebalance.unserved(where) == (second.name,)
    points = rebalance.frontier(where, LIMITS, 5)
    assert points
    assert all(p.moves >= 30 for p in points)
    shown = io.StringIO()
    data = frontier_data(points, "USD", rebalance.unserved(where))
    render_frontier(data, Console(file=shown, width=400), ascii=True)
    assert f"{second.name} gets less than asked" in shown.getvalue()
    shown = io.StringIO()
    render_frontier(frontier_data((), "USD"), Console(file=shown, width=400), ascii=True)
    assert "No way was found to place what is asked" in shown.getvalue()
