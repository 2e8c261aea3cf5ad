"""The search: what (coarse view, bound), then where (fine view), level by level."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isinf

from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.outcome import Limits, Objective, Outcome, Progress, Termination
from optimizer.domain.placement import Placement, node_of
from optimizer.domain.problem import PlacementProblem
from optimizer.solver.anew import tied
from optimizer.solver.certificate import certificate
from optimizer.solver.columns import coarse_sites, fine_sites
from optimizer.solver.deal import deal
from optimizer.solver.ear import listening
from optimizer.solver.formulation import Expr, Formulation, build, total
from optimizer.solver.integer import Clock, Level, Search, priorities, run, value_of
from optimizer.solver.large import (
    Large,
    bettered,
    counted_levels,
    few_ways,
    filled_up,
    is_large,
    never_moved,
    solve_large,
)
from optimizer.solver.master import Bound, Master
from optimizer.solver.measure import frail
from optimizer.solver.renewal import worthwhile
from optimizer.solver.tighten import Goal, minimise, start
from optimizer.solver.where import placement, settle, stranded_slices

KEPT_FOR_WHERE = 0.3  # of the safety stop
SHORTER = 0.25  # of the effort for few moves where a placement to begin with is given
HINT_EFFORT = 0.5  # to find how GPUs are filled where all counts are given

UNMET, PRICE, DISRUPTION, STRANDED = "unmet", "price_per_hour", "disruption", "stranded"


@listening()
def solve(
    problem: PlacementProblem,
    limits: Limits,
    progress: Callable[[Progress], None] | None = None,
    hint: Placement | None = None,
    proof: tuple[Master, Bound] | None = None,
) -> Outcome:
    """Place the deployments: least unmet demand, then least price, then fewest moves.

    The coarse view gives the counts and the bound, the fine view the GPUs. Equal problem, limits,
    seed and ``hint`` (a placement to begin with, where the fleet is not large) give an equal
    outcome unless the safety stop or an interrupt cut the search short. ``proof``: what bounds the
    price of serving everybody, where it is known.
    """
    clock = Clock(limits, progress or (lambda _: None))
    if is_large(problem):
        if few_ways(problem):
            what = _what(problem, clock, hint)
            if what.search.found:
                return certified(_dealt(problem, clock, what), what.everybody)
        large = solve_large(problem, clock, proof)
        if large.placement is None:
            return nothing_found(clock)
        outcome = outcome_of(problem, clock, large.placement, large.levels)
        return certified(outcome, large.everybody)
    clock.kept_back_s = KEPT_FOR_WHERE * limits.time_limit_s
    first = Large() if never_moved(problem) else solve_large(problem, clock)
    if _settles(problem, clock, first) and first.placement is not None:
        outcome = outcome_of(problem, clock, first.placement, first.levels)
        return certified(outcome, first.everybody)
    what = _what(problem, clock, _better_start(problem, hint, first.placement), first)
    clock.kept_back_s = 0.0
    anew = first.placement is not None and problem.current is None and worthwhile(problem)
    anew = anew and not tied(problem)
    part = SHORTER if hint is not None else 1.0
    where, levels = _where(problem, clock, what, part, scratch=not anew)
    if where.found:
        found = placement(where.f, where.values)
        outcome = certified(outcome_of(problem, clock, found, levels), what.everybody)
    elif what.search.found:
        outcome = _dealt(problem, clock, what, anew=anew)
    else:
        outcome = nothing_found(clock)
    return _better_of(problem, clock, first, outcome, what)


def _settles(problem: PlacementProblem, clock: Clock, first: Large) -> bool:
    """Whether the decomposition's answer needs no search after it."""
    moving = problem.current is not None and not clock.limits.any_price
    told = [level.objective() for level in first.levels if level.name != DISRUPTION]
    return bool(told) and not moving and all(o.gap <= clock.limits.gap for o in told)


def _better_start(
    problem: PlacementProblem, hint: Placement | None, first: Placement | None
) -> Placement | None:
    """The better placement to begin with."""
    options = [one for one in (first, hint) if one is not None]
    return min(options, key=lambda one: _score(problem, one), default=None)


def _score(problem: PlacementProblem, found: Placement) -> list[int]:
    return [level.value for level in counted_levels(problem, found)]


def _better_of(
    problem: PlacementProblem, clock: Clock, first: Large, outcome: Outcome, what: "What"
) -> Outcome:
    """What the search found, unless the decomposition had found better before."""
    if first.placement is None:
        return outcome
    found = outcome.incumbent
    if found is not None and _score(problem, found) <= _score(problem, first.placement):
        return outcome
    proved = zip(first.levels, _held_to(problem, first.placement, what), strict=True)
    levels = [replace(one, bound=max(one.bound, other.bound)) for one, other in proved]
    return certified(outcome_of(problem, clock, first.placement, levels), first.everybody)


def certified(outcome: Outcome, everybody: tuple[Master, Bound] | None) -> Outcome:
    """The outcome with what proves its price, where all demand is met."""
    served = all(o.value == 0 for o in outcome.objectives if o.name == UNMET)
    if not served or everybody is None or isinf(everybody[1].value):
        return outcome
    return replace(outcome, certificate=certificate(*everybody))


@dataclass(frozen=True, slots=True)
class What:
    """The coarse answer: its levels, its counts and the formulation they belong to."""

    search: Search
    everybody: tuple[Master, Bound]  # what bounds the price of serving everybody

    def level(self, name: str, priority: int | None = None) -> Level | None:
        """That level, if it was reached."""
        wanted = (name, priority)
        return next((x for x in self.search.levels if (x.name, x.priority) == wanted), None)


def _what(
    problem: PlacementProblem,
    clock: Clock,
    hint: Placement | None = None,
    first: Large | None = None,
) -> What:
    """``hint``: to begin with; ``first``: what the decomposition found and proved before."""
    search = Search(build(problem, coarse_sites(problem)), clock)
    first = first or Large()
    effort = clock.limits.effort
    if hint is not None:
        search.values = counts_of(search.f, hint, clock)
    everybody = first.everybody
    if everybody is None or everybody[0].f.problem is not problem or not search.found:
        everybody = start(search, search.f.price_micros(), clock.limits.gap)
    complete: set[int] = set()
    for priority in priorities(search.f):
        floor = _floor(first, search, UNMET, priority)
        unmet = Goal(UNMET, search.f.unmet_ppm(priority), effort * 0.3, floor, priority=priority)
        minimise(search, unmet, frozenset(complete))
        if search.found and search.levels[-1].value == 0:
            complete.add(priority)
    if search.found:
        floor = _floor(first, search, PRICE)
        price = Goal(PRICE, search.f.price_micros(), effort * 0.6, floor, clock.limits.gap)
        proof = everybody if len(complete) == len(priorities(search.f)) else None
        minimise(search, price, frozenset(complete), proof)
    return What(search, everybody)


def _floor(first: Large, search: Search, name: str, priority: int | None = None) -> int:
    """What the decomposition proved of a level; it holds while levels before are as good."""
    for before, now in zip(first.levels, search.levels, strict=False):
        if now.value > before.value:
            return 0
    known = [x for x in first.levels if (x.name, x.priority) == (name, priority)]
    return known[0].bound if known else 0


def counts_of(f: Formulation, hint: Placement, clock: Clock) -> list[int]:
    """The values of a coarse view that stand for a placement; empty where there are none."""
    site_of = {node.name: s for s, site in enumerate(f.sites) for node in site.nodes}
    product = {node.name: node.gpu.name for node in f.problem.fleet.nodes}
    wanted: Counter[tuple[int | None, str, object]] = Counter()
    for replica in hint.replicas:
        node = node_of(replica.gpus[0])
        offered = f.problem.candidates.get(replica.deployment, ())
        keys = [way.key for way in offered if replica.runs_as(way, product[node])]
        if keys:
            site = site_of[node] if replica.shape.stages == 1 else None  # may lie in several
            wanted[site, replica.deployment, min(keys)] += 1
    model = f.model.clone()
    held: dict[tuple[int | None, str, object], list[Expr]] = defaultdict(list)
    for c in f.copies:
        site = None if c.parts else c.site
        held[site, c.deployment, c.candidate.key].append(c.count)
    for key, counts in held.items():
        model.add(total(counts) == wanted[key])
    levels = counted_levels(f.problem, hint)
    for level in levels:
        if level.name == UNMET and level.priority is not None:
            model.add(f.unmet_ppm(level.priority) <= level.value)
        elif level.name == PRICE:
            model.add(f.price_micros() <= level.value)
    return run(model, clock, "hint", effort=HINT_EFFORT).values


def _where(
    problem: PlacementProblem, clock: Clock, what: What, part: float = 1.0, *, scratch: bool = True
) -> tuple[Search, list[Level]]:
    """The fine answer with its levels: at the coarse values if they can be placed.

    ``part``: of the effort for moving less than the coarse counts need; ``scratch``: search without
    them where they could not be placed in time.
    """
    f = build(problem, fine_sites(problem))
    asked = problem.current is not None and not clock.limits.any_price
    disruption = f.disruption_mib() if asked else None
    effort = clock.limits.effort
    search = Search(f, clock)
    if what.search.found:
        dealt = counts_of(f, _as_far_as_it_fits(problem, what), clock)
        search.values = dealt if _reached(f, dealt, what) else []
        levels = _at_coarse_values(search, what)
        impossible = _placed(search, what, disruption, part)
        if search.found:
            _together(search, effort * 0.1)
            return search, levels + search.levels
        if clock.interrupted:
            return search, []
        if not impossible:
            clock.report(Progress("where: the counts could not be placed in time"))
            if not scratch:
                return search, []
        f = build(problem, fine_sites(problem))
        search = Search(f, clock, dealt)
    _from_scratch(search, what, effort)
    if disruption is not None and search.found:
        search.minimise(DISRUPTION, f.disruption_mib(), effort=effort * 0.3)
    if search.found:
        _together(search, effort * 0.1)
    return search, search.levels


def _reached(f: Formulation, values: list[int], what: What) -> bool:
    """Whether values of the fine view are as good as the counts at every level."""
    return bool(values) and all(value_of(x, values) <= level.value for x, level in _coarse(f, what))


def _coarse(f: Formulation, what: What) -> Iterator[tuple[Expr, Level]]:
    """The levels of the counts, and what they measure in the fine view."""
    for level in what.search.levels:
        if level.name == UNMET and level.priority is not None:
            yield f.unmet_ppm(level.priority), level
        elif level.name == PRICE:
            yield f.price_micros(), level


def _together(search: Search, effort: float) -> None:
    """Among placements as good: one whose new pipelines lie in fewer nodes, if one is found.

    And off the nodes where their deployment runs now: there a new copy can start before the old
    one stops.
    """
    current = search.f.problem.current
    now = current.replicas if current is not None else ()
    runs = {(r.deployment, node) for r in now for node in r.nodes}
    site_of = [site.nodes[0].name for site in search.f.sites]
    new = [(c, part) for c in search.f.copies if c.stays is None for part in c.parts]
    apart = [part.count for _, part in new if part.of > 1]
    beside = [p.count for c, p in new if (c.deployment, site_of[p.site]) in runs]
    goal = (len(new) + 1) * total(apart) + total(beside)
    if not new or not search.at(goal) or search.clock.interrupted:
        return
    model = search.f.model.clone()
    search.hint(model)
    model.minimize(goal)
    answer = run(model, search.clock, "where", effort=effort)
    if answer.found:
        search.values = answer.values


def _at_coarse_values(search: Search, what: What) -> list[Level]:
    """Bind the fine view to the coarse values, whose bounds hold for it."""
    for expr, level in _coarse(search.f, what):
        search.f.model.add(expr <= level.value)
    return list(what.search.levels)


def _placed(search: Search, what: What, disruption: Expr | None, part: float) -> bool:
    """A placement at the coarse values, or with a state the one that disturbs least.

    Returns whether it is proved that there is none.
    """
    effort, answer = search.clock.limits.effort, None
    if not search.found or disruption is not None:
        _placed_as_counted(search, what, disruption, effort * 0.2)
    if disruption is not None:
        answer = search.minimise(DISRUPTION, disruption, effort=effort * 0.4 * part)
    elif not search.found:
        answer = run(search.f.model, search.clock, "where", effort=effort * 0.4)
        search.values = answer.values
    return answer is not None and answer.impossible


def _placed_as_counted(search: Search, what: What, disruption: Expr | None, effort: float) -> None:
    """Try to place exactly the coarse counts; on success keep that as a start."""
    model = search.f.model.clone()
    fine: dict[tuple[int | None, object], list[Expr]] = defaultdict(list)
    class_of = {node.name: s for s, site in enumerate(what.search.f.sites) for node in site.nodes}
    for c in search.f.copies:
        s = None if c.parts else class_of[search.f.sites[c.site].nodes[0].name]
        fine[s, (c.deployment, c.candidate.key)].append(c.count)
    coarse: dict[tuple[int | None, object], int] = defaultdict(int)
    for c in what.search.f.copies:
        coarse[None if c.parts else c.site, (c.deployment, c.candidate.key)] += what.search.at(
            c.count
        )
    for key, counts in fine.items():
        model.add(total(counts) == coarse[key])
    if search.found:
        search.hint(model)
    if disruption is not None:
        model.minimize(disruption)
    answer = run(model, search.clock, "where", effort=effort)
    if answer.found:
        search.values = answer.values


def _from_scratch(search: Search, what: What, effort: float) -> None:
    """All levels in the fine view itself, from what is kept, with the coarse bounds as floors.

    They hold while all levels before them are as good.
    """
    floors_hold = True
    for priority in priorities(search.f):
        coarse = what.level(UNMET, priority)
        floor = coarse.bound if coarse is not None and floors_hold else 0
        expr = search.f.unmet_ppm(priority)
        search.minimise(UNMET, expr, effort=effort * 0.3, floor=floor, priority=priority)
        reached = search.levels[-1].value if search.found else None
        floors_hold &= coarse is not None and reached == coarse.value
    if search.found:
        coarse = what.level(PRICE)
        floor = coarse.bound if coarse is not None and floors_hold else 0
        gap = search.clock.limits.gap
        price = search.f.price_micros()
        search.minimise(PRICE, price, effort=effort * 0.6, gap=gap, floor=floor)


def _as_far_as_it_fits(problem: PlacementProblem, what: What) -> Placement:
    """The counts dealt to the nodes, and who found no room given what is left."""
    f = what.search.f
    found = settle(problem, deal(f, what.search.values, [() for _ in f.pools]))
    return filled_up(problem, found)


def _bounds(what: What) -> tuple[int, int]:
    """What is proved of all unmet demand and of the price."""
    unmet = sum(level.bound for level in what.search.levels if level.name == UNMET)
    return unmet, sum(level.bound for level in what.search.levels if level.name == PRICE)


def _dealt(problem: PlacementProblem, clock: Clock, what: What, *, anew: bool = False) -> Outcome:
    """The counts dealt to the nodes as far as they fit there; ``anew``: then bettered part by part.

    For where time ran out, or where that does better than a search over all nodes.
    """
    found = _as_far_as_it_fits(problem, what)
    if anew:
        found = bettered(problem, found, clock, *_bounds(what))
        if frail(problem, found):
            return nothing_found(clock)
    return outcome_of(problem, clock, found, _held_to(problem, found, what))


def _held_to(problem: PlacementProblem, found: Placement, what: What) -> list[Level]:
    """Its levels with the bounds of the counts, which hold while earlier levels are as good."""
    floors = {(o.name, o.priority): o for o in what.search.levels}
    kept, levels = True, []
    for level in counted_levels(problem, found):
        floor = floors.get((level.name, level.priority))
        low = min(level.value, floor.bound) if floor is not None and kept else 0
        levels.append(Level(level.name, level.value, low, level.priority))
        kept = kept and floor is not None and level.value <= floor.value
    return levels


def nothing_found(clock: Clock) -> Outcome:
    return Outcome(
        Termination.NOTHING_FOUND,
        stopped_by=_stopper(clock, False, False),
        reproducible=not (clock.timed_out or clock.interrupted),
    )


def outcome_of(
    problem: PlacementProblem, clock: Clock, found: Placement, levels: list[Level]
) -> Outcome:
    objectives = []
    reached = {(level.name, level.priority): level for level in levels}
    sound = True  # a bound holds while all levels before it were reached
    for counted in counted_levels(problem, found):
        level = reached.get((counted.name, counted.priority))
        sound &= level is not None
        # A search cut short may have placed better than its slack variables admit.
        value = min(level.value, counted.value) if level else counted.value
        bound = min(level.bound, value) if level and sound else 0
        objectives.append(Objective(counted.name, value, bound, counted.priority))
    objectives.append(Objective(STRANDED, stranded_mib(problem, found), 0))
    spoken_for = [o for o in objectives if o.name != STRANDED]
    proved = all(o.proved for o in spoken_for)
    near = clock.limits.gap > 0 and all(o.gap <= clock.limits.gap for o in spoken_for)
    termination = (
        Termination.OPTIMAL if proved else Termination.WITHIN_GAP if near else Termination.LIMIT
    )
    return Outcome(
        termination,
        found,
        tuple(objectives),
        stopped_by=_stopper(clock, proved, near),
        reproducible=not (clock.timed_out or clock.interrupted),
    )


def _stopper(clock: Clock, proved: bool, near: bool) -> str:
    if clock.interrupted:
        return "interrupt"
    if proved:
        return "proof"
    if near:
        return "gap"
    return "time_limit" if clock.timed_out else "effort"


def stranded_mib(problem: PlacementProblem, found: Placement) -> int:
    """Free room of used MIG and shared GPUs in pieces too small for half a GPU."""
    gpus = {gpu.id: gpu.gpu for gpu in problem.fleet.gpus()}
    placed: dict[str, list[PlacedProfile]] = defaultdict(list)
    shared: dict[str, int] = defaultdict(int)
    for replica in found.replicas:
        if replica.shape.sharing is Sharing.MIG and replica.mig is not None:
            placed[replica.gpus[0]].append(replica.mig)
        elif replica.share is not None:
            shared[replica.gpus[0]] += replica.share.memory_mib
    stranded = 0
    for gpu, taken in placed.items():
        table = gpus[gpu].mig
        if table is not None:
            free = stranded_slices(table, taken)
            stranded += free * gpus[gpu].usable_mib // table.memory_slices
    for gpu, used in shared.items():
        free = gpus[gpu].usable_mib - used
        stranded += free if 2 * free < gpus[gpu].usable_mib else 0
    return stranded
