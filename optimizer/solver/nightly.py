"""Rebalancing of every kind of placement, within what a night may do (small fleets).

The fine view of the search with limits on moves and loads, sparing whom moves would disturb, and
where a policy prices moves, price and disruption as one sum. ``rebalance`` does MIG at fleet scale.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial

from optimizer.domain.outcome import Limits, Outcome, Progress, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import MIB_PER_GIB
from optimizer.solver import linear
from optimizer.solver.columns import coarse_sites, fine_sites
from optimizer.solver.ear import listening
from optimizer.solver.formulation import Copies, Expr, Formulation, build, total
from optimizer.solver.integer import Clock, Level, Search, common_divisor, priorities
from optimizer.solver.master import Master
from optimizer.solver.measure import (
    candidates_of,
    disruption_mib,
    price_micros,
    starting,
    unmet_ppm,
)
from optimizer.solver.rebalance import Ask, consolidate
from optimizer.solver.relocation import only_places, relocate, told_apart
from optimizer.solver.reserve import reserve
from optimizer.solver.search import DISRUPTION, PRICE, UNMET, nothing_found, outcome_of
from optimizer.solver.tighten import rounded
from optimizer.solver.where import placement

WORTH = "worth"  # price over the horizon and what moves must earn, as one sum

# Shares of the effort, by level.
UNMET_EFFORT, PRICE_EFFORT, DISRUPTION_EFFORT = 0.3, 0.3, 0.3
FEW_NODES = 20  # of the tree in which nothing new starts
NODES_PER_EFFORT = 2.0  # of the branch-and-bound tree; one takes about a second at 64 GPUs


@dataclass(frozen=True, slots=True)
class Worth:
    """A move is made for at least so much: micros per move, over the hours that it pays off."""

    min_saving_micros_per_move: int
    horizon_hours: float


def rebalance_within(
    problem: PlacementProblem,
    limits: Limits,
    ask: Ask | None = None,
    worth: Worth | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Least unmet demand, then price, then disruption, as far as ``ask`` allows."""
    if worth is None and not told_apart(problem) and only_places(problem):
        outcome = relocate(problem, limits, ask)
        if outcome.incumbent is not None:
            return outcome
    search = partial(_within, ask=ask or Ask(), worth=worth)
    return reserve(search, problem, limits, progress)


@listening()
def _within(
    problem: PlacementProblem,
    limits: Limits,
    progress: Callable[[Progress], None] | None,
    ask: Ask,
    worth: Worth | None,
) -> Outcome:
    clock = Clock(limits, progress or (lambda _: None))
    f = build(problem, fine_sites(problem))
    search = Search(f, clock)
    for constraint in move_limit(f, ask):
        f.model.add(constraint)
    possible = _served(search, limits)
    if not search.found:
        return nothing_found(clock) if possible else _impossible()
    if worth is not None:
        _weighed(search, worth, limits)
    elif ask.free_gpus is not None:
        _least(search, DISRUPTION, f.disruption_mib(), limits)
    else:
        _least(search, PRICE, f.price_micros(), limits, _unlimited(search))
        _least(search, DISRUPTION, f.disruption_mib(), limits)
    found = placement(f, search.values)
    if worth is None and ask.free_gpus is None:
        found = _moved_on(problem, found, search, ask)
    return outcome_of(problem, clock, found, _plain(problem, found, search))


def _moved_on(problem: PlacementProblem, found: Placement, search: Search, ask: Ask) -> Placement:
    """With what the limits still allow, what runs in MIG slices moved closer together as it runs.

    Where the search was cut short on a large fleet, it left moves that only the flow over alike
    GPUs sees; the bounds hold for its answer too.
    """
    proved = any(x.name == PRICE and x.value == x.bound for x in search.levels)
    if proved or any(d.reserve for d in problem.deployments):
        return found
    new, candidate_of = starting(problem, found), candidates_of(problem)
    loads = sum(c.load_mib for r in new if (c := candidate_of(r)) is not None)
    spare = Ask(
        None if ask.max_moves is None else max(0, ask.max_moves - len(new)),
        None if ask.max_load_mib is None else max(0, ask.max_load_mib - loads),
        whole_gpus=ask.whole_gpus,
    )
    further = consolidate(replace(problem, current=found), search.clock.limits, spare).incumbent
    if further is None or unmet_ppm(problem, further) != unmet_ppm(problem, found):
        return found
    dearer = price_micros(problem, further) >= price_micros(problem, found)
    return found if dearer else further


def _served(search: Search, limits: Limits) -> bool:
    """The levels of unmet demand: all at once where everybody can be served."""
    f = search.f
    everything = total(f.missing.values())
    still = f.model.clone()
    still.add(total(c.count for c in _new(f)) == 0)
    seconds = max(0.1, search.clock.seconds_left / 4)
    today = linear.minimise(still, everything, (), nodes=FEW_NODES, seconds=seconds, enough=0.0)
    search.values = today.values
    if not search.found or search.at(everything):
        nodes = max(1, int(NODES_PER_EFFORT * UNMET_EFFORT * limits.effort))
        tree = linear.minimise(
            f.model, everything, search.values, nodes=nodes, seconds=seconds, enough=0.0
        )
        search.values = tree.values or search.values
    served = search.found and search.at(everything) == 0
    possible = True
    for priority in priorities(f):
        if served:
            search.record(UNMET, f.unmet_ppm(priority), 0, priority)
        else:
            expr = f.unmet_ppm(priority)
            possible = _least(search, UNMET, expr, limits, priority=priority) and possible
    return possible


def _impossible() -> Outcome:
    """No placement at all keeps to the limits: the rules alone ask for more."""
    told = "the rules ask for more than the limits on moves, loads or GPUs allow"
    return Outcome(Termination.INFEASIBLE, conflict=("move_limit",), notes=(told,))


def _least(
    search: Search,
    name: str,
    expr: Expr,
    limits: Limits,
    floor: int = 0,
    priority: int | None = None,
) -> bool:
    """Minimise a level: a tree for the bound, then CP-SAT for what the tree did not find.

    False where it is proved that there is nothing at all.
    """
    share = {UNMET: UNMET_EFFORT, DISRUPTION: DISRUPTION_EFFORT}.get(name, PRICE_EFFORT)
    gap = 0.0 if name in (UNMET, DISRUPTION) else limits.gap
    tree = linear.minimise(
        search.f.model,
        expr,
        search.values,
        nodes=max(1, int(NODES_PER_EFFORT * share * limits.effort)),
        seconds=max(0.1, search.clock.seconds_left / 3),
        enough=floor / (1 - gap) if gap < 1 else None,
    )
    search.values = tree.values or search.values
    floor = max(floor, tree.bound)
    if search.found and search.at(expr) - floor <= gap * max(1, search.at(expr)):
        search.record(name, expr, floor, priority)
        return True
    effort = limits.effort * share
    answer = search.minimise(name, expr, effort=effort, gap=gap, floor=floor, priority=priority)
    return not answer.impossible


def _unlimited(search: Search) -> int:
    """What no plan undercuts that serves everybody, whatever it moves; 0 where demand is unmet."""
    f = search.f
    if any(level.name == UNMET and level.value for level in search.levels):
        return 0
    coarse = build(f.problem, coarse_sites(f.problem))
    price = coarse.price_micros()
    everybody = frozenset(d.priority for d in f.problem.deployments)
    master = Master(coarse, price, everybody)
    return rounded(master.solve().value * master.unit, common_divisor(price))


def _new(f: Formulation) -> list[Copies]:
    """The copies that would have to start; room kept free starts nothing."""
    kept = {d.name for d in f.problem.deployments if d.reserve}
    return [c for c in f.copies if c.stays is None and c.deployment not in kept]


def move_limit(f: Formulation, ask: Ask) -> list[Expr]:
    """New copies and what they load stay within the limits; a stop loads nothing and is free."""
    new = _new(f)
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


def _weighed(search: Search, worth: Worth, limits: Limits) -> None:
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
    _least(search, WORTH, total_micros, limits, hours * _unlimited(search))


def _plain(problem: PlacementProblem, found: Placement, search: Search) -> list[Level]:
    """The levels as the judge counts them: unweighed, the sum taken apart; no bound where lost."""
    f = search.f
    levels = [x for x in search.levels if x.name not in (DISRUPTION, WORTH)]
    if not any(x.name == PRICE for x in levels):
        price = search.at(f.price_micros())
        levels.append(Level(PRICE, price, min(price, _unlimited(search))))
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
