"""Whether everybody can be served at all, at any price: refuted by a bound, or shown by a plan.

A relaxation refutes in a tenth of the time that a search takes to find nothing; and a placement
near to what runs, bettered a while, mostly serves whom the relaxation does not refute.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from optimizer.domain.outcome import Limits, Outcome, Progress
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.solver.columns import coarse_sites
from optimizer.solver.formulation import Formulation, build, total
from optimizer.solver.integer import Clock, priorities
from optimizer.solver.large import counted_levels
from optimizer.solver.master import Bound, Master
from optimizer.solver.nearby import least_unmet, nearby
from optimizer.solver.refit import refitted
from optimizer.solver.repair import repaired, stayers
from optimizer.solver.search import UNMET, outcome_of
from optimizer.solver.tighten import rounded
from optimizer.solver.warm import Known, kept_by_place, solve_warm

SURELY_PPM = 0.5  # a bound on unmet demand beyond this is none of rounding: ppm are whole numbers
PART = 0.3  # of the effort for counts near to what runs
ROUNDS = 200  # of bettering what they come to


def refuted(problem: PlacementProblem) -> bool:
    """Whether a bound proves that no plan serves everybody; False says nothing."""
    by_unmet, bound = _least_unmet(build(problem, coarse_sites(problem)))
    return bound.value * by_unmet.unit > SURELY_PPM


def price_floor(problem: PlacementProblem) -> int:
    """What no plan that serves everybody costs less than, in micros per hour."""
    f = build(problem, coarse_sites(problem))
    master = _by_price(f)
    return rounded(master.solve().value * master.unit, 1)


def serve(
    problem: PlacementProblem,
    limits: Limits,
    progress: Callable[[Progress], None] | None = None,
    *,
    before: Known,
) -> Outcome:
    """A plan that serves everybody at any price, near to what runs if one is found there."""
    clock = Clock(limits, progress or (lambda _: None))
    options = [repaired(problem, problem.current), *_near(problem, clock)]
    best = min(options, key=lambda one: _short(problem, one))
    if any(_short(problem, best)):
        best = repaired(problem, best, rounds=ROUNDS, seed=limits.seed)
    if any(_short(problem, best)) or clock.interrupted:
        return solve_warm(problem, limits, progress, before=before)
    levels = [replace(one, bound=0) for one in counted_levels(problem, best)]
    return outcome_of(problem, clock, best, levels)


def _near(problem: PlacementProblem, clock: Clock) -> Iterator[Placement]:
    """Placements of counts near to what runs that leave nobody short, or few."""
    f = build(problem, coarse_sites(problem))
    staying = stayers(problem, problem.current)
    master, effort = _by_price(f), PART * clock.limits.effort
    kept = kept_by_place(master, staying)
    bound = master.solve()
    if bound.serves and len(bound.duals):
        values = nearby(master, bound, kept, clock, effort)
        if values is not None:
            yield refitted(f, values, staying).placement()
    proof = _least_unmet(f)
    if len(proof[1].duals):
        values = least_unmet(master, proof, kept, clock, effort)
        if values is not None:
            yield refitted(f, values, staying).placement()


def _short(problem: PlacementProblem, placement: Placement) -> list[int]:
    """What goes unserved, the highest priority first."""
    return [one.value for one in counted_levels(problem, placement) if one.name == UNMET]


def _by_price(f: Formulation) -> Master:
    return Master(f, f.price_micros(), frozenset(d.priority for d in f.problem.deployments))


def _least_unmet(f: Formulation) -> tuple[Master, Bound]:
    """The bound on what all priorities together leave unserved, as far as it decides anything."""
    master = Master(f, total(f.unmet_ppm(p) for p in priorities(f)), frozenset())

    def undecided(bound: Bound) -> bool:
        sure = bound.value * master.unit > SURELY_PPM
        return not sure and bound.program * master.unit > SURELY_PPM

    return master, master.solve(undecided)
