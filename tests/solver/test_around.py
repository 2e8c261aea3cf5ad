"""Around what must stay: large fleets planned beside whom nobody may disturb."""

from dataclasses import replace

import pytest

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.optimize import judged
from optimizer.solver.around import around
from optimizer.verify import check_outcome, objectives, verify

SLICED = gpu("sliced", mig="std8")
LIMITS = Limits(effort=5, time_limit_s=30)


def scattered(never: str | None = "x") -> PlacementProblem:
    """x, y and z in slices over four GPUs that two would do for; y asks for one more."""
    now = place(
        replica("x/0", "a/0", mig="2g.20gb@0"),
        replica("y/0", "a/1", mig="2g.20gb@0"),
        replica("z/0", "a/2", mig="3g.40gb@4"),
        replica("z/1", "a/3", mig="3g.40gb@0"),
    )
    asked = [deployment("x", rps=1), deployment("y", rps=2), deployment("z", rps=2)]
    return problem(
        fleet(node("a", SLICED, 5, price=2.0)),
        [replace(d, disturb="never") if d.name == never else d for d in asked],
        [
            candidate("x", SLICED, profile="2g.20gb", rps=1),
            candidate("y", SLICED, profile="2g.20gb", rps=1),
            candidate("z", SLICED, profile="3g.40gb", rps=1),
        ],
        now,
    )


def test_what_must_stay_stays_and_the_rest_is_planned_beside() -> None:
    where = scattered()
    found = around(where, LIMITS)
    assert found is not None
    assert verify(where, found) == ()
    assert where.current is not None
    assert where.current.replicas[0] in found.replicas
    score = objectives(where, found)
    assert [ppm for _, ppm in score.unmet_ppm] == [0]
    assert score.price_micros == 6_000_000  # x's GPU, and two for the rest in place of three


def test_nothing_to_plan_around() -> None:
    assert around(scattered(never=None), LIMITS) is None


@pytest.mark.parametrize(("never", "moved"), [("x", True), (None, False)], ids=["around", "as now"])
def test_a_search_that_found_nothing_is_no_reason_for_no_plan(
    monkeypatch: pytest.MonkeyPatch, never: str | None, moved: bool
) -> None:
    nothing = Outcome(Termination.NOTHING_FOUND, stopped_by="effort")
    monkeypatch.setattr("optimizer.solver.solve", lambda *_: nothing)
    monkeypatch.setattr("optimizer.solver.relocation.only_places", lambda _: False)
    where = scattered(never)
    outcome = judged(where, LIMITS)
    assert outcome.incumbent is not None
    assert (outcome.incumbent != where.current) is moved
    assert check_outcome(where, outcome) == ()
    assert outcome.termination is Termination.LIMIT
    broken = replace(where, fleet=replace(where.fleet, nodes=(replace(
        where.fleet.nodes[0], cordoned=True),)))  # fmt: skip
    assert judged(broken, LIMITS) == nothing
