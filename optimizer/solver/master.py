"""The bound: Dantzig-Wolfe over deployments on top of the coarse view.

Rows of the coarse formulation that speak of one deployment alone move into its pricing problem
(an exact covering knapsack); the rest couple deployments and are priced by a linear program. The
relaxation is far tighter than the formulation's own, because a mix is integer. Where shared GPUs
can be filled in too many ways, fillings are generated too (an exact knapsack in three dimensions).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isinf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from optimizer.domain.problem import capacity_mrps, missing_ppm
from optimizer.domain.units import PPM, ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver import ear, scip
from optimizer.solver.columns import domain_of
from optimizer.solver.formulation import Expr, Formulation, domains_apart, total
from optimizer.solver.outlive import Domains, domains_needed, spares
from optimizer.solver.packing import Counts, Packed, Packer
from optimizer.solver.pricing import Asked, Item, Mix, cheapest_mix
from optimizer.solver.quick import QuickPricing

MOST_ROUNDS = 200
MOST_TREE_NODES = 2_000
BIG = 1e4  # price of leaving a deployment out, in units of the dearest objective coefficient
TOLERANCE = 1e-5  # relative distance of program and bound at which generating ends
NEAR = 1e-4  # the same where it begins at good duals: the rest would take most of the time
MOST_STALLS = 5  # then bounds in a row that are no better end it
MOST_STARTERS = 6  # places of a deployment that the program starts with, of many
SLOW = 1e-4  # relative progress of a round that calls for exact pricing
SMOOTHING = 0.5  # how far the prices asked at lean to those of the best bound
NEIGHBOURS = 4  # larger sizes whose slots a replica may take
MOST_IN_GPU = 64
MANY = 200  # deployments from which on exact pricing waits until quick pricing finds little
MANY_PLACES = 15_000  # or so many places where their replicas may run

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
    """A coupling row: ``low <= sum(coefficients * variables) <= high``."""

    coefficients: tuple[tuple[int, int], ...]
    low: float
    high: float


@dataclass(slots=True)
class Bound:
    """A proved bound, and what found it: duals by row, mixes by deployment, fillings by pool."""

    value: float
    duals: Floats = field(default_factory=lambda: np.zeros(0))
    mixes: dict[str, list[Mix]] = field(default_factory=dict)
    cheapest: dict[str, float] = field(default_factory=dict)  # what its best mix costs
    least: dict[str, float] = field(default_factory=dict)  # no mix costs less
    fillings: list[list[Counts]] = field(default_factory=list)
    used: dict[str, set[Mix]] = field(default_factory=dict)  # in the program's solution
    serves: bool = True  # the program needs no deployment left out
    program: float = inf  # the linear program's value: what the bound converges to


@dataclass(frozen=True, slots=True)
class OpenPool:
    """A pool in the program: its rows by size (supply less demand), its row of GPUs in use."""

    packer: Packer
    size_rows: tuple[int, ...]
    gpu_row: int
    gpus: int


class Master:
    """The linear program over mixes and fillings for one objective of one formulation."""

    def __init__(self, f: Formulation, objective: Expr, complete: frozenset[int]) -> None:
        """``complete``: priorities whose deployments must be served in full."""
        self.f = f
        self.names = {d.name: d for d in f.problem.deployments}
        self.objective, self.complete = objective, complete
        flat = cp_model.FlatIntExpr(objective)
        self.unit = float(max([1, *(abs(int(c)) for c in flat.coeffs)]))
        self.offset = flat.offset / self.unit
        domains = [_ends(v.domain) for v in f.model.proto.variables]
        self.ranges = domains
        self.lows: Floats = np.array([low for low, _ in domains], dtype=float)
        self.highs: Floats = np.array([high for _, high in domains], dtype=float)
        self.costs: Floats = np.zeros(len(domains))
        for v, c in zip(flat.vars, flat.coeffs, strict=True):
            self.costs[v.index] += c / self.unit
        self.owner = self._owners()
        self.rate_of = self._rates()
        self.own_rows: dict[str, list[Row]] = defaultdict(list)
        self.paid_rows: dict[str, list[Row]] = defaultdict(list)  # own ones that pricing leaves
        self.rows = list(self._coupling_rows())
        self.pools = self._opened()
        self.count_rows, self.counted, self.counted_prices = self._count_gpus()
        self._index_rows()
        self.items = self._items()
        self.domains = {d.name: self._domains(d) for d in f.problem.deployments if d.survive}
        self.listed = self._listed()
        self.missing = {name: v.index for name, v in f.missing.items()}
        self.missing_indices = frozenset(self.missing.values())
        self.filling = np.array([i not in self.owner for i in range(len(domains))], dtype=bool)
        self.placed = ~self.filling
        self.placed[list(self.missing_indices)] = False
        deployments = list(self.names.values())
        places = [[(v, c, self._most(d, v, c)) for v, c in self.items[d.name]] for d in deployments]
        self.quick = QuickPricing(deployments, places)

    def _owners(self) -> dict[int, str]:
        owner = {c.count.index: c.deployment for c in self.f.copies}
        owner.update({v.index: name for name, v in self.f.missing.items()})
        return owner

    def _rates(self) -> dict[int, int]:
        """What one replica in a place serves, by the place's variable."""
        return {
            c.count.index: capacity_mrps(self.names[c.deployment], c.candidate)
            for c in self.f.copies
        }

    def _coupling_rows(self) -> Iterator[Row]:
        for constraint in self.f.model.proto.constraints:
            if not constraint.has_linear() or len(constraint.enforcement_literal):
                continue  # leaving a row out only weakens the bound
            linear = constraint.linear
            owners = {self.owner.get(v) for v in linear.vars}
            low, high = _ends(linear.domain)
            row = Row(
                tuple(zip(linear.vars, linear.coeffs, strict=True)),
                -inf if low < -(1 << 60) else float(low),
                inf if high > (1 << 60) else float(high),
            )
            if len(owners) == 1 and None not in owners:
                name = next(iter(owners)) or ""
                if not self._limits_places(self.names[name], row):
                    self.own_rows[name].append(row)
                    continue
                self.paid_rows[name].append(row)
            yield row

    def _limits_places(self, d: Deployment, row: Row) -> bool:
        """Whether a deployment's own row limits several places together, as ``spread`` does.

        Pricing does not know such a row, so the program pays for it. The limit of all replicas
        and what no sensible mix exceeds need no row.
        """
        several = len(row.coefficients) > 1 and isinf(row.low)
        if not several or any(c != 1 for _, c in row.coefficients):
            return False
        asked = d.asked_mrps or 0
        most = d.min_replicas
        for variable, _ in row.coefficients:
            rate = self.rate_of.get(variable, 0)
            most = max(most, ceil_div(asked, rate) if rate else 0)
        return most > row.high and row.high != d.replica_limit

    def _count_gpus(self) -> tuple[list[int], list[int], list[int]]:
        """Rows that count the GPUs in use, how many there are, and the price of each in micros.

        One for each product and price. They limit nothing until somebody branches on them.
        """
        kinds: dict[tuple[str, int], list[Expr]] = defaultdict(list)
        gpus: Counter[tuple[str, int]] = Counter()
        uses = self.f._uses
        for at, site, _, cell in self.f.cells():
            kind = (site.gpu.name, site.price_micros)
            gpus[kind] += len(cell.gpus)
            kinds[kind] += uses[at]
        rows = []
        for kind in sorted(kinds):
            flat = cp_model.FlatIntExpr(total(kinds[kind]))
            times = sorted((v.index, int(c)) for v, c in zip(flat.vars, flat.coeffs, strict=True))
            rows.append(len(self.rows))
            self.rows.append(Row(tuple(times), -inf, inf))
        ordered = sorted(kinds)
        return rows, [gpus[kind] for kind in ordered], [price for _, price in ordered]

    def _opened(self) -> list[OpenPool]:
        return [self._open(pool) for pool in self.f.pools]

    def _open(self, pool: Any) -> OpenPool:
        """Rows that generated fillings of a pool supply: its sizes, and its GPUs in use."""
        site = self.f.sites[pool.site]
        rows = []
        for _, counts in pool.wanted:
            rows.append(len(self.rows))
            self.rows.append(Row(tuple((c.index, -1) for c in counts), 0.0, inf))
        gpu_row = len(self.rows)
        self.rows.append(Row(tuple((g.index, 1) for g in pool.gpus), 0.0, inf))
        packer = Packer.of_shares(site.gpu.room, [size for size, _ in pool.wanted])
        gpus = int(sum(self.highs[g.index] for g in pool.gpus))
        return OpenPool(packer, tuple(rows), gpu_row, gpus)

    def _index_rows(self) -> None:
        terms = [(r, v, c) for r, row in enumerate(self.rows) for v, c in row.coefficients]
        columns = np.array(terms, dtype=np.int64).reshape(-1, 3)
        self._row, self._variable = columns[:, 0], columns[:, 1]
        self._coefficient: Floats = columns[:, 2].astype(float)
        self.by_variable: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for r, v, c in terms:
            self.by_variable[v].append((r, c))
        self.row_lows: Floats = np.array([row.low for row in self.rows])
        self.row_highs: Floats = np.array([row.high for row in self.rows])

    def _items(self) -> dict[str, list[tuple[int, int]]]:
        items: dict[str, list[tuple[int, int]]] = {name: [] for name in self.names}
        for c in self.f.copies:
            capacity = capacity_mrps(self.names[c.deployment], c.candidate)
            asked = self.names[c.deployment].asked_mrps or 0
            items[c.deployment].append((c.count.index, min(capacity, asked)))
        return items

    def _domains(self, d: Deployment) -> Domains:
        """How many domains that may be lost there are for which places; none for pipelines."""
        mine = self.f.of(d.name)
        if d.survive is None or any(c.parts for c in mine):
            return ()
        found = []
        for among, _ in domains_apart(self.f.sites, d.survive):
            here = [c for c in mine if c.site in among]
            nodes = (node for s in {c.site for c in here} for node in self.f.sites[s].nodes)
            number = len({domain_of(node, d.survive) for node in nodes})
            found.append((number, frozenset(c.count.index for c in here)))
        return tuple(one for one in found if one[1])

    def _listed(self) -> dict[int, float]:
        """What a place would cost if each took its part of a GPU's price."""
        found = {}
        for c in self.f.copies:
            site, shape = self.f.sites[c.site], c.candidate.shape
            part: float = shape.gpus
            if shape.share is not None:
                part = max(shape.share.parts_of(site.gpu.room))
            elif shape.profile is not None and site.gpu.mig is not None:
                profile = site.gpu.mig.profile(shape.profile)
                part = profile.memory_slices / site.gpu.mig.memory_slices if profile else 1.0
            found[c.count.index] = part * site.price_micros
        return found

    def _most(self, d: Deployment, variable: int, capacity: int) -> int:
        """How many replicas the deployment may have in that place, by its own rows."""
        most = self.highs[variable]
        for row in (*self.own_rows[d.name], *self.paid_rows[d.name]):
            if isinf(row.low) and all(c > 0 for _, c in row.coefficients):
                for v, c in row.coefficients:
                    if v == variable:
                        most = min(most, row.high // c)
        return int(max(0, most))

    def prices(self, duals: Floats) -> Floats:
        """Reduced cost of one unit of each variable."""
        paid = np.bincount(
            self._variable,
            weights=self._coefficient * duals[self._row],
            minlength=len(self.costs),
        )
        return self.costs - paid

    def in_full(self, d: Deployment) -> bool:
        """Whether nothing of it may be missing: all of its priority is served, or it is a rule."""
        return d.reserve or d.priority in self.complete

    def asked(self, d: Deployment, prices: Floats) -> Asked:
        """What a mix of that deployment must do at these prices."""
        missing = max(0.0, float(prices[self.missing[d.name]]))
        skip = None if self.in_full(d) else missing
        return Asked(d.asked_mrps or 0, d.min_replicas, d.replica_limit, skip)

    def priced_items(self, d: Deployment, prices: Floats) -> list[Item]:
        """The deployment's places at these prices; a price below zero counts as zero."""
        row = self.quick.rows[d.name]
        found = []
        for column, (variable, capacity) in enumerate(self.items[d.name]):
            most = int(self.quick.most[row, column])
            enough = max(d.min_replicas, -(-(d.asked_mrps or 0) // capacity) if capacity else 0)
            binds = most if most < enough else None
            found.append(Item(max(0.0, float(prices[variable])), capacity, variable, binds))
        return found

    def quick_mixes(self, prices: Floats) -> list[Mix]:
        """Good mixes, in the order of the deployments."""
        missing = np.array(
            [
                inf if self.in_full(d) else max(0.0, prices[self.missing[name]])
                for name, d in self.names.items()
            ]
        )
        return self.quick.mixes(np.maximum(0.0, prices), missing)

    def exact_mixes(self, prices: Floats, quick: list[Mix]) -> dict[str, Mix]:
        """The cheapest mix of each deployment, with a bound on all."""
        return {
            name: self._surviving(d, prices)
            if d.survive and d.asked_mrps
            else cheapest_mix(self.priced_items(d, prices), self.asked(d, prices), known=known)
            for (name, d), known in zip(self.names.items(), quick, strict=True)
        }

    def _surviving(self, d: Deployment, prices: Floats) -> Mix:
        """A cheap mix of a deployment that outlives a loss, and a bound on all of them.

        Some loss takes at least the largest replica. So for each size m that it may have: mixes of
        replicas of at most m that serve m more than is asked, or more where domains are few.
        """
        asked = self.asked(d, prices)
        least = asked.min_replicas if asked.missing_price is None else 0
        items = [
            replace(item, most=int(self.highs[item.variable]))
            for item in self.priced_items(d, prices)
            if item.capacity and self.highs[item.variable] >= 1
        ]
        best = Mix(inf, inf, ())
        for largest in sorted({item.capacity for item in items}):
            some = [item for item in items if item.capacity <= largest]
            for rate, few in spares(self.domains[d.name], asked.rate, some, largest):
                found = cheapest_mix(few, Asked(rate, least, asked.limit))
                best = replace(best, bound=min(best.bound, found.bound))
                whole = self.spread_out(d, dict(found.counts), some)
                if isinf(found.cost) or whole is None:
                    continue
                cost = sum(count * max(0.0, float(prices[v])) for v, count in whole.items())
                replicas = sum(whole.values())
                missing = asked.missing_ppm(asked.rate, replicas)
                cost += missing * (asked.missing_price or 0.0)
                if cost < best.cost:
                    best = Mix(cost, best.bound, tuple(sorted(whole.items())), missing)
        return best

    def spread_out(
        self, d: Deployment, counts: dict[int, int], items: list[Item]
    ) -> dict[int, int] | None:
        """The mix with as many more replicas, cheapest for what they serve first, as it takes."""
        for item in sorted(items, key=lambda i: (i.price / i.capacity, i.variable)):
            while not self.survives(d, counts):
                if counts.get(item.variable, 0) >= (item.most or 0):
                    break
                counts[item.variable] = counts.get(item.variable, 0) + 1
        within = d.replica_limit is None or sum(counts.values()) <= d.replica_limit
        return counts if within and self.survives(d, counts) else None

    def keeps_own(self, name: str, mix: Mix) -> bool:
        """Whether the mix keeps all that limits its deployment alone."""
        counts = dict(mix.counts)
        return all(
            sum(c * counts.get(v, 0) for v, c in row.coefficients) <= row.high
            for row in (*self.own_rows[name], *self.paid_rows[name])
            if not isinf(row.high)
        )

    def survives(self, d: Deployment, counts: Mapping[int, int]) -> bool:
        """Whether these replicas may outlive a loss, as far as this view can tell."""
        rates = dict(self.items[d.name])
        served = sum(rates[v] * count for v, count in counts.items())
        largest = max((rates[v] for v, count in counts.items() if count), default=0)
        spare = served - (d.asked_mrps or 0)
        if spare < largest:
            return False
        for number, places in self.domains.get(d.name, ()):
            held = [(rates[v], count) for v, count in counts.items() if count and v in places]
            if domains_needed(spare, held) > number:
                return False
        missing = self.missing[d.name]
        return all(
            isinf(row.low)
            or any(v == missing for v, _ in row.coefficients)
            or sum(c * counts.get(v, 0) for v, c in row.coefficients) >= row.low
            for row in self.own_rows[d.name]
        )

    def packed(self, duals: Floats, *, exact: bool) -> list[Packed]:
        """The best filling of each pool's GPUs, where it is worth more than one costs."""
        return [
            pool.packer.best(
                np.maximum(0.0, duals[list(pool.size_rows)]),
                max(0.0, float(duals[pool.gpu_row])),
                exact=exact,
            )
            for pool in self.pools
        ]

    def lagrangian(
        self, duals: Floats, prices: Floats, mixes: Mapping[str, Mix], packed: list[Packed]
    ) -> float:
        """A bound at any duals: what mixes, fillings and right-hand sides cost at least."""
        sides = np.where(duals > 0, self.row_lows, self.row_highs)
        used = duals != 0
        if np.isinf(sides[used]).any():
            return -inf
        value = self.offset + sum(mix.bound for mix in mixes.values())
        value += float((duals[used] * sides[used]).sum())
        ends = np.where(prices > 0, self.lows, self.highs)
        value += float((prices * ends)[self.filling].sum())
        # The item of a place with a price below zero was priced at zero.
        value += float((np.minimum(prices, 0.0) * self.highs)[self.placed].sum())
        for pool, best in zip(self.pools, packed, strict=True):
            gain = best.bound - max(0.0, float(duals[pool.gpu_row]))
            value -= pool.gpus * max(0.0, gain)
        return value

    def solve(
        self,
        on_round: Callable[[Bound], bool] = lambda _: True,
        seeds: Sequence[tuple[str, Mix]] = (),
        fillings: Iterable[tuple[int, Counts]] = (),
        at: Floats | None = None,
    ) -> Bound:
        """Column generation to the relaxation's optimum; the best bound met on the way.

        ``on_round`` hears of each round and says whether to go on; ``seeds`` are mixes to begin
        with, ``fillings`` of pools too; ``at`` are duals whose bound is known to be good.
        """
        program = Program(self)
        program.start(frozenset(name for name, _ in seeds))
        for name, mix in seeds:
            program.add(name, mix)
        for number, counts in fillings:
            program.fill(number, counts, None)
        best = Bound(-inf)
        many = len(self.names) >= MANY or len(self.owner) >= MANY_PLACES
        before, duals, stalls = inf, None, 0
        for _ in range(MOST_ROUNDS):
            duals = program.solve()
            if duals is None:
                break
            if at is not None and isinf(best.value):
                self.generate(program, duals, at, best, exact=True)
            asked_at = duals
            if many and not isinf(best.value):
                asked_at = SMOOTHING * best.duals + (1 - SMOOTHING) * duals
            added = self.generate(program, duals, asked_at, best, exact=not many)
            if not added and asked_at is not duals:
                added = self.generate(program, duals, duals, best, exact=False)
            slow = before - program.value < SLOW * max(1.0, abs(program.value))
            before = program.value
            best.program = program.value
            if at is not None and _close(program, best, NEAR):
                break
            if many and (slow or added <= len(self.names) // 20):
                known = best.value
                added += self.generate(program, duals, asked_at, best, exact=True)
                stalls = 0 if best.value > known else stalls + 1
                if not added and asked_at is not duals:
                    added += self.generate(program, duals, duals, best, exact=True)
            if ear.heard():
                break
            if not added and program.guessing and self.pools and not _close(program, best, 0.0):
                program.guessing = False
                continue
            stalled = at is not None and stalls >= MOST_STALLS
            close = many and _close(program, best, TOLERANCE)
            if not added or close or stalled or not on_round(best):
                break
        if isinf(best.value) and duals is not None:
            self.generate(program, duals, duals, best, exact=True)
        best.mixes = program.mixes
        best.used = program.used
        best.serves = program.serves
        best.fillings = program.pool_fillings
        return best

    def generate(
        self, program: "Program", duals: Floats, at: Floats, best: Bound, *, exact: bool
    ) -> int:
        """Add what is cheaper than the program's; with ``exact`` take the bound at ``at`` too."""
        added, apart = 0, at is not duals
        if exact and self.pools:
            at, added = self._repair(program, at, duals)
        prices = self.prices(at)
        quick = self.quick_mixes(prices)
        packed = self.packed(at, exact=exact)
        found: Iterable[tuple[str, Mix]] = zip(self.names, quick, strict=True)
        if exact:
            mixes = self.exact_mixes(prices, quick)
            value = self.lagrangian(at, prices, mixes, packed)
            if value > best.value:
                best.value, best.duals = value, at
                best.cheapest = {n: m.cost for n, m in mixes.items()}
                best.least = {n: m.bound for n, m in mixes.items()}
            found = mixes.items()
        own = self.prices(duals) if apart else prices
        for name, mix in found:
            if program.improves(name, mix, own):
                added += program.add(name, mix)
        for number, filling in enumerate(packed):
            for counts in (filling.counts, *filling.others):
                added += program.fill(number, counts, duals)
        return added

    def _repair(self, program: "Program", at: Floats, duals: Floats) -> tuple[Floats, int]:
        """Prices of shares that no filling exceeds, and how many fillings that adds."""
        at, added = at.copy(), 0
        wanted = program.wanted()
        for number, pool in enumerate(self.pools):
            rows = list(pool.size_rows)
            target = max(0.0, float(at[pool.gpu_row]))
            values = np.maximum(0.0, at[rows])
            at[rows], broken = pool.packer.repaired(values, target, wanted[number])
            added += sum(program.fill(number, counts, duals) for counts in broken)
        return at, added

    def integer(
        self,
        bound: Bound,
        seconds: float,
        *,
        nodes: int = MOST_TREE_NODES,
        enough: float | None = None,
        kept: Sequence[int] = (),
    ) -> list[int]:
        """Values of all variables in the best integer choice among known mixes; empty if none.

        The mixes of ``kept`` values are known too. Ends by nodes, so that it repeats, or by a
        choice of at most ``enough`` (in the objective's units); ``seconds`` is the safety stop.
        """
        program = Program(self, "SCIP")
        for name, mixes in bound.mixes.items():
            for mix in dict.fromkeys(mixes):
                program.add(name, mix)
        for name, mix in self.mixes_of(kept):
            program.add(name, mix)
        for number, fillings in enumerate(bound.fillings):
            program.exchange(number)
            for counts in fillings:
                program.fill(number, counts, None)
        stop = None if enough is None else enough / self.unit - self.offset
        if not scip.solve(program.lp, nodes=nodes, seconds=seconds, enough=stop):
            return []
        return self.values_in(program)

    def values_in(self, program: "Program") -> list[int]:
        """Values of all variables in a program solved in integers."""
        values = [0] * len(self.ranges)
        for index, x in program.fillings.items():
            values[index] = round(x.solution_value())
        for _, mix, x in program.chosen:
            if round(x.solution_value()):
                for variable, count in mix.counts:
                    values[variable] += count
        return self.with_missing(values)

    def with_missing(self, values: list[int]) -> list[int]:
        """The values, with what is missing of each deployment as its replicas leave it."""
        for name, d in self.names.items():
            served = sum(values[v] * capacity for v, capacity in self.items[name])
            replicas = sum(values[v] for v, _ in self.items[name])
            values[self.missing[name]] = missing_ppm(d, served, replicas)
        return values

    def mixes_of(self, values: Sequence[int]) -> Iterator[tuple[str, Mix]]:
        """How each deployment runs under these values of all variables, if there are any."""
        for name in self.names if values else ():
            counts = tuple(sorted((v, values[v]) for v, _ in self.items[name] if values[v]))
            yield name, Mix(0.0, 0.0, counts, float(values[self.missing[name]]))


def _close(program: "Program", best: Bound, tolerance: float) -> bool:
    return program.value - best.value <= tolerance * max(1.0, abs(program.value))


def _ends(domain: Iterable[int]) -> tuple[int, int]:
    """Least and greatest value of a domain (negative indices into one do not work)."""
    values = list(domain)
    return values[0], values[-1]


class Program:
    """The restricted master: relaxed (GLOP) or in integers (SCIP)."""

    def __init__(self, master: Master, backend: str = "GLOP") -> None:
        self.m = master
        self.lp = pywraplp.Solver.CreateSolver(backend)
        self.integer = backend != "GLOP"
        self.value = inf
        self.rows = [
            self.lp.Constraint(
                -self.lp.infinity() if isinf(r.low) else r.low,
                self.lp.infinity() if isinf(r.high) else r.high,
            )
            for r in master.rows
        ]
        self.choose = {name: self.lp.Constraint(1.0, 1.0) for name in master.names}
        self.mixes: dict[str, list[Mix]] = {name: [] for name in master.names}
        self.chosen: list[tuple[str, Mix, pywraplp.Variable]] = []
        self.fillings: dict[int, pywraplp.Variable] = {}
        self.pool_fillings: list[list[Counts]] = [[] for _ in master.pools]
        self.filled: list[tuple[int, Counts, pywraplp.Variable]] = []
        self.exchanged: list[tuple[int, int, int, pywraplp.Variable]] = []
        self._known: set[object] = set()
        self._last: dict[str, float] = {}
        self.used: dict[str, set[Mix]] = {}
        self.outs: list[pywraplp.Variable] = []
        self.serves = True
        self.guessing = True  # a price for sizes that no mix asks for; it hides the last few mixes
        objective = self.lp.Objective()
        objective.SetMinimization()
        for index, (low, high) in enumerate(master.ranges):
            if index in master.owner:
                continue
            x = self.fillings[index] = self.lp.Var(low, high, self.integer, "")
            objective.SetCoefficient(x, float(master.costs[index]))
            for r, coefficient in master.by_variable[index]:
                self.rows[r].SetCoefficient(x, coefficient)

    def start(self, seeded: frozenset[str] = frozenset()) -> None:
        """Make it feasible: leaving out at a high price, mixes of one kind, one size a GPU.

        Deployments that are ``seeded`` have mixes to begin with.
        """
        for name, d in self.m.names.items():
            out = self.lp.NumVar(0, self.lp.infinity(), "")
            self.outs.append(out)
            self.lp.Objective().SetCoefficient(out, self._price_of_out())
            self.choose[name].SetCoefficient(out, 1.0)
            if not self.m.in_full(d):
                self.add(name, Mix(0.0, 0.0, (), float(PPM)))
            for variable, capacity in () if name in seeded else self._starters(name):
                self._plain(name, d, variable, capacity)
        for number, pool in enumerate(self.m.pools):
            self.exchange(number)
            for size, need in enumerate(pool.packer.needs):
                times = int((pool.packer.room // np.maximum(1, need)).min())
                if times and need.any():
                    self.fill(number, ((size, times),), None)

    def _price_of_out(self) -> float:
        """More than leaving a deployment out can save: all that others would then serve more."""
        dearest = max((float(self.m.costs[v]) for v in self.m.missing.values()), default=0.0)
        return BIG + PPM * dearest * (len(self.m.names) + 1)

    def _starters(self, name: str) -> list[tuple[int, int]]:
        """The places to start with: all, or of many the cheapest for what they serve."""
        items = self.m.items[name]
        if len(self.m.names) < MANY:
            return items
        listed = self.m.listed
        return sorted(items, key=lambda item: (listed[item[0]] / max(1, item[1]), item[0]))[
            :MOST_STARTERS
        ]

    def _plain(self, name: str, d: Deployment, variable: int, capacity: int) -> None:
        """Start with the mixes of one kind."""
        if d.asked_mrps and not capacity:
            return
        count = -(-(d.asked_mrps or 0) // capacity) if capacity else 0
        count = max(count, d.min_replicas)
        if d.survive and capacity:
            count = max(d.min_replicas, -(-(d.asked_mrps or 0) // capacity) + 1)
            most = 2 * count
            while count < most and not self.m.survives(d, {variable: count}):
                count += 1
        if d.replica_limit is None or count <= d.replica_limit:
            self.add(name, Mix(0.0, 0.0, ((variable, count),) if count else ()))

    def add(self, name: str, mix: Mix) -> bool:
        """A new column; False where there is one like it or its deployment's own rules bar it."""
        if (name, mix.counts, mix.missing_ppm) in self._known or not self._keeps_own(name, mix):
            return False
        self._known.add((name, mix.counts, mix.missing_ppm))
        x = self.lp.Var(0, 1 if self.integer else self.lp.infinity(), self.integer, "")
        self.chosen.append((name, mix, x))
        self.choose[name].SetCoefficient(x, 1.0)
        missing = self.m.missing[name]
        cost = 0.0
        coefficients: dict[int, float] = defaultdict(float)
        for variable, count in (*mix.counts, (missing, mix.missing_ppm)):
            if count:
                cost += count * float(self.m.costs[variable])
                for r, coefficient in self.m.by_variable[variable]:
                    coefficients[r] += coefficient * count
        self.lp.Objective().SetCoefficient(x, cost)
        for r, summed in coefficients.items():
            self.rows[r].SetCoefficient(x, summed)
        self.mixes[name].append(mix)
        return True

    def _keeps_own(self, name: str, mix: Mix) -> bool:
        """Whether the mix keeps the rows that speak of its deployment alone.

        In the relaxation, those that pricing knows: what it finds must not be turned away.
        """
        counts, d = dict(mix.counts), self.m.names[name]
        if d.survive and d.asked_mrps and not self.m.survives(d, counts):
            return False
        paid = self.m.paid_rows[name] if self.integer else []
        for row in (*self.m.own_rows[name], *paid):
            if isinf(row.low) and sum(c * counts.get(v, 0) for v, c in row.coefficients) > row.high:
                return False
        return True

    def fill(self, number: int, counts: Counts, duals: Floats | None) -> int:
        """A new way to fill a GPU of a pool, if it pays at these duals; 1 if it was added."""
        pool = self.m.pools[number]
        if not counts or (number, counts) in self._known:
            return 0
        if duals is not None:
            worth = sum(duals[pool.size_rows[size]] * count for size, count in counts)
            if worth <= duals[pool.gpu_row] + 1e-9 * max(1.0, abs(worth)):
                return 0
        self._known.add((number, counts))
        x = self.lp.Var(0, pool.gpus, self.integer, "")
        self.filled.append((number, counts, x))
        self.pool_fillings[number].append(counts)
        self.rows[pool.gpu_row].SetCoefficient(x, -1.0)
        for size, count in counts:
            self.rows[pool.size_rows[size]].SetCoefficient(x, count)
        return 1

    def wanted(self) -> list[NDArray[np.int64]]:
        """By pool and size: whether the program's mixes use it."""
        used = {v for mixes in self.used.values() for mix in mixes for v, _ in mix.counts}
        return [
            np.array(
                [
                    any(v in used for v, _ in self.m.rows[row].coefficients)
                    for row in pool.size_rows
                ],
                dtype=np.int64,
            )
            for pool in self.m.pools
        ]

    def exchange(self, number: int) -> None:
        """The slot of a size may hold a replica of any smaller one: few such pairs speed it up."""
        pool = self.m.pools[number]
        most = pool.gpus * MOST_IN_GPU
        for small, large in pool.packer.neighbours(NEIGHBOURS):
            x = self.lp.Var(0, most, self.integer, "")
            self.exchanged.append((number, small, large, x))
            self.rows[pool.size_rows[small]].SetCoefficient(x, 1.0)
            self.rows[pool.size_rows[large]].SetCoefficient(x, -1.0)

    def solve(self) -> Floats | None:
        """Duals by row, each on the side of its sense; None when GLOP gives up."""
        if self.lp.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        self.value = self.lp.Objective().Value() + self.m.offset
        self._last = {name: row.dual_value() for name, row in self.choose.items()}
        self.serves = sum(x.solution_value() for x in self.outs) < 1e-6
        self.used = defaultdict(set)
        for name, mix, x in self.chosen:
            if x.solution_value() > 1e-9:
                self.used[name].add(mix)
        duals = np.array([c.dual_value() for c in self.rows])
        duals = np.where(np.isinf(self.m.row_lows), np.minimum(0.0, duals), duals)
        duals = np.where(np.isinf(self.m.row_highs), np.maximum(0.0, duals), duals)
        pools = zip(self.m.pools, self.wanted(), strict=True) if self.guessing else ()
        for pool, wanted in pools:
            # A size that no mix asks for has no price of its own; the part of a GPU that it takes
            # keeps mixes from being made of it as if it were free.
            rows = np.array(pool.size_rows)
            part = pool.packer.parts.max(axis=1) * max(0.0, duals[pool.gpu_row])
            duals[rows] = np.where(wanted > 0, duals[rows], np.maximum(duals[rows], part))
        return duals

    def improves(self, name: str, mix: Mix, prices: Floats) -> bool:
        """Whether the mix is cheaper at the program's prices than what it pays."""
        if isinf(mix.cost):
            return False
        paid = self._last[name]
        cost = sum(count * max(0.0, prices[v]) for v, count in mix.counts)
        if mix.missing_ppm:
            cost += mix.missing_ppm * prices[self.m.missing[name]]
        return bool(cost < paid - 1e-7 * max(1.0, abs(paid)))
