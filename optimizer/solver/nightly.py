"""Rebalancing of every kind of placement, within what a night may do (small fleets).

The fine view of the search with limits on moves and loads, sparing whom moves would disturb, and
where a policy prices moves, price and disruption as one sum. ``rebalance`` does MIG at fleet scale.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from optimizer.domain.outcome import Limits, Outcome, Progress
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import MIB_PER_GIB
from optimizer.solver.columns import fine_sites
from optimizer.solver.ear import listening
from optimizer.solver.formulation import Expr, Formulation, build, total
from optimizer.solver.integer import Clock, Level, Search, priorities
from optimizer.solver.measure import disruption_mib
from optimizer.solver.rebalance import Ask
from optimizer.solver.search import DISRUPTION, PRICE, UNMET, _nothing, _outcome
from optimizer.solver.where import placement

# Shares of the effort, by level.
UNMET_EFFORT, PRICE_EFFORT, DISRUPTION_EFFORT = 0.3, 0.6, 0.3


@dataclass(frozen=True, slots=True)
class Worth:
    """A move is made for at least so much: micros per move, over the hours that it pays off."""

    min_saving_micros_per_move: int
    horizon_hours: float


@listening()
def rebalance_within(
    problem: PlacementProblem,
    limits: Limits,
    ask: Ask | None = None,
    worth: Worth | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Least unmet demand, then price, then disruption, as far as ``ask`` allows."""
    clock = Clock(limits, progress or (lambda _: None))
    f = build(problem, fine_sites(problem))
    search = Search(f, clock)
    _start_from_today(search)
    for constraint in move_limit(f, ask or Ask()):
        f.model.add(constraint)
    for priority in priorities(f):
        effort = limits.effort * UNMET_EFFORT
        search.minimise(UNMET, f.unmet_ppm(priority), effort=effort, priority=priority)
    if search.found and worth is not None:
        _weighed(search, worth, limits.effort * PRICE_EFFORT)
    elif search.found:
        effort = limits.effort * PRICE_EFFORT
        search.minimise(PRICE, f.price_micros(), effort=effort, gap=limits.gap)
        effort = limits.effort * DISRUPTION_EFFORT
        search.minimise(DISRUPTION, f.disruption_mib(), effort=effort)
    if not search.found:
        return _nothing(clock)
    found = placement(f, search.values)
    return _outcome(problem, clock, found, _plain(problem, found, search))


def _start_from_today(search: Search) -> None:
    """Hint at what runs now."""
    for copies in search.f.copies:
        if not isinstance(copies.count, int):
            search.f.model.add_hint(copies.count, int(copies.stays is not None))


def move_limit(f: Formulation, ask: Ask) -> list[Expr]:
    """New copies and what they load stay within the limits; a stop loads nothing and is free."""
    new = [c for c in f.copies if c.stays is None]
    found = []
    if ask.max_moves is not None:
        found.append(total(c.count for c in new) <= ask.max_moves)
    if ask.max_load_mib is not None:
        loads = total(c.candidate.load_mib * c.count for c in new)
        found.append(loads <= ask.max_load_mib)
    if ask.free_gpus is not None and f.problem.current is not None:
        now = {gpu for r in f.problem.current.replicas for gpu in r.gpus}
        uses = total(f.used(at) for at, _, _, _ in f.cells())
        found.append(uses <= max(0, len(now) - ask.free_gpus))
    return found


def _weighed(search: Search, worth: Worth, effort: float) -> None:
    """Price over the horizon plus what moves must earn, as one sum; a GiB of it as any other.

    What one move must save is spread over the GiB that today's replicas load on average, so that
    heavy ones must save more.
    """
    f = search.f
    loads = [c.candidate.load_mib for c in f.copies if c.stays is not None] or [MIB_PER_GIB]
    mean_mib = max(1, sum(loads) // len(loads))
    hours = max(1, round(worth.horizon_hours))
    per_mib = worth.min_saving_micros_per_move // mean_mib
    total_micros = hours * f.price_micros() + per_mib * f.disruption_mib()
    search.minimise("worth", total_micros, effort=effort)


def _plain(problem: PlacementProblem, found: Placement, search: Search) -> list[Level]:
    """The levels as the judge counts them: unweighed, the sum taken apart; no bound where lost."""
    f = search.f
    levels = [x for x in search.levels if x.name not in (DISRUPTION, "worth")]
    summed = any(x.name == "worth" for x in search.levels)
    if summed:
        levels.append(Level(PRICE, search.at(f.price_micros()), 0))
    # Copies that nobody needs are left out of the placement, so it may disturb less.
    plain = disruption_mib(problem, found)
    bounds = [x.bound for x in search.levels if x.name == DISRUPTION]
    levels.append(Level(DISRUPTION, plain, min([plain, *bounds]) if bounds else 0))
    return levels


def protected(problem: PlacementProblem, tenants: Collection[str]) -> PlacementProblem:
    """The same problem, with the tenants' deployments never disturbed."""
    spared = tuple(
        replace(d, disturb="never") if d.tenant in tenants else d for d in problem.deployments
    )
    return replace(problem, deployments=spared)
