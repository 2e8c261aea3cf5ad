"""The flow of MIG instances: alike GPUs are counted by what stands on them and what they become.

A GPU in one slot state may end in any multiset of instances. What it costs is the least that must
be removed, over all legal placed layouts of that multiset. One integer counts the GPUs of a class
that end so; per profile, what is added covers what is removed. All ends are in the table (78 of an
A100's), so a proof is over all removals. The bound is Lagrangian: with a price per profile and one
for the side limit the GPUs fall apart, and each takes its best end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.math_opt import model_pb2
from ortools.math_opt.python import mathopt

from optimizer.domain.gpu import MigTable, PlacedProfile

Array = NDArray[np.float64]
Entries = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # rows, columns, coefficients
ROUNDS = 400  # of the cutting-plane method; it ends much earlier
TOLERANCE = 1e-6
FIRST_SLACK = 1e-5  # of the bound: how far above it columns are taken at first
DEAR = 1000  # times the dearest end: the price of breaking a row while columns are few
AT_ONCE = 512  # classes whose ends are compared with each other in one piece of memory


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Every multiset of some profiles that a GPU can hold, and its placed layouts."""

    profiles: tuple[str, ...]
    slots: tuple[PlacedProfile, ...]
    counts: Array  # ends x profiles
    layouts: tuple[tuple[PlacedProfile, ...], ...]  # sorted by end
    held: Array  # layouts x slots, 1 where the layout has that instance
    first: NDArray[np.int64]  # of each end, its first layout
    empty: int  # the end without an instance

    def effort(
        self, weights: Array, standing: Array, cut: float, whole: bool = False
    ) -> tuple[Array, NDArray[np.int64]]:
        """Classes x ends: the least that reaching an end takes, and the layout that takes it.

        ``weights`` (classes x slots) is what it takes to move who is in that instance, ``cut`` what
        it takes to cut the GPU anew: an instance is created that is not ``standing``. ``whole``:
        only an empty GPU can be cut, so all must move.
        """
        effort = np.zeros((len(weights), len(self.counts)))
        layout = np.zeros_like(effort, dtype=np.int64)
        last = [*self.first[1:].tolist(), len(self.layouts)]
        created = (1.0 - standing) @ self.held.T > 0
        kept = weights @ self.held.T
        takes = weights.sum(axis=1, keepdims=True) - (kept * ~created if whole else kept)
        takes = takes + cut * created
        for end, (low, high) in enumerate(zip(self.first.tolist(), last, strict=True)):
            pick = takes[:, low:high].argmin(axis=1)
            layout[:, end] = low + pick
            effort[:, end] = takes[np.arange(len(takes)), low + pick]
        return effort, layout


@lru_cache(maxsize=64)
def ends_of(table: MigTable, profiles: tuple[str, ...]) -> Ends:
    """The table of ends for the named profiles."""
    counted: dict[tuple[int, ...], list[tuple[PlacedProfile, ...]]] = {}
    for layout in table.layouts(profiles):
        key = tuple(sum(p.profile == name for p in layout) for name in profiles)
        counted.setdefault(key, []).append(layout)
    keys = sorted(counted)
    layouts = [layout for key in keys for layout in sorted(counted[key])]
    slots = tuple(sorted({placed for layout in layouts for placed in layout}))
    held = np.array([[float(s in layout) for s in slots] for layout in layouts])
    sizes = [len(counted[key]) for key in keys]
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    return Ends(
        profiles,
        slots,
        np.array(keys, dtype=float),
        tuple(layouts),
        held,
        first,
        keys.index((0,) * len(profiles)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Classes of alike GPUs of one product; ``cost`` and each of ``sides`` are classes x ends.

    ``need`` counts by profile the instances that must run somewhere; infinite cost forbids an end.
    """

    ends: Ends
    gpus: Array  # how many GPUs are in each class
    need: Array
    cost: Array
    sides: tuple[Array, ...] = ()

    def merged(self) -> "Block":
        """Classes of equal costs as one; without a side limit they are alike."""
        cost, inverse = np.unique(self.cost, axis=0, return_inverse=True)
        gpus = np.bincount(inverse.ravel(), weights=self.gpus, minlength=len(cost)).astype(float)
        return Block(self.ends, gpus, self.need, cost)

    def pruned(self) -> "Block":
        """The same without the ends that another end of its class makes needless.

        That other has at least as many instances of every profile and takes no more of anything;
        which ends hold more than which has no circles, so one of the best is always left.
        """
        counts = self.ends.counts
        more: NDArray[Any] = np.all(counts[:, None, :] <= counts[None, :, :], axis=2)
        np.fill_diagonal(more, False)
        cost = self.cost.copy()
        for low in range(0, len(cost), AT_ONCE):
            part = slice(low, low + AT_ONCE)
            better = more[None, :, :] & np.isfinite(self.cost[part])[:, None, :]
            for takes in (self.cost[part], *(side[part] for side in self.sides)):
                better &= takes[:, None, :] <= takes[:, :, None]
            cost[part][better.any(axis=2)] = inf
        return replace(self, cost=cost)


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """How many GPUs of each class take each end: per block a sparse list of (class, end, gpus)."""

    takes: tuple[tuple[tuple[int, int, int], ...], ...]
    value: int
    bound: int
    columns: tuple[NDArray[np.bool_], ...] = ()  # those that its bound was made of


def minimise(
    blocks: Sequence[Block],
    limits: Sequence[int] = (),
    *,
    seconds: float = 60.0,
    known: int | None = None,
    start: Sequence[NDArray[np.bool_]] = (),
) -> Flow | None:
    """The flow of least cost whose side sums are within their limits; None when none was found.

    Costs and sides are whole numbers. ``known`` is a bound proved elsewhere; ``start`` has columns
    of a flow over the same blocks with other limits. Without limits the classes of the answer are
    those of ``Block.merged``.
    """
    if not limits:
        blocks = [block.merged() for block in blocks]
    blocks = [block.pruned() for block in blocks]
    dual = _dual(blocks, limits, start)
    bound = _up(dual.value)
    bound = bound if known is None else max(bound, known)
    slack = max(0.0, dual.value * FIRST_SLACK // 1)
    best: Flow | None = None
    for _ in range(8):
        columns = dual.columns(bound - dual.value + slack)
        found = _integer(blocks, columns, limits, bound, seconds)
        if found is None:
            slack = 4 * slack + 1
            continue
        flow, proved = found
        best = flow if best is None or flow.value < best.value else best
        if best.value - 1 <= bound + slack:
            # Costs are whole, and no column left out is part of anything that costs one less.
            proven = best.value if proved == best.value else max(bound, min(proved, best.value))
            return Flow(best.takes, best.value, proven, dual.used)
        slack = float(best.value - 1 - bound)
    return best


def lower_bound(blocks: Sequence[Block], limits: Sequence[int] = ()) -> int:
    """A whole number that no flow within the limits goes below."""
    return _up(_dual([block.pruned() for block in blocks], limits).value)


def _up(value: float) -> int:
    return int(np.ceil(value - TOLERANCE * max(1.0, abs(value)) ** 0.5))


@dataclass(frozen=True, slots=True, eq=False)
class _Dual:
    """The best Lagrangian bound found, with the reduced cost of every column there."""

    value: float
    reduced: tuple[Array, ...]
    used: tuple[NDArray[np.bool_], ...] = ()

    def columns(self, most: float) -> list[NDArray[np.bool_]]:
        """Which columns may be part of a solution at most that far above the bound."""
        return [r <= most + TOLERANCE for r in self.reduced]


def _dual(
    blocks: Sequence[Block], limits: Sequence[int], start: Sequence[NDArray[np.bool_]] = ()
) -> _Dual:
    """The Lagrangian bound at prices from a linear program whose columns are generated."""
    columns = [_start(block) for block in blocks]
    for block, chosen, known in zip(blocks, columns, start, strict=False):
        chosen |= known & np.isfinite(block.cost)
    best: _Dual | None = None
    center = np.zeros(0)
    for _ in range(ROUNDS):
        value, at = _linear(blocks, columns, limits)
        # Halfway to the best prices so far: the raw ones swing.
        for point in (at,) if best is None else ((at + center) / 2, at):
            bound, reduced = _evaluate(blocks, limits, point)
            if best is None or bound > best.value:
                best, center = _Dual(bound, reduced), point
            for chosen, distance in zip(columns, reduced, strict=True):
                chosen |= distance <= TOLERANCE
        assert best is not None
        if value - best.value <= TOLERANCE * max(1.0, abs(value)):
            break
    assert best is not None
    return replace(best, used=tuple(columns))


def _start(block: Block) -> NDArray[np.bool_]:
    """Columns to begin with: all at no cost, the cheapest and the empty end of each class."""
    chosen = block.cost <= 0
    chosen[np.arange(len(chosen)), block.cost.argmin(axis=1)] = True
    chosen[:, block.ends.empty] = True
    return chosen & np.isfinite(block.cost)


def _linear(
    blocks: Sequence[Block], columns: Sequence[NDArray[np.bool_]], limits: Sequence[int]
) -> tuple[float, Array]:
    """Value and prices of the linear program over some columns; breaking a row is dear."""
    rows = sum(len(block.need) for block in blocks) + len(limits)
    model = _model(blocks, columns, limits, integer=False)
    result = mathopt.solve(mathopt.Model.from_model_proto(model), mathopt.SolverType.GLOP)
    duals = {row.id: value for row, value in result.dual_values().items()}
    return result.objective_value(), np.abs(np.array([duals[row] for row in range(rows)]))


def _largest(cost: Array) -> float:
    return float(np.max(cost, initial=0.0, where=np.isfinite(cost)))


def _evaluate(
    blocks: Sequence[Block], limits: Sequence[int], at: Array
) -> tuple[float, tuple[Array, ...]]:
    """The bound at these prices, and each column's distance from its class's best."""
    side_prices = at[len(at) - len(limits) :]
    value = -float(side_prices @ np.array(limits, dtype=float))
    reduced = []
    offset = 0
    for block in blocks:
        count = len(block.ends.profiles)
        price = at[offset : offset + count]
        worth = block.cost - block.ends.counts @ price
        for side_price, side in zip(side_prices, block.sides, strict=False):
            worth = worth + side_price * side
        pick = worth.argmin(axis=1)
        rows = np.arange(len(pick))
        least = worth[rows, pick]
        value += float(block.gpus @ least + block.need @ price)
        reduced.append(worth - least[:, None])
        offset += count
    return value, tuple(reduced)


def _integer(
    blocks: Sequence[Block],
    columns: Sequence[NDArray[np.bool_]],
    limits: Sequence[int],
    bound: int,
    seconds: float,
) -> tuple[Flow, int] | None:
    """The best flow over these columns, and the bound that holds over them."""
    model = _model(blocks, columns, limits, integer=True, least=bound)
    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=seconds),
        absolute_gap_tolerance=0.5,
        relative_gap_tolerance=0.0,
    )
    asked = mathopt.Model.from_model_proto(model)
    result = mathopt.solve(asked, mathopt.SolverType.HIGHS, params=parameters)
    if not result.has_primal_feasible_solution():
        return None
    values = {take.id: value for take, value in result.variable_values().items()}
    return _flow(blocks, columns, values), _up(result.dual_bound())


def _model(
    blocks: Sequence[Block],
    columns: Sequence[NDArray[np.bool_]],
    limits: Sequence[int],
    *,
    integer: bool,
    least: int | None = None,
) -> model_pb2.ModelProto:
    """Each class takes its ends, each profile has room for all of its instances, the sides hold.

    A variable for each column, by block, class and end. Rows by profile come first, then those of
    the sides. ``least`` is a bound on the cost, as a row; without it rows may be broken, dearly.
    """
    cells = [np.argwhere(chosen) for chosen in columns]
    costs = np.concatenate([b.cost[tuple(at.T)] for b, at in zip(blocks, cells, strict=True)])
    most = np.concatenate([b.gpus[at[:, 0]] for b, at in zip(blocks, cells, strict=True)])
    needs = np.concatenate([block.need for block in blocks])
    counts = np.concatenate([block.gpus for block in blocks])
    first_side, first_class = len(needs), len(needs) + len(limits)
    low = np.concatenate([needs, np.full(len(limits), -inf), counts])
    high = np.concatenate([np.full(len(needs), inf), np.array(limits, dtype=float), counts])
    entries: list[Entries] = []
    take = profile = row = 0
    for block, at in zip(blocks, cells, strict=True):
        mine = np.arange(take, take + len(at))
        supplied = block.ends.counts[at[:, 1]]
        one, which = np.nonzero(supplied)
        entries.append((profile + which, mine[one], supplied[one, which]))
        for number, side in enumerate(block.sides[: len(limits)]):
            entries.append((np.full(len(at), first_side + number), mine, side[tuple(at.T)]))
        entries.append((first_class + row + at[:, 0], mine, np.ones(len(at))))
        take, profile, row = take + len(at), profile + len(block.need), row + len(block.gpus)
    if least is None:
        dear = DEAR * (1 + max(_largest(b.cost) for b in blocks))
        breaches = np.arange(first_class)
        entries.append((breaches, take + breaches, np.where(breaches < first_side, 1.0, -1.0)))
        costs = np.concatenate([costs, np.full(first_class, dear)])
        most = np.concatenate([most, np.full(first_class, inf)])
    else:
        entries.append((np.full(take, len(low)), np.arange(take), costs))
        low, high = np.append(low, least), np.append(high, inf)
    return _proto(costs, most, low, high, entries, integer=integer)


def _proto(
    costs: Array,
    most: Array,
    low: Array,
    high: Array,
    entries: Sequence[Entries],
    *,
    integer: bool,
) -> model_pb2.ModelProto:
    """A model in one piece: variables from 0 to ``most``, rows from ``low`` to ``high``."""
    model = model_pb2.ModelProto()
    model.variables.ids.extend(range(len(costs)))
    model.variables.lower_bounds.extend(np.zeros(len(costs)))
    model.variables.upper_bounds.extend(most)
    model.variables.integers.extend([integer] * len(costs))
    priced = np.nonzero(costs)[0]
    model.objective.linear_coefficients.ids.extend(priced)
    model.objective.linear_coefficients.values.extend(costs[priced])
    model.linear_constraints.ids.extend(range(len(low)))
    model.linear_constraints.lower_bounds.extend(low)
    model.linear_constraints.upper_bounds.extend(high)
    rows, takes, values = (np.concatenate(part) for part in zip(*entries, strict=True))
    order = np.lexsort((takes, rows))
    order = order[values[order] != 0]
    matrix = model.linear_constraint_matrix
    matrix.row_ids.extend(rows[order])
    matrix.column_ids.extend(takes[order])
    matrix.coefficients.extend(values[order])
    return model


def _flow(
    blocks: Sequence[Block], columns: Sequence[NDArray[np.bool_]], values: Mapping[int, float]
) -> Flow:
    found, value, first = [], 0.0, 0
    for block, chosen in zip(blocks, columns, strict=True):
        cells = np.argwhere(chosen).tolist()
        some = [(c, e, round(values[first + i])) for i, (c, e) in enumerate(cells)]
        found.append(tuple(one for one in some if one[2] > 0))
        value += sum(n * block.cost[c, e] for c, e, n in found[-1])
        first += len(cells)
    return Flow(tuple(found), round(value), round(value))
