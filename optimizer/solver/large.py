"""The search on large fleets: bound, counts and places, each by a method that keeps its size."""

from dataclasses import dataclass, field, replace

from optimizer.domain.fleet import Sharing
from optimizer.domain.outcome import Progress
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import hosts, measure, sturdy
from optimizer.solver.anew import mended
from optimizer.solver.bulk import FEW_NODES, Choice, choose, closer
from optimizer.solver.columns import coarse_sites
from optimizer.solver.counts import Tree
from optimizer.solver.deal import deal
from optimizer.solver.fluid import begin
from optimizer.solver.formulation import Expr, Formulation, build
from optimizer.solver.integer import Clock, Level, common_divisor, priorities, value_of
from optimizer.solver.leaves import lifted, separable
from optimizer.solver.master import MANY, Bound, Master
from optimizer.solver.measure import frail
from optimizer.solver.renewal import renewed, worthwhile
from optimizer.solver.repair import repaired
from optimizer.solver.shortfall import whole_shortfall
from optimizer.solver.tighten import rounded
from optimizer.solver.where import settle

RENEWED = 1 / 3  # of the effort, for laying anew what rules of single nodes cost
RENEWED_LARGE = 0.1  # where each turn betters little of the whole
MOST_MENDED = 50  # deployments that dealing left short
WIDEST_UNMET = 0.5  # of the bound: one replica less may be far from it
WIDEST_LEAST = 5.0  # times ``PPM_SCALE``, where the bound is small
FEW_BY_CLASS = 300  # deployments beside placing by node: more take counts by class minutes
NEAR_BOUND = 1.02  # a level in parts of its bound, above which counts by class are tried as well
MANY_GPUS = 256
MOST_GPUS = 1024
FEW_WAYS = 400  # times classes of nodes
PPM_SCALE = 10_000.0  # unmet demand is in millionths, where one per cent is a small step


@dataclass(slots=True)
class Large:
    """What the search on a large fleet found: a placement, its levels."""

    placement: Placement | None = None
    levels: list[Level] = field(default_factory=list)
    everybody: tuple[Master, Bound] | None = None  # what bounds the price of serving everybody


def is_large(problem: PlacementProblem) -> bool:
    """Whether the fleet is too large for a formulation with every node in it.

    Only that one knows what runs now, so it is taken as far as can be where that must stay.
    """
    most = MOST_GPUS if never_moved(problem) else MANY_GPUS
    return sum(node.gpus for node in problem.fleet.nodes) > most


def never_moved(problem: PlacementProblem) -> bool:
    """Whether something runs that must not be disturbed."""
    never = {d.name for d in problem.deployments if d.disturb == "never"}
    running = problem.current.replicas if problem.current else ()
    return any(r.deployment in never for r in running)


def few_ways(problem: PlacementProblem) -> bool:
    """Whether the counts of a large fleet are few enough to be chosen to proof, as in a small one.

    Shares of GPUs are too many to be dealt without their fillings.
    """
    ways = [way for offered in problem.candidates.values() for way in offered]
    shared = any(way.shape.sharing is Sharing.SHARED for way in ways)
    if any(d.survive for d in problem.deployments):
        return False  # they may have to be dealt again, with more replicas
    return not shared and len(ways) * len(coarse_sites(problem)) <= FEW_WAYS


def solve_large(
    problem: PlacementProblem, clock: Clock, proof: tuple[Master, Bound] | None = None
) -> Large:
    """Everybody served at the least price; else the least unmet demand by priority, then price."""
    loose = None if proof else unpinned(problem)
    if loose is not None and not hosts.apply(problem):
        found = _solved(problem, loose, clock, None)
        served = all(level.value == 0 for level in found.levels if level.priority is not None)
        if found.placement is not None and served and not frail(problem, found.placement):
            return found
    return _solved(problem, problem, clock, proof)


def unpinned(problem: PlacementProblem) -> PlacementProblem | None:
    """Pins to one node taken for pins to its product: few kinds of nodes, and still a bound.

    Who is pinned so is small beside its product, so dealing finds it room on its node; where it
    does not, the pinned node must be a kind of its own. None where no pin names one node.
    """
    nodes = {node.name: node for node in problem.fleet.nodes}
    home = {
        d.name: nodes[d.pin[0].partition("/")[0]].gpu.name
        for d in problem.deployments
        if len(d.pin) == 1 and d.pin[0].partition("/")[0] in nodes
    }
    if not home:
        return None
    offered = {
        name: tuple(w for w in ways if home.get(name, w.gpu) == w.gpu)
        for name, ways in problem.candidates.items()
    }
    free = tuple(replace(d, pin=()) if d.name in home else d for d in problem.deployments)
    return replace(problem, deployments=free, candidates=offered)


def _solved(
    problem: PlacementProblem,
    view: PlacementProblem,
    clock: Clock,
    proof: tuple[Master, Bound] | None,
) -> Large:
    """The counts by a view of the problem, maybe without pins, and places by all its rules."""
    f = build(view, coarse_sites(view)) if proof is None else proof[0].f
    everybody = frozenset(priorities(f))
    floors = Floors(dict.fromkeys(everybody, 0), dict.fromkeys(everybody, 0))
    proof = proof or _bound(f, f.price_micros(), everybody, clock, "price_per_hour")
    hosted = _hosted(f, proof, clock, floors) if hosts.apply(problem) else None
    if hosted is not None:
        levels = _levels(problem, hosted, floors)
        near = all(level.value <= NEAR_BOUND * level.bound for level in levels)
        if near or len(problem.deployments) > FEW_BY_CLASS or clock.interrupted:
            return Large(hosted, levels, proof)
    floors.price, choice = _least_price(f.price_micros(), proof, clock)
    if choice is None:
        choice = _by_priority(f, clock, floors)
    again = problem.current is None and worthwhile(problem)
    if choice is None and not again:
        return Large() if hosted is None else Large(hosted, levels, proof)
    clock.report(Progress("where"))
    if choice is None:
        found = filled_up(problem, Placement())
    else:
        found = _placed(problem, f, choice, clock, mend=not again)
    found = min((found, hosted or found), key=lambda p: _outlives(problem, p))
    if again and not (is_large(problem) and _kept(problem, f, choice, found)):
        found = _bettered_from_two(problem, found, clock, floors)
    if frail(problem, found) or (choice is None and not found.replicas):
        return Large()  # a rule may not be broken, so this is no plan
    return Large(found, _levels(problem, found, floors), proof)


def _kept(
    problem: PlacementProblem, f: Formulation, choice: Choice | None, found: Placement
) -> bool:
    """Whether dealing lost nothing of a choice of mixes: little is left to better part by part.

    Under ``survive`` the choice itself is of fewer mixes than there are.
    """
    if choice is None or any(d.survive for d in problem.deployments):
        return False
    unmet = sum(value_of(f.unmet_ppm(p), choice.values) for p in priorities(f))
    price = value_of(f.price_micros(), choice.values)
    worse = sum(measure.unmet_ppm(problem, found).values()) > unmet
    return not worse and measure.price_micros(problem, found) <= price


def _bettered_from_two(
    problem: PlacementProblem, found: Placement, clock: Clock, floors: "Floors"
) -> Placement:
    """Laid anew part by part; in a small fleet from nothing where this is no plan or leaves unmet.

    Counts that look best together fill it so that nobody else finds room.
    """
    unmet = sum(floors.unmet.values())
    served = sum(measure.short(problem, found).values()) <= unmet and not frail(problem, found)
    if served or is_large(problem):
        return bettered(problem, found, clock, unmet, floors.price)
    other = bettered(problem, repaired(problem, None), clock, unmet, floors.price)
    if frail(problem, other):
        found = bettered(problem, found, clock, unmet, floors.price)
    return min(found, other, key=lambda p: _outlives(problem, p))


def bettered(
    problem: PlacementProblem, found: Placement, clock: Clock, unmet: int, price: int
) -> Placement:
    """Laid anew part by part until it is as near to the bounds on both as was asked."""

    def enough(lacking: int, paid: int) -> bool:
        return lacking <= unmet and paid * (1 - clock.limits.gap) <= price

    effort = (RENEWED_LARGE if is_large(problem) else RENEWED) * clock.limits.effort
    half = clock.seconds_left / 2
    better = renewed(problem, found, effort, enough, half)
    clock.timed_out |= clock.seconds_left <= half and not clock.interrupted
    return better


def _hosted(
    f: Formulation, proof: tuple[Master, Bound], clock: Clock, floors: "Floors"
) -> Placement:
    """Placed node by node; ``floors`` get the bounds of what that reaches."""
    clock.report(Progress("where"))
    found = settle(f.problem, hosts.by_node(f.problem))
    reached = {x.priority: x.value for x in counted_levels(f.problem, found)}
    complete: set[int] = set()
    rows: list[Expr] = []
    for priority in priorities(f):
        floors.held[priority] = reached[priority]
        if reached[priority] == 0:
            complete.add(priority)
            continue
        held, expr = _with(f, rows), f.unmet_ppm(priority)
        proof = _bound(held, expr, frozenset(complete), clock, "unmet")
        floors.unmet[priority] = _low(expr, proof)
        rows.append(expr <= floors.held[priority])
    if rows:
        held = _with(f, rows)
        proof = _bound(held, f.price_micros(), frozenset(complete), clock, "price_per_hour")
    floors.price = _low(f.price_micros(), proof)
    return found


def _with(f: Formulation, rows: list[Expr]) -> Formulation:
    """The formulation with more rows, itself unchanged."""
    model = f.model.clone()
    for row in rows:
        model.add(row)
    return replace(f, model=model)


def _least_price(
    expr: Expr, proof: tuple[Master, Bound], clock: Clock
) -> tuple[int, Choice | None]:
    """A bound on the price of serving everybody, and the best choice that does.

    Where deployments are few enough for rounding to matter, by deciding numbers of GPUs.
    """
    master, bound = proof
    few = len(master.names) < MANY and bound.serves and not clock.interrupted
    tree = Tree(master, common_divisor(expr), max(1.0, clock.seconds_left / 4))
    if few and clock.limits.gap == 0 and tree.decides:
        low = tree.lifted(bound)
        if tree.better is not None and value_of(expr, tree.better.values) <= low:
            return low, tree.better
        _, other = _chosen(expr, proof, clock)
        return low, _better(expr, tree.better, other)
    low, choice = _chosen(expr, proof, clock)
    outlive = any(d.survive for d in master.names.values())  # placing then adds more than that
    if choice is None or not few or outlive:
        return low, choice
    value = value_of(expr, choice.values)
    enough = int(value * (1 - clock.limits.gap))
    return max(low, tree.lifted(bound, value, enough)) if low < enough else low, choice


def filled_up(problem: PlacementProblem, found: Placement) -> Placement:
    """Who could not be dealt gets what room is left, unless a rule looks beyond that."""
    served = not any(measure.unmet_ppm(problem, found).values())
    looks_far = any(d.near for d in problem.deployments)
    if served or looks_far or problem.fleet.limits.price_micros_per_hour is not None:
        return found
    return min(found, repaired(problem, found), key=lambda p: _outlives(problem, p))


def _score(problem: PlacementProblem, found: Placement) -> list[int]:
    return [level.value for level in counted_levels(problem, found)]


def _placed(
    problem: PlacementProblem, f: Formulation, choice: Choice, clock: Clock, *, mend: bool
) -> Placement:
    """The counts dealt; who comes short by that or by a loss is laid anew, with more if need be.

    ``mend``: else that is left to come.
    """
    seats = deal(f, choice.values, choice.fillings, problem)
    found = settle(problem, seats)
    short = measure.short(problem, found)
    chosen = {name for name in short if not choice.values[f.missing[name].index]}
    hurt = sorted(chosen, key=lambda name: (not short[name], name))
    hurt += [name for name in frail(problem, found) if name not in chosen]
    if hurt and mend:
        whole = settle(problem, mended(problem, seats, hurt[:MOST_MENDED], clock.seconds_left))
        found = min(found, whole, key=lambda p: _outlives(problem, p))
    return filled_up(problem, found)


def _outlives(problem: PlacementProblem, found: Placement) -> list[int]:
    """How many deployments a loss would leave short, then what the placement is worth."""
    return [len(frail(problem, found)), *_score(problem, found)]


@dataclass(slots=True)
class Floors:
    """Bounds by level; each holds while the levels before it keep what they are ``held`` to."""

    unmet: dict[int, int]
    held: dict[int, int]
    price: int = 0


def _by_priority(f: Formulation, clock: Clock, floors: Floors) -> Choice | None:
    """Levels of unmet demand; each is held to before the next."""
    complete: set[int] = set()
    best: Choice | None = None
    for priority in priorities(f):
        expr = f.unmet_ppm(priority)
        proof = _bound(f, expr, frozenset(complete), clock, "unmet", best)
        floors.unmet[priority], choice = _chosen(expr, proof, clock, PPM_SCALE, best)
        floors.held[priority] = -1
        best = _better(expr, choice, best)
        if best is None:
            return None
        value = floors.held[priority] = value_of(expr, best.values)
        floors.unmet[priority] = _lifted(expr, proof, clock, floors.unmet[priority], value)
        f.model.add(expr <= floors.held[priority])
        if floors.held[priority] == 0:
            complete.add(priority)
    expr = f.price_micros()
    proof = _bound(f, expr, frozenset(complete), clock, "price_per_hour", best)
    floors.price, choice = _chosen(expr, proof, clock, known=best)
    return _better(expr, choice, best)


def _lifted(expr: Expr, proof: tuple[Master, Bound], clock: Clock, low: int, value: int) -> int:
    """The bound on a level of unmet demand, lifted where no search follows that lifts it."""
    master, bound = proof
    if low >= value or not is_large(master.f.problem) or not separable(master):
        return low
    if not bound.serves or len(master.names) >= MANY or clock.interrupted:
        return low
    return lifted(master, bound, common_divisor(expr), (low, value), lambda: clock.seconds_left / 2)


def _better(expr: Expr, *choices: Choice | None) -> Choice | None:
    """The first of the best choices there are."""
    known = [one for one in choices if one is not None]
    return min(known, key=lambda one: value_of(expr, one.values), default=None)


def _bound(
    f: Formulation,
    expr: Expr,
    complete: frozenset[int],
    clock: Clock,
    name: str,
    known: Choice | None = None,
) -> tuple[Master, Bound]:
    """The relaxation's bound; its program begins with a choice that is ``known`` to be allowed."""
    master = Master(f, expr, complete)

    def on_round(bound: Bound) -> bool:
        low = rounded(bound.value * master.unit, common_divisor(expr))
        clock.report(Progress(name, bound=low))
        if clock.seconds_left < 0.3 * clock.limits.time_limit_s:
            clock.timed_out = True
        return not clock.timed_out

    mixes = list(master.mixes_of(known.values)) if known is not None else []
    held = enumerate(known.fillings) if known is not None else ()
    fillings = [(pool, counts) for pool, some in held for counts, _ in some]
    if not master.pools or len(master.names) < MANY:
        return master, master.solve(on_round, mixes, fillings)
    seeds, at = begin(master, on_round)
    return master, master.solve(on_round, [*seeds, *mixes], fillings, at)


def _low(expr: Expr, proof: tuple[Master, Bound]) -> int:
    """The bound in whole steps of the objective."""
    master, bound = proof
    return rounded(whole_shortfall(master, bound) * master.unit, common_divisor(expr))


def _chosen(
    expr: Expr,
    proof: tuple[Master, Bound],
    clock: Clock,
    scale: float = 1.0,
    known: Choice | None = None,
) -> tuple[int, Choice | None]:
    master, bound = proof
    low = _low(expr, proof)
    if not bound.mixes or not bound.serves or len(bound.duals) < len(master.rows):
        return low, None
    seconds = max(1.0, clock.seconds_left / 3)
    few = len(master.names) < MANY
    if scale == 1.0 and any(d.survive and d.asked_mrps for d in master.names.values()):
        return low, sturdy.choice(master, bound, seconds)
    widest = 0.0 if scale == 1.0 else max(WIDEST_UNMET * bound.value, WIDEST_LEAST * scale)
    choice = closer(master, bound, seconds, known, widest) if few else None
    if choice is None:
        return low, choose(master, bound, seconds, scale)
    if scale != 1.0 and value_of(expr, choice.values) > low:  # what is unmet is worth two tries
        choice = _better(expr, choice, choose(master, bound, seconds, scale, FEW_NODES))
    return low, choice


def _levels(problem: PlacementProblem, found: Placement, floors: Floors) -> list[Level]:
    """Counted values and the bounds that hold for them."""
    levels = []
    kept = True
    for level in counted_levels(problem, found):
        low = 0
        if kept and level.priority is not None:
            low = floors.unmet[level.priority]
            kept = level.value <= floors.held[level.priority]
        elif kept and level.name == "price_per_hour":
            low = floors.price
        levels.append(Level(level.name, level.value, min(level.value, low), level.priority))
    return levels


def counted_levels(problem: PlacementProblem, found: Placement) -> list[Level]:
    """The values of a placement, without bounds."""
    levels = [
        Level("unmet", value, 0, priority)
        for priority, value in measure.unmet_ppm(problem, found).items()
    ]
    levels.append(Level("price_per_hour", measure.price_micros(problem, found), 0))
    if problem.current is not None:
        levels.append(Level("disruption", measure.disruption_mib(problem, found), 0))
    return levels
