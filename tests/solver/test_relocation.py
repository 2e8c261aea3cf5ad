"""Problems in which only places are open: the flow against the search that knows no shortcut."""

from dataclasses import replace

import pytest

from optimizer.domain.outcome import Limits, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.optimize import judged
from optimizer.solver import solve
from optimizer.solver.relocation import only_places
from scripts.bench.rebalance_fleets import fragmented

LIMITS = Limits(effort=20.0)


def levels(problem: PlacementProblem, *, shortcut: bool) -> list[tuple[str, int, int]]:
    outcome = judged(problem, LIMITS, search=None if shortcut else solve)
    assert outcome.incumbent is not None
    return [(o.name, o.value, o.bound) for o in outcome.objectives if o.name != "stranded"]


@pytest.mark.parametrize("seed", range(4))
def test_the_flow_finds_what_the_search_proves(seed: int) -> None:
    problem = fragmented(8, seed=seed)
    assert only_places(problem)
    found = levels(problem, shortcut=True)
    assert found == levels(problem, shortcut=False)
    assert all(value == bound for _, value, bound in found)


@pytest.mark.parametrize("seed", range(3))
def test_who_is_not_asked_for_stops_and_the_price_is_still_proved(seed: int) -> None:
    problem = fewer(fragmented(8, seed=seed))
    assert only_places(problem)
    quick, slow = (levels(problem, shortcut=s) for s in (True, False))
    assert quick[:-1] == slow[:-1]
    assert quick[-1][2] <= slow[-1][1] <= quick[-1][1]


def test_two_ways_to_run_or_an_empty_fleet_leave_it_to_the_search() -> None:
    problem = fragmented(8)
    name, (way,) = next(iter(problem.candidates.items()))
    other = replace(way, load_mib=way.load_mib + 1)
    assert not only_places(replace(problem, candidates={**problem.candidates, name: (way, other)}))
    assert not only_places(replace(problem, current=Placement()))


def test_a_thousand_gpus_are_proved() -> None:
    outcome = judged(fragmented(1_000), LIMITS)
    assert outcome.termination is Termination.OPTIMAL


def fewer(problem: PlacementProblem) -> PlacementProblem:
    """The same with a third of the replicas no longer asked for."""
    asked = tuple(replace(d, min_replicas=-(-2 * d.min_replicas // 3)) for d in problem.deployments)
    return replace(problem, deployments=asked)
