"""Large fleets: the counts from column generation and one mixed integer program, then places.

The program keeps what couples deployments: GPUs, profiles, groups, hosts. Shared GPUs enter it by
one row a pool, made of the duals (a dual-feasible function: what a filling is worth divided by
what the best is worth adds up to at most the GPUs in use), so that no filling needs a variable;
they are filled afterwards, and the row is tightened where that takes more GPUs than it said.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
from ortools.math_opt.python import mathopt

from optimizer.domain.problem import missing_ppm
from optimizer.solver import ear
from optimizer.solver.bins import Filled as Filled
from optimizer.solver.bins import pack
from optimizer.solver.master import MANY, Bound, Floats, Master
from optimizer.solver.pricing import Mix, mixes_within

NODES = 20_000
FEW_NODES = 500
FEW_MIXES = 700
WIDEST = 0.1  # of the bound: reduced costs where all mixes are asked for, to begin with
MOST_HALVINGS = 14
TRIES = 6
FEW_TRIES = 4
ROOM_LEFT = 0.3  # of a GPU, by shares that did not fit
MOST_MIXES = 3_000
MIP_GAP = 5e-5
SLACKS = (0.02, 0.1, 0.5, 2.0)  # reduced costs that the program may use, in parts of ``scale``
FILL_EFFORT = 100_000  # of packing a pool's GPUs


@dataclass(slots=True)
class Choice:
    """An integer answer: values of the formulation's variables, fillings of each pool."""

    values: list[int]
    fillings: list[Filled] = field(default_factory=list)


def choose(
    master: Master, bound: Bound, seconds: float, scale: float = 1.0, nodes: int = NODES
) -> Choice | None:
    """The best integer choice among the known mixes whose reduced cost is small."""
    prices = master.prices(bound.duals)
    near = [(s, sum(1 for _ in _near(master, bound, prices, s * scale))) for s in SLACKS]
    first = max([0, *(i for i, (_, mixes) in enumerate(near) if mixes <= MOST_MIXES)])
    for slack in (part * scale for part in SLACKS[first:]):
        found = _fitting(master, bound, slack, seconds, nodes)
        if found is not None:
            return found
    return None


def _fitting(
    master: Master, bound: Bound, slack: float, seconds: float, nodes: int
) -> Choice | None:
    """A choice whose shares fit in as few GPUs as it says, or else the cheapest with more GPUs.

    Where they do not fit, shares are asked to leave some room.
    """
    many = len(master.names) >= MANY
    margins = [0.0] * len(master.pools)
    tried: list[Choice] = []
    for _ in range(TRIES if many else FEW_TRIES):
        values = _integer(master, bound, slack, margins, seconds, nodes)
        if values is None:
            break
        fillings = [_fill(master, number, bound, values) for number in range(len(margins))]
        short = [
            sum(times for _, times in filled) - sum(values[g] for g in _gpus(master, number))
            for number, filled in enumerate(fillings)
        ]
        fits = max(short, default=0) <= 0
        if _give(master, values, short):
            tried.append(Choice(values, fillings))
            if many or fits:
                break
        margins = [
            m + (max(0, s) if many else ROOM_LEFT * (s > 0))
            for m, s in zip(margins, short, strict=True)
        ]
    return min(tried, key=lambda c: float(master.costs @ np.array(c.values)), default=None)


def closer(master: Master, bound: Bound, seconds: float) -> Choice | None:
    """The best choice among all mixes, known or not, that cost hardly more than the cheapest.

    For few deployments, whose relaxation meets too few mixes to choose from. None where these
    few mixes do not go together.
    """
    prices = master.prices(bound.duals)
    slack = WIDEST * max(1.0, bound.value)
    for _ in range(MOST_HALVINGS):
        mixes = _all_within(master, bound, prices, slack)
        if sum(map(len, mixes.values())) <= FEW_MIXES:
            break
        slack /= 2
    used = {name: set(bound.used.get(name, ())) for name in master.names}
    for name, some in mixes.items():
        counts = {mix.counts for mix in some}
        some += [m for m in bound.mixes[name] if m in used[name] and m.counts not in counts]
    return choose(master, replace(bound, mixes=mixes), seconds, slack / SLACKS[-1], FEW_NODES)


def _all_within(master: Master, bound: Bound, prices: Floats, slack: float) -> dict[str, list[Mix]]:
    found: dict[str, list[Mix]] = {}
    left = FEW_MIXES + 1
    for name, d in master.names.items():
        items, asked = master.priced_items(d, prices), master.asked(d, prices)
        every = mixes_within(items, asked, bound.cheapest[name] + slack, max(1, left))
        found[name] = [mix for mix in every if _within_own(master, name, mix)]
        left -= len(found[name])
    return found


def _within_own(master: Master, name: str, mix: Mix) -> bool:
    """Whether the mix keeps what limits its deployment alone."""
    counts = dict(mix.counts)
    return all(
        sum(c * counts.get(v, 0) for v, c in row.coefficients) <= row.high
        for row in master.own_rows[name]
        if not math.isinf(row.high)
    )


def _gpus(master: Master, number: int) -> list[int]:
    """The variables that count a pool's GPUs in use."""
    return [v for v, _ in master.rows[master.pools[number].gpu_row].coefficients]


def _give(master: Master, values: list[int], short: list[int]) -> bool:
    """Use more or fewer GPUs of a pool, where the fleet has them; False where it has not."""
    for number, more in enumerate(short):
        for g in _gpus(master, number):
            change = max(-values[g], min(more, master.ranges[g][1] - values[g]))
            values[g] += change
            more -= change
        if more > 0:
            return False
    used = np.array(values, dtype=float)
    for row in master.rows:
        total = sum(c * used[v] for v, c in row.coefficients)
        own = any(v in master.owner for v, _ in row.coefficients)
        if not own and not row.low - 0.5 <= total <= row.high + 0.5:
            return False
    return True


def _integer(
    master: Master, bound: Bound, slack: float, margins: list[float], seconds: float, nodes: int
) -> list[int] | None:
    """Mixes and fillings by HiGHS; ends by gap or nodes, ``seconds`` is the safety stop."""
    prices = master.prices(bound.duals)
    model = mathopt.Model()
    generated = {r for p in master.pools for r in (*p.size_rows, p.gpu_row)}
    rows = {
        r: model.add_linear_constraint(lb=row.low, ub=row.high)
        for r, row in enumerate(master.rows)
        if r not in generated
    }
    extra = _pool_rows(master, bound.duals, model, margins)
    choose_one = {n: model.add_linear_constraint(lb=1.0, ub=1.0) for n in master.names}
    mixes: list[tuple[Mix, mathopt.Variable]] = []
    for name, mix in _near(master, bound, prices, slack):
        x = model.add_binary_variable()
        mixes.append((mix, x))
        choose_one[name].set_coefficient(x, 1.0)
        cost = 0.0
        into: dict[int, float] = defaultdict(float)
        taken: tuple[tuple[int, float], ...] = mix.counts
        for variable, count in (*taken, (master.missing[name], mix.missing_ppm)):
            cost += count * float(master.costs[variable])
            for r, times in master.by_variable.get(variable, ()):
                if r in rows:
                    into[r] += times * count
            for row, part in extra.get(variable, ()):
                row.set_coefficient(x, row.get_coefficient(x) + part * count)
        for r, coefficient in into.items():
            rows[r].set_coefficient(x, coefficient)
        model.objective.set_linear_coefficient(x, cost)
    fillings: dict[int, mathopt.Variable] = {}
    for index in np.nonzero(master.filling)[0].tolist():
        low, high = master.ranges[index]
        if prices[index] > slack and not low:
            continue
        fillings[index] = x = model.add_integer_variable(lb=low, ub=high)
        model.objective.set_linear_coefficient(x, float(master.costs[index]))
        for r, coefficient in master.by_variable.get(index, ()):
            if r in rows:
                rows[r].set_coefficient(x, coefficient)
        for row, part in extra.get(index, ()):
            row.set_coefficient(x, part)
    params = mathopt.SolveParameters(
        time_limit=timedelta(seconds=max(1.0, seconds)),
        node_limit=nodes,
        relative_gap_tolerance=MIP_GAP,
    )
    # HiGHS takes no interrupt: the first is answered when it ends by itself, the second at once.
    result = ear.beside(
        lambda: mathopt.solve(model, mathopt.SolverType.HIGHS, params=params), lambda: None
    )
    if not result.has_primal_feasible_solution():
        return None
    chosen = result.variable_values()
    values = [0] * len(master.ranges)
    for index, x in fillings.items():
        values[index] = round(chosen[x])
    for mix, x in mixes:
        if round(chosen[x]):
            for variable, count in mix.counts:
                values[variable] += count
    _count_missing(master, values)
    return values


def _near(master: Master, bound: Bound, prices: Floats, slack: float) -> Iterator[tuple[str, Mix]]:
    """Known mixes that cost little more than the cheapest at the bound's prices.

    Where demand may be left unmet, those with one replica less too.
    """
    for name, known in bound.mixes.items():
        used = bound.used.get(name, set())
        mixes = dict.fromkeys(known)
        if not master.in_full(master.names[name]):
            mixes |= dict.fromkeys(less for mix in known for less in _one_less(master, name, mix))
        for mix in mixes:
            cost = sum(count * max(0.0, prices[v]) for v, count in mix.counts)
            cost += mix.missing_ppm * max(0.0, prices[master.missing[name]])
            if cost - bound.cheapest[name] <= slack or mix in used:
                yield name, mix


def _one_less(master: Master, name: str, mix: Mix) -> Iterator[Mix]:
    """The mix without one replica of each of its kinds."""
    d, capacity = master.names[name], dict(master.items[name])
    for variable, _ in mix.counts:
        counts = dict(mix.counts)
        counts[variable] -= 1
        left = tuple((v, n) for v, n in counts.items() if n)
        served = sum(capacity[v] * n for v, n in left)
        missing = missing_ppm(d, served, sum(n for _, n in left))
        yield Mix(0.0, 0.0, left, float(missing))


def _pool_rows(
    master: Master, duals: Floats, model: mathopt.Model, margins: list[float]
) -> dict[int, list[tuple[mathopt.LinearConstraint, float]]]:
    """For each pool: GPUs in use, less what each share is worth, is at least the margin."""
    found: dict[int, list[tuple[mathopt.LinearConstraint, float]]] = defaultdict(list)
    for pool, margin in zip(master.pools, margins, strict=True):
        worth = float(duals[pool.gpu_row])
        row = model.add_linear_constraint(lb=margin)
        room = pool.packer.parts
        for number, r in enumerate(pool.size_rows):
            # Without a price, what a share takes of the GPU's memory bounds as well.
            part = duals[r] / worth if worth > 0 else room[number].max()
            for v, _ in master.rows[r].coefficients:
                found[v].append((row, -max(0.0, float(part))))
        for v, _ in master.rows[pool.gpu_row].coefficients:
            found[v].append((row, 1.0))
    return found


def _count_missing(master: Master, values: list[int]) -> None:
    for name, d in master.names.items():
        served = sum(values[v] * capacity for v, capacity in master.items[name])
        replicas = sum(values[v] for v, _ in master.items[name])
        values[master.missing[name]] = missing_ppm(d, served, replicas)


def _fill(master: Master, number: int, bound: Bound, values: list[int]) -> Filled:
    """Fillings that hold all the shares which the values ask of a pool."""
    pool = master.pools[number]
    wanted = Counter[int]()
    for size, row in enumerate(pool.size_rows):
        asked = sum(values[v] for v, _ in master.rows[row].coefficients)
        if asked:
            wanted[size] = asked
    room = sum(values[g] for g in _gpus(master, number))
    packing = pack(pool.packer, wanted, bound.fillings[number], enough=room, effort=FILL_EFFORT)
    return packing.filled
