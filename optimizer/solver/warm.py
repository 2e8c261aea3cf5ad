"""A search that starts from a solved problem like it: its placement repaired, its columns known.

Everything here is a shortcut to the same kind of answer. The bound is the relaxation's of the
problem itself; what is known of the other one only says where to look first. A repaired placement
within the asked gap of that bound ends the search; otherwise the usual search runs from it, and
the better of the two is the answer.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

from optimizer.domain.gpu import Use
from optimizer.domain.outcome import Limits, Objective, Outcome, Progress
from optimizer.domain.placement import Placement, node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.units import PPM
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import coarse_sites
from optimizer.solver.formulation import Copies, Formulation, build
from optimizer.solver.integer import Clock, Level, common_divisor
from optimizer.solver.large import counted_levels
from optimizer.solver.master import Bound, Master
from optimizer.solver.nearby import least_unmet, near, nearby
from optimizer.solver.packing import Counts
from optimizer.solver.pricing import Asked, Item, Mix, cheapest_mix
from optimizer.solver.refit import refitted, squeezed
from optimizer.solver.repair import Staying, repaired, stayers
from optimizer.solver.search import (
    DISRUPTION,
    PRICE,
    UNMET,
    certified,
    nothing_found,
    outcome_of,
    solve,
)
from optimizer.solver.tighten import rounded

CLOSE = 2e-4  # of the program's value: how near to it a bound is good enough
NEARBY = 0.2  # of the effort for counts near to what runs
ROUNDS_PER_EFFORT, MOST_ROUNDS = 10, 300  # of bettering a repair

NEAR = 0.1  # of the dearest GPU's price: mixes that cost so much more are kept
NEARLY = 0.02  # of a GPU's price: what a filling may be worth less

Place = tuple[object, ...]  # of a replica: candidate, site, zone, colour
Where = tuple[int, int, str]  # of a pool: site, zone, colour
Proof = tuple[Master, Bound]  # what bounds the price of serving everybody


@dataclass(frozen=True, slots=True)
class Known:
    """What solving a problem taught: the good mixes and fillings of its relaxation, by place."""

    site_of: tuple[tuple[str, int], ...]  # of each node
    mixes: tuple[tuple[str, tuple[tuple[Place, int], ...]], ...]
    fillings: tuple[tuple[Where, tuple[tuple[tuple[Use, int], ...], ...]], ...] = ()


def known(problem: PlacementProblem) -> Known:
    """Solve the relaxation of serving everybody, and keep what is good in it."""
    f = build(problem, coarse_sites(problem))
    master = _everybody(f)
    bound = master.solve()
    place = {c.count.index: _place(c, c.site) for c in f.copies}
    mixes = tuple(
        (name, tuple((place[v], count) for v, count in mix.counts))
        for name, mix in near(master, bound, NEAR)
    )
    sites = tuple((node.name, s) for s, site in enumerate(f.sites) for node in site.nodes)
    fillings = tuple(
        ((pool.site, pool.zone, pool.colour), tuple(_good(master, bound, number)))
        for number, pool in enumerate(f.pools)
    )
    return Known(sites, mixes, fillings)


def _good(master: Master, bound: Bound, number: int) -> Iterator[tuple[tuple[Use, int], ...]]:
    """Fillings of a pool's GPUs that are worth nearly as much as the GPU costs."""
    pool, sizes = master.pools[number], [size for size, _ in master.f.pools[number].wanted]
    enough = (1 - NEARLY) * float(bound.duals[pool.gpu_row])
    for counts in bound.fillings[number]:
        if sum(bound.duals[pool.size_rows[size]] * count for size, count in counts) >= enough:
            yield tuple((sizes[size], count) for size, count in counts)


def solve_warm(
    problem: PlacementProblem,
    limits: Limits,
    progress: Callable[[Progress], None] | None = None,
    *,
    before: Known,
) -> Outcome:
    """The same kind of outcome as ``solve``, sooner where ``problem.current`` is nearly good."""
    clock = Clock(limits, progress or (lambda _: None))
    answer, hint, proof = _changed(problem, clock, before)
    return answer if answer is not None else _searched(problem, clock, hint, proof)


def solve_near(
    problem: PlacementProblem,
    limits: Limits,
    progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """What runs, changed until it is within the gap; nothing found where that does not do."""
    clock = Clock(limits, progress or (lambda _: None))
    answer, _, proof = _changed(problem, clock, Known((), ()))
    return certified(answer, proof) if answer is not None else nothing_found(clock)


def _changed(
    problem: PlacementProblem, clock: Clock, before: Known
) -> tuple[Outcome | None, "_Hint", Proof]:
    """The answer near to what runs, if it is good enough; the best hint; what bounds the price."""
    limits = clock.limits
    f = build(problem, coarse_sites(problem))
    master = _everybody(f)
    staying = stayers(problem, problem.current)
    least = least_load_mib(problem, staying)
    hint = _Hint(problem, repaired(problem, problem.current, staying=staying))
    if limits.any_price and hint.served:
        cheap = outcome_of(problem, clock, hint.placement, list(hint.levels(0, least)))
        return cheap, hint, (master, Bound(-inf))
    floor = _Floor(master)
    close = max(CLOSE, limits.gap / 5)

    def go_on(bound: Bound) -> bool:
        near = bound.program - bound.value <= close * abs(bound.program)
        return not near and not hint.within(floor(bound), limits.gap)

    seeds = list(_seeds(master, before))
    fillings = list(_seeded_fillings(master, before))
    bound = master.solve(go_on, seeds, fillings)
    if not bound.serves and limits.gap and len(bound.duals):
        short = _Short(master, staying, seeds, fillings, clock)
        if (found := short.answer(hint)) is not None:
            return found, hint, (master, bound)
    low = floor(bound)
    if not hint.within(low, limits.gap):
        hint = min(hint, _near(master, bound, staying, hint, clock), key=lambda one: one.score)
    close_by: Outcome | None = None
    if hint.within(low, limits.gap):
        close_by = outcome_of(problem, clock, hint.placement, list(hint.levels(low, least)))
    return close_by, hint, (master, bound)


def _near(master: Master, bound: Bound, staying: Staying, hint: "_Hint", clock: Clock) -> "_Hint":
    """What runs, changed as the integer program says and no more than the price asks."""
    problem, limits = master.f.problem, clock.limits
    if not bound.serves or not len(bound.duals):  # no duals: hard rules leave no relaxation
        return hint
    kept = kept_by_place(master, staying)
    values = nearby(master, bound, kept, clock, NEARBY * limits.effort)
    if values is None:
        return hint
    repair = refitted(master.f, values, staying)
    enough = inf if limits.any_price else _Floor(master)(bound) / (1 - limits.gap)
    squeezed(repair, enough)
    return _Hint(problem, repair.placement())


class _Short:
    """Where the fleet cannot serve everybody: who is, near to what runs.

    Done when what is unmet is within the gap, as a part of all that is asked, of what must be.
    """

    def __init__(
        self,
        master: Master,
        staying: Staying,
        seeds: list[tuple[str, Mix]],
        fillings: list[tuple[int, Counts]],
        clock: Clock,
    ) -> None:
        self.master, self.staying, self.clock = master, staying, clock
        self.seeds, self.fillings = seeds, fillings
        self.problem = master.f.problem

    def answer(self, hint: "_Hint") -> Outcome | None:
        """The better of the hint and of a program's choice, if it is good enough."""
        first = next((x for x in hint.counted if x.name == UNMET and x.value), None)
        if first is None or first.priority is None:
            return None
        complete = frozenset(
            d.priority for d in self.problem.deployments if d.priority > first.priority
        )
        by_unmet = Master(self.master.f, self.master.f.unmet_ppm(first.priority), complete)
        bound = by_unmet.solve(self._go_on, self.seeds, self.fillings)
        if not bound.serves or not len(bound.duals):
            return None
        low = rounded(bound.value * by_unmet.unit, 1)
        if not self._enough(hint, first.priority, low):
            hint = min(hint, self._chosen((by_unmet, bound), hint), key=lambda one: one.score)
        if not self._enough(hint, first.priority, low):
            return None
        levels = [
            replace(level, bound=min(low, level.value) if level.priority == first.priority else 0)
            for level in hint.counted
        ]
        return outcome_of(self.problem, self.clock, hint.placement, levels)

    def _chosen(self, proof: tuple[Master, Bound], hint: "_Hint") -> "_Hint":
        kept, effort = kept_by_place(self.master, self.staying), NEARBY * self.clock.limits.effort
        values = least_unmet(self.master, proof, kept, self.clock, effort)
        if values is None:
            return hint
        repair = refitted(self.master.f, values, self.staying)
        return _Hint(self.problem, repair.placement())

    def _go_on(self, bound: Bound) -> bool:
        least = self.clock.limits.gap / 5 * PPM * len(self.problem.deployments)
        return bound.program - bound.value > max(least, CLOSE * abs(bound.program))

    def _enough(self, hint: "_Hint", priority: int, low: int) -> bool:
        """Whether all before this priority are served, and it and all after nearly."""
        for level in hint.counted:
            if level.name != UNMET or level.priority is None:
                continue
            asking = sum(d.priority == level.priority for d in self.problem.deployments)
            most = self.clock.limits.gap * PPM * asking if level.priority <= priority else 0
            if level.value - (low if level.priority == priority else 0) > most:
                return False
        return True


def kept_by_place(master: Master, staying: Staying) -> dict[str, Counter[int]]:
    """How many replicas may stay, by deployment and place."""
    site_of = {node.name: s for s, site in enumerate(master.f.sites) for node in site.nodes}
    place: dict[tuple[str, object, int], int] = {}
    for c in master.f.copies:
        for lies, _ in c.lies:
            place.setdefault((c.deployment, c.candidate.key, lies), c.count.index)
    found: dict[str, Counter[int]] = {}
    for replica, way in staying:
        site = site_of.get(node_of(replica.gpus[0]), -1)
        variable = place.get((way.deployment, way.key, site))
        if variable is not None:
            found.setdefault(way.deployment, Counter())[variable] += 1
    return found


def _searched(problem: PlacementProblem, clock: Clock, hint: "_Hint", proof: Proof) -> Outcome:
    """The usual search from the hint; the better of the two."""
    limits = clock.limits
    rounds = int(min(MOST_ROUNDS, ROUNDS_PER_EFFORT * limits.effort))
    searched = solve(problem, limits, clock.report, hint.placement, proof)
    outcome = better_of(problem, clock, hint, searched)
    found = outcome.incumbent
    if found is not None and any(o.name == UNMET and not o.proved for o in outcome.objectives):
        filled = _Hint(problem, repaired(problem, found, rounds=rounds, seed=limits.seed))
        outcome = better_of(problem, clock, filled, outcome)
    return outcome


class _Floor:
    """What no plan that serves everybody costs less than, in micros per hour."""

    def __init__(self, master: Master) -> None:
        self.unit, self.step = master.unit, common_divisor(master.f.price_micros())

    def __call__(self, bound: Bound) -> int:
        return rounded(bound.value * self.unit, self.step)


class _Hint:
    """A placement that the repair found, and what it is worth."""

    def __init__(self, problem: PlacementProblem, placement: Placement) -> None:
        self.problem, self.placement = problem, placement
        self.counted = counted_levels(problem, placement)

    @property
    def score(self) -> list[int]:
        """Values of all levels, the first the most important."""
        return [level.value for level in self.counted]

    @property
    def served(self) -> bool:
        """Whether it serves everybody."""
        return all(level.value == 0 for level in self.counted if level.name == UNMET)

    def within(self, floor: int, gap: float) -> bool:
        """Whether it serves everybody at a price within the gap of the floor."""
        price = next(level.value for level in self.counted if level.name == PRICE)
        return self.served and floor > 0 and price - floor <= gap * max(1, price)

    def levels(self, floor: int, least: int) -> Iterator[Level]:
        """Its levels where everybody is served, at no price below the floor and no load below
        the ``least``."""
        for level in self.counted:
            low = {PRICE: floor, DISRUPTION: least}.get(level.name, 0)
            yield replace(level, bound=min(low, level.value))


def better_of(problem: PlacementProblem, clock: Clock, hint: _Hint, outcome: Outcome) -> Outcome:
    """The better of the two, level by level; bounds hold while the values before them do."""
    reached = {(o.name, o.priority): o for o in outcome.objectives}
    if outcome.incumbent is not None:
        values = [_at(reached, level, level.value) for level in hint.counted]
        if values <= hint.score:
            return outcome
    levels, kept = [], outcome.incumbent is not None
    for level in hint.counted:
        known = reached.get((level.name, level.priority))
        low = known.bound if known is not None and kept else 0
        levels.append(replace(level, bound=min(level.value, low)))
        kept = kept and known is not None and known.value == level.value
    better = outcome_of(problem, clock, hint.placement, levels)
    return replace(better, reproducible=better.reproducible and outcome.reproducible)


def _at(reached: dict[tuple[str, int | None], Objective], level: Level, otherwise: int) -> int:
    known = reached.get((level.name, level.priority))
    return otherwise if known is None else known.value


def least_load_mib(problem: PlacementProblem, staying: Staying) -> int:
    """No placement that serves everybody loads less: as if all that may stay did."""
    stays: dict[str, list[int]] = {d.name: [] for d in problem.deployments}
    names = {d.name: d for d in problem.deployments}
    for _, way in staying:
        stays[way.deployment].append(capacity_mrps(names[way.deployment], way))
    return sum(_least_load(problem, d, stays[d.name]) for d in problem.deployments)


def _least_load(problem: PlacementProblem, d: Deployment, stays: list[int]) -> int:
    asked = Asked(
        max(0, (d.asked_mrps or 0) - sum(stays)), max(0, d.min_replicas - len(stays)), None
    )
    if not asked.rate and not asked.min_replicas:
        return 0
    items = [
        Item(float(d.move_weight * way.load_mib), capacity_mrps(d, way), number)
        for number, way in enumerate(problem.candidates.get(d.name, ()))
    ]
    least = cheapest_mix(items, asked).bound
    return int(least) if 0 <= least < 1e15 else 0


def _everybody(f: Formulation) -> Master:
    return Master(f, f.price_micros(), frozenset(d.priority for d in f.problem.deployments))


def _place(c: Copies, site: int | None) -> Place:
    return (c.candidate.key, site, c.zone, c.colour)


def _sites_of(master: Master, before: Known) -> list[int | None]:
    """The known site that each site of this problem is."""
    number = dict(before.site_of)
    return [
        next((number[n.name] for n in site.nodes if n.name in number), None)
        for site in master.f.sites
    ]


def _seeds(master: Master, before: Known) -> Iterator[tuple[str, Mix]]:
    """The known mixes in the places of this problem, with as many replicas as it asks."""
    site_of = _sites_of(master, before)
    variable = {(c.deployment, _place(c, site_of[c.site])): c.count.index for c in master.f.copies}
    for name, places in before.mixes:
        found = {variable.get((name, place)): count for place, count in places}
        if name in master.names and found and None not in found:
            counts = Counter({v: count for v, count in found.items() if v is not None})
            yield name, Mix(0.0, 0.0, _enough(master, master.names[name], counts))


def _seeded_fillings(master: Master, before: Known) -> Iterator[tuple[int, Counts]]:
    """The known fillings, as far as this problem has shares of their sizes."""
    site_of = _sites_of(master, before)
    known = dict(before.fillings)
    for number, pool in enumerate(master.f.pools):
        at = {size: i for i, (size, _) in enumerate(pool.wanted)}
        site = site_of[pool.site]
        for filling in known.get((site, pool.zone, pool.colour), ()) if site is not None else ():
            counts = tuple(sorted((at[size], count) for size, count in filling if size in at))
            yield number, counts


def _enough(master: Master, d: Deployment, counts: Counter[int]) -> tuple[tuple[int, int], ...]:
    """The mix with more or fewer replicas of its most frequent place, so that it just serves."""
    rate = dict(master.items[d.name])
    most = max(counts, key=lambda v: (counts[v], v))
    rest = sum(rate[v] * count for v, count in counts.items() if v != most)
    others = sum(counts.values()) - counts[most]
    need = max(0, (d.asked_mrps or 0) - rest)
    wanted = -(-need // rate[most]) if rate[most] else counts[most]
    counts[most] = max(wanted, d.min_replicas - others, 0)
    return tuple(sorted((v, count) for v, count in counts.items() if count))
