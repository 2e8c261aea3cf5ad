"""One level of the coarse view, to proof: bound, incumbent, then only what could beat it."""

from dataclasses import dataclass
from math import inf, isinf

from ortools.sat.python import cp_model

from optimizer.domain.outcome import Progress
from optimizer.domain.units import ceil_div
from optimizer.solver.branches import branched
from optimizer.solver.formulation import Expr
from optimizer.solver.integer import SAFETY, Answer, Search, common_divisor, run, value_of
from optimizer.solver.integer import rounded as rounded
from optimizer.solver.leaves import closed, separable
from optimizer.solver.master import MOST_TREE_NODES, Bound, Master
from optimizer.solver.pricing import cheapest_mix

WHOLE_EFFORT = 60.0  # with less effort trees are smaller in proportion


@dataclass(frozen=True, slots=True)
class Goal:
    """What to minimise and how hard to try."""

    name: str
    expr: Expr
    effort: float
    floor: int = 0  # a bound proved elsewhere
    gap: float = 0.0
    priority: int | None = None


def minimise(
    search: Search,
    goal: Goal,
    complete: frozenset[int],
    proof: tuple[Master, Bound] | None = None,
) -> None:
    """Minimise the goal over the search's formulation and record the level.

    ``complete``: priorities that an earlier level found can be served in full. ``proof``: the
    goal's bound, where it is known already and the incumbent is the best of its mixes.
    """
    if search.found and _good_enough(search.at(goal.expr), goal.floor, goal.gap):
        search.record(goal.name, goal.expr, goal.floor, goal.priority)
        return
    master, bound = proof or _bounded(search, goal.expr, complete)
    step = common_divisor(goal.expr)
    floor = max(goal.floor, rounded(bound.value * master.unit, step))
    if proof is None and not (search.found and _good_enough(search.at(goal.expr), floor, goal.gap)):
        _incumbent(search, goal, master, bound, floor)
    _tell(search, goal, floor)
    floor = max(floor, _closed(search, goal, master, bound, floor))
    over = search.clock.interrupted or search.clock.seconds_left <= 0
    if search.found and not over and not _good_enough(search.at(goal.expr), floor, goal.gap):
        floor = _improved(search, goal, master, bound, floor)
        _tell(search, goal, floor)
    search.record(goal.name, goal.expr, floor, goal.priority)


def _closed(search: Search, goal: Goal, master: Master, bound: Bound, floor: int) -> int:
    """Take the best solution by branches, where these decide; returns the floor."""
    value = search.at(goal.expr) if search.found else 0
    if not search.found or _good_enough(value, floor, goal.gap) or not separable(master):
        return floor
    step, clock, part = common_divisor(goal.expr), search.clock, _part(search)
    for way in (closed, branched):
        near = min(value, ceil_div(int(value * (1 - goal.gap)), step) * step)
        found = way(master, bound, step, (floor, near), lambda: clock.seconds_left, part)
        if found.values:
            search.values, value = found.values, value_of(goal.expr, found.values)
        floor = max(floor, found.floor)
        _tell(search, goal, floor)
        if _good_enough(value, floor, goal.gap) or clock.interrupted:
            break
    return floor


def _improved(search: Search, goal: Goal, master: Master, bound: Bound, floor: int) -> int:
    """Take a solution that is better by more than the gap, if there is one; returns the floor."""
    step, value = common_divisor(goal.expr), search.at(goal.expr)
    target = min(value - step, int(value * (1 - goal.gap)) // step * step)
    answer = _better(search, goal, master, bound, target, floor)
    if answer.found:
        search.values = answer.values
        if answer.status == cp_model.OPTIMAL and goal.gap == 0:
            return search.at(goal.expr)
    # Nothing is known of what lies between the target and the value.
    proved = target + step if answer.impossible else ceil_div(answer.bound, step) * step
    return max(floor, min(target + step, proved))


def _tell(search: Search, goal: Goal, floor: int) -> None:
    value = search.at(goal.expr) if search.found else None
    search.clock.report(Progress(goal.name, value, floor))


def _bounded(search: Search, expr: Expr, complete: frozenset[int]) -> tuple[Master, Bound]:
    master = Master(search.f, expr, complete)
    return master, master.solve()


def _incumbent(search: Search, goal: Goal, master: Master, bound: Bound, floor: int) -> None:
    """The better of what is kept and the best integer choice among the relaxation's mixes."""
    values = _integer(search, master, bound, _enough(floor, goal.gap))
    if values and (not search.found or value_of(goal.expr, values) < search.at(goal.expr)):
        search.values = values
    if not search.found:
        answer = run(search.f.model, search.clock, goal.name, effort=goal.effort * 0.2)
        search.values = answer.values


def _integer(search: Search, master: Master, bound: Bound, enough: float) -> list[int]:
    nodes = int(MOST_TREE_NODES * _part(search))
    return master.integer(
        bound,
        search.clock.seconds_left / 4,
        nodes=max(1, nodes),
        enough=enough,
        kept=search.values,
    )


def _part(search: Search) -> float:
    """How much of the work of trees the effort pays for."""
    return min(1.0, search.clock.limits.effort / WHOLE_EFFORT)


def _enough(floor: int, gap: float) -> float:
    """The largest value whose gap to the floor is small enough."""
    return floor / (1.0 - gap) if gap < 1 else inf


def _good_enough(value: int, floor: int, gap: float) -> bool:
    return value - floor <= gap * max(1, abs(value))


def start(search: Search, expr: Expr, gap: float) -> tuple[Master, Bound]:
    """A first incumbent that serves everybody at little cost, if known mixes allow it.

    Returns what bounds the cost of serving everybody.
    """
    everybody = frozenset(d.priority for d in search.f.problem.deployments)
    master, bound = _bounded(search, expr, everybody)
    floor = rounded(bound.value * master.unit, common_divisor(expr))
    values = _integer(search, master, bound, _enough(floor, gap))
    if values:
        search.values = values
    return master, bound


def _better(
    search: Search, goal: Goal, master: Master, bound: Bound, target: int, floor: int
) -> Answer:
    """Look for a solution of at most ``target`` among what reduced costs leave possible."""
    model = search.f.model.clone()
    slack = target / master.unit - bound.value + SAFETY * max(1.0, abs(bound.value))
    for variable, most in _possible(master, bound, slack).items():
        model.add(model.get_int_var_from_proto_index(variable) <= most)
    model.add(goal.expr <= target)
    model.add(goal.expr >= floor)
    model.minimize(goal.expr)
    return run(model, search.clock, goal.name, effort=goal.effort * 0.8, gap=goal.gap)


def _possible(master: Master, bound: Bound, slack: float) -> dict[int, int]:
    """The most that variables can be in any solution within ``slack`` of the bound.

    A filling of reduced cost r occurs at most slack / r times; a place occurs only if the
    cheapest mix that uses it costs at most ``slack`` more than the cheapest of all.
    """
    if isinf(bound.value):
        return {}
    most: dict[int, int] = {}
    prices = master.prices(bound.duals)
    for index, (low, high) in enumerate(master.ranges):
        reduced = float(prices[index])
        if index not in master.owner and reduced > 0 and slack / reduced < high - low:
            most[index] = low + max(0, int(slack / reduced))
    for name, d in master.names.items():
        asked = master.asked(d, prices)
        items = master.priced_items(d, prices)
        for item in items:
            extra = cheapest_mix(items, asked, forced=item).bound - bound.cheapest[name]
            if extra > slack:
                most[item.variable] = 0
    return most
