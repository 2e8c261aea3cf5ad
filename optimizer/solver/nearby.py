"""Counts near to those that run: what is worth changing, by one small integer program.

Each deployment keeps its mix, or takes one that the relaxation likes, or one that differs from its
own by little. What must be loaded costs a little, so that of plans nearly as cheap the one that
moves less is chosen.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from math import inf, isinf, log

import numpy as np
from ortools.sat.python import cp_model

from optimizer.domain.problem import missing_ppm
from optimizer.domain.units import PPM, ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver import ear
from optimizer.solver.integer import LEAST_S, Clock
from optimizer.solver.master import Bound, Floats, Master, OpenPool
from optimizer.solver.pricing import Mix

GRAIN = 1_000_000  # costs and parts of a GPU are integers of this grain
CLOSE = 5e-5  # relative gap at which the program ends, at least
NEAR = 0.1  # of the dearest GPU's price: how much dearer than the cheapest a mix may be
SWAPS = 4  # places that are tried for what lacks
UNMET_GRAIN_PPM = 10_000  # so little unmet is worth as much as the whole fleet
RANKED = 30  # how often more a higher priority weighs
PART = 0.4  # of the gap, at which the program ends
SHARE = 0.3  # of the gap that few moves may cost

Counts = tuple[tuple[int, int], ...]  # replicas by place
Terms = list[tuple[cp_model.IntVar, int]]
Kept = Mapping[str, Counter[int]]  # by deployment: replicas that may stay, by place


def near(master: Master, bound: Bound, slack: float) -> Iterator[tuple[str, Mix]]:
    """Known mixes that the relaxation uses, or that cost little more than the cheapest."""
    prices = master.prices(bound.duals)
    for name, mixes in bound.mixes.items():
        used = bound.used.get(name, set())
        for mix in sorted(set(mixes), key=lambda m: (m.counts, m.missing_ppm)):
            cost = sum(count * max(0.0, prices[v]) for v, count in mix.counts)
            dear = cost - bound.cheapest.get(name, 0.0) > slack
            if not mix.missing_ppm and (mix in used or not dear):
                yield name, mix


def nearby(
    master: Master, bound: Bound, kept: Kept, clock: Clock, effort: float
) -> list[int] | None:
    """Values of the coarse view's variables that serve everybody, near to what is ``kept``.

    None where it finds none. Ends by gap or deterministic ``effort``.
    """
    prices, gap = master.prices(bound.duals), clock.limits.gap
    load = {
        c.count.index: c.candidate.load_mib * master.names[c.deployment].move_weight
        for c in master.f.copies
    }
    runs = sum(load[v] * count for mine in kept.values() for v, count in mine.items())
    weight = SHARE * max(gap, CLOSE) * abs(bound.value) / max(1, runs)
    mixes: dict[str, dict[Counts, None]] = defaultdict(dict)
    for name, mix in near(master, bound, NEAR):
        mixes[name][mix.counts] = None
    choice = _Choice(master, bound.duals)
    for name, d in master.names.items():
        mine = kept.get(name, Counter())
        for counts in {**mixes[name], **dict.fromkeys(_around(master, d, mine, prices))}:
            if _holds(master, d, dict(counts)):
                moved = sum(max(0, count - mine[v]) * load[v] for v, count in counts)
                choice.add(name, counts, moved * weight)
    return choice.solve(max(CLOSE, PART * gap), effort, clock)


def least_unmet(
    master: Master, proof: tuple[Master, Bound], kept: Kept, clock: Clock, effort: float
) -> list[int] | None:
    """The same where not everybody can be served: little unmet, the higher priority first.

    ``proof`` bounds what is unmet; ``master`` knows the prices, which decide among equals.
    """
    by_unmet, bound = proof
    prices = by_unmet.prices(bound.duals)
    mixes: dict[str, dict[Counts, None]] = defaultdict(dict)
    for name, mix in near(by_unmet, bound, NEAR):
        mixes[name][mix.counts] = None
    ranks = sorted({d.priority for d in master.names.values()})
    fleet = sum(float(c) * high for c, high in zip(master.costs, master.highs, strict=True) if c)
    alike = max(0, len(ranks) - 1 - _depth(fleet * len(master.names)))
    choice = _Choice(master, bound.duals)
    for name, d in master.names.items():
        mine = kept.get(name, Counter())
        some = {**mixes[name], **dict.fromkeys(_around(master, d, mine, prices))}
        some |= dict.fromkeys([tuple(sorted(mine.items())), ()])
        some |= dict.fromkeys([less for counts in tuple(some) for less in _one_less(counts)])
        dear = fleet / UNMET_GRAIN_PPM * RANKED ** max(0, ranks.index(d.priority) - alike)
        for counts in some:
            if _holds(master, d, dict(counts), in_full=False):
                served = sum(master.rate_of[v] * n for v, n in counts)
                missing = missing_ppm(d, served, sum(n for _, n in counts))
                choice.add(name, counts, dear * missing)
    return choice.solve(CLOSE, effort, clock)


def _depth(fleet: float) -> int:
    """How many times a priority may weigh more than the next: costs are integers of 63 bits.

    Of more priorities the lowest weigh alike here; whoever compares what is found tells them apart.
    """
    largest = GRAIN * PPM / UNMET_GRAIN_PPM * max(1.0, fleet)
    return max(0, int(log(max(1.0, 2.0**62 / largest), RANKED)))


def _one_less(counts: Counts) -> Iterator[Counts]:
    for v, _ in counts:
        yield tuple((w, n - (w == v)) for w, n in counts if n > (w == v))


def _around(master: Master, d: Deployment, mine: Counter[int], prices: Floats) -> Iterator[Counts]:
    """The mix that runs, with what lacks in one place; with one or all of a place elsewhere."""
    rate = dict(master.items[d.name])
    if not rate:
        return
    most = {v: int(master.highs[v]) for v in rate}
    bases = [mine]
    bases += [mine - Counter({v: n}) for v in sorted(mine) for n in sorted({1, mine[v]})]
    for base in bases:
        lacks = (d.asked_mrps or 0) - sum(rate[v] * n for v, n in base.items())
        fewer = d.min_replicas - base.total()
        options = []
        for v, each in rate.items():
            more = max(0, fewer)
            if lacks > 0:
                more = max(more, ceil_div(lacks, each)) if each else most[v] + 1
            if base[v] + more <= most[v]:
                options.append((more * max(0.0, float(prices[v])), v, more))
        if lacks <= 0 and fewer <= 0:
            yield tuple(sorted(base.items()))
            continue
        for _, v, more in sorted(options)[:SWAPS]:
            yield tuple(sorted((base + Counter({v: more})).items()))


def _holds(master: Master, d: Deployment, counts: dict[int, int], *, in_full: bool = True) -> bool:
    """Whether the mix serves the deployment and keeps the rows that speak of it alone."""
    rate = dict(master.items[d.name])
    number = sum(counts.values())
    if d.replica_limit is not None and number > d.replica_limit:
        return False
    if counts and d.survive and d.asked_mrps and not master.survives(d, counts):
        return False
    if in_full or d.reserve:
        if sum(rate[v] * n for v, n in counts.items()) < (d.asked_mrps or 0):
            return False
        if number < d.min_replicas or (d.survive and d.asked_mrps and not counts):
            return False
    return all(
        not isinf(row.low) or sum(c * counts.get(v, 0) for v, c in row.coefficients) <= row.high
        for row in (*master.own_rows[d.name], *master.paid_rows[d.name])
    )


class _Choice:
    """The program: one mix a deployment, the coupling rows, one row a pool of shared GPUs.

    That row is a dual-feasible function: what a share is worth at the duals divided by what a
    GPU is worth adds up to at most the GPUs in use.
    """

    def __init__(self, master: Master, duals: Floats) -> None:
        self.m = master
        self.model = cp_model.CpModel()
        generated = {r for p in master.pools for r in (*p.size_rows, p.gpu_row)}
        self.rows = [
            (tuple(row.coefficients), row.low, row.high)
            for r, row in enumerate(master.rows)
            if r not in generated
        ]
        for pool in master.pools:
            self._pool(pool, duals)
        self.terms: list[Terms] = [[] for _ in self.rows]
        self.rows_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for r, (coefficients, _, _) in enumerate(self.rows):
            for v, c in coefficients:
                self.rows_of[v].append((r, c))
        self.cost: Terms = []
        self.mixes: dict[str, list[tuple[Counts, cp_model.IntVar]]] = defaultdict(list)
        self.fillings: dict[int, cp_model.IntVar] = {}
        for index in np.nonzero(master.filling)[0].tolist():
            low, high = master.ranges[index]
            x = self.fillings[index] = self.model.new_int_var(low, high, "")
            self._enter(x, ((index, 1),), 0.0)

    def _pool(self, pool: OpenPool, duals: Floats) -> None:
        price = float(duals[pool.gpu_row])
        parts = pool.packer.parts.max(axis=1)
        terms: Counter[int] = Counter()
        for number, r in enumerate(pool.size_rows):
            part = float(duals[r]) / price if price > 0 else float(parts[number])
            for v, _ in self.m.rows[r].coefficients:
                terms[v] -= round(GRAIN * max(0.0, part))
        for v, _ in self.m.rows[pool.gpu_row].coefficients:
            terms[v] += GRAIN
        self.rows.append((tuple(terms.items()), 0.0, inf))

    def _enter(self, x: cp_model.IntVar, counts: Counts, extra: float) -> None:
        into: Counter[int] = Counter()
        for v, count in counts:
            for r, coefficient in self.rows_of[v]:
                into[r] += coefficient * count
        for r, coefficient in into.items():
            self.terms[r].append((x, coefficient))
        paid = sum(count * float(self.m.costs[v]) for v, count in counts)
        if cost := round(GRAIN * (paid + extra)):
            self.cost.append((x, cost))

    def add(self, name: str, counts: Counts, extra: float) -> None:
        """A mix that the deployment may choose, at its price and ``extra``."""
        x = self.model.new_bool_var("")
        self.mixes[name].append((counts, x))
        self._enter(x, counts, extra)

    def solve(self, gap: float, effort: float, clock: Clock) -> list[int] | None:
        """Values of all variables of the formulation."""
        for (_, low, high), terms in zip(self.rows, self.terms, strict=True):
            ends = cp_model.Domain(
                cp_model.INT_MIN if isinf(low) else int(low),
                cp_model.INT_MAX if isinf(high) else int(high),
            )
            self.model.add_linear_expression_in_domain(_sum(terms), ends)
        for name in self.m.names:
            self.model.add_exactly_one(x for _, x in self.mixes[name])
        self.model.minimize(_sum(self.cost))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = clock.limits.seed
        solver.parameters.max_deterministic_time = effort
        solver.parameters.max_time_in_seconds = max(LEAST_S, clock.seconds_left / 4)
        solver.parameters.relative_gap_limit = gap
        # The relaxation says nearly all; probing and symmetries take longer than the search.
        solver.parameters.linearization_level = 2
        solver.parameters.cp_model_probing_level = 0
        solver.parameters.symmetry_level = 0
        solver.parameters.catch_sigint_signal = False
        status = ear.beside(lambda: solver.solve(self.model), solver.stop_search)
        clock.timed_out |= solver.wall_time >= solver.parameters.max_time_in_seconds
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None
        values = [0] * len(self.m.ranges)
        for index, x in self.fillings.items():
            values[index] = solver.value(x)
        for mixes in self.mixes.values():
            for counts, x in mixes:
                for v, count in counts if solver.value(x) else ():
                    values[v] += count
        return values


def _sum(terms: Terms) -> cp_model.LinearExprT:
    return cp_model.LinearExpr.weighted_sum([x for x, _ in terms], [c for _, c in terms])
