"""Where CPU and memory of the hosts bind: what one whole node holds, by generated patterns.

The coarse view adds the hosts of a class up, and counts chosen there may fit no single node. Here a
column says what one node of a class holds: groups of whole GPUs, and GPUs of shares. Both levels
are generated: fillings of a GPU at prices less what their hosts' room is worth, then loads of a
node (an exact knapsack in GPUs, CPU and memory). Dives into the program give whole nodes.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver import ear
from optimizer.solver.columns import Site, coarse_sites
from optimizer.solver.packing import Counts, Packer, surrogate
from optimizer.solver.where import Seat

ROOT_ROUNDS = 60
DIVE_ROUNDS = 30
NEW_FILLINGS = 40  # of GPUs, in one round for one kind of node
PART = 0.04  # of the nodes still to fill that one step of a dive fixes
MUCH = 250_000  # effort after which the search makes haste
MOST = 1_200_000  # after which it dives no more
HASTY_ROUNDS = 8  # of a step, in haste
HASTY_PART = 0.1
FEW_COLUMNS = 3_000  # kept from step to step in haste: those of least reduced cost
NEAR = 0.8  # a pattern used so often, or so often more, is as good as used once more
WORTH = 1e-4  # by which a new pattern must gain, in parts of the dearest GPU's price
SWEEPS = 4  # over all nodes, of exchanges in one
TURNS = 16  # dives again, of a part of the nodes
VAIN = 4  # of them without a gain, after which they end
LOOSE = 0.15  # the part of the nodes of each kind
TINY = 1e-6
LEFT_OUT = 1e3  # price of leaving a deployment out, in GPUs and times the most replicas of one

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def apply(problem: PlacementProblem) -> bool:
    """Whether hosts may bind and nothing matters but what each node holds."""
    limits, fleet = problem.fleet.limits, problem.fleet
    running = problem.current is not None and problem.current.replicas
    if running or fleet.reserve or limits.price_micros_per_hour or limits.rack_power_w:
        return False
    asks = any(d.host_cpu_millicores or d.host_memory_mib for d in problem.deployments)
    has = any(n.cpu_millicores or n.host_memory_mib for n in fleet.nodes)
    ways = [way for offered in problem.candidates.values() for way in offered]
    return (
        asks
        and has
        and all(map(_plain, problem.deployments))
        and all(w.shape.sharing is not Sharing.MIG and w.shape.stages == 1 for w in ways)
        and not any(n.layouts_fixed or n.nvlink_domain == "pair" for n in fleet.nodes)
    )


def _plain(d: Deployment) -> bool:
    """Whether it asks for replicas, without a rule about where they lie."""
    rules = (d.spread_node, d.spread_rack, d.survive, d.avoid, d.near, d.pin, d.reserve)
    return d.demand is None and d.isolate == "none" and not any(rules)


def by_node(problem: PlacementProblem) -> list[Seat]:
    """Seats of as many replicas as were found a place, on few GPUs."""
    kinds = [_Kind(problem, site) for site in coarse_sites(problem)]
    program = _Program(problem, kinds)
    for _ in range(ROOT_ROUNDS):
        if not program.solve() or not program.generate() or program.hasty:
            break
    program.dive()
    program.improve()
    return program.seats()


@dataclass(frozen=True, slots=True)
class _Load:
    """What one or more GPUs of one node hold together: replicas by deployment."""

    gpus: int
    held: Counts
    cpu: int
    memory: int


class _Kind:
    """Alike nodes, the loads known for them, and what patterns of loads are worth."""

    def __init__(self, problem: PlacementProblem, site: Site) -> None:
        self.deployments = problem.deployments
        self.nodes = [n for n in site.nodes if n.open_gpus()]
        first = site.nodes[0]
        self.gpus = len(first.open_gpus())
        self.room = (self.gpus, first.cpu_millicores or 0, first.host_memory_mib or 0)
        self.bounded = (first.cpu_millicores is not None, first.host_memory_mib is not None)
        self.price = float(site.price_micros)
        self.loads: list[_Load] = []
        self._known: dict[Counts, int] = {}  # which load, -1: none
        self.ways: dict[int, Candidate] = {}
        self.sharers: list[int] = []  # deployments, in the order of the filler's sizes
        for number, d in enumerate(problem.deployments):
            ways = [w for w in problem.candidates.get(d.name, ()) if self._offers(w, site)]
            if not ways:
                continue
            self.ways[number] = way = min(ways, key=lambda w: w.key)
            if way.shape.share is None:
                self.add(((number, 1),), way.shape.gpus)
            else:
                self.sharers.append(number)
        shares = [self.ways[number].shape.share for number in self.sharers]
        self.filler = Packer.of_shares(site.gpu.room, [s for s in shares if s is not None])
        for size, number in enumerate(self.sharers):
            if self.filler.times[size]:
                self.add(((number, int(self.filler.times[size])),), 1)
                self.add(((number, 1),), 1)

    def _offers(self, way: Candidate, site: Site) -> bool:
        sharing = way.shape.sharing
        fits = way.gpu == site.gpu.name and sharing in site.nodes[0].sharing
        return fits and not way.running_only and way.shape.gpus <= self.gpus

    def add(self, held: Counts, gpus: int) -> None:
        """A load more, if the node's host bears it."""
        if held in self._known:
            return
        self._known[held] = -1
        asked = [(self.deployments[number], times) for number, times in held]
        cpu = sum(d.host_cpu_millicores * times for d, times in asked) * self.bounded[0]
        memory = sum(d.host_memory_mib * times for d, times in asked) * self.bounded[1]
        if cpu <= self.room[1] and memory <= self.room[2]:
            self._known[held] = len(self.loads)
            self.loads.append(_Load(gpus, held, cpu, memory))

    def patterns(self, values: Floats, target: float, wanted: Ints) -> list[Counts]:
        """Patterns worth more than ``target`` at these values of replicas, by load."""
        if not self.loads:
            return []
        self._fill(values, wanted)
        most = self._most(wanted)
        at = np.nonzero(most)[0].tolist()
        loads = [self.loads[load] for load in at]
        packer = Packer(self.room, [(x.gpus, x.cpu, x.memory) for x in loads])
        best = packer.best(self._worths(values, loads), target, exact=False, most=most[at])
        return [tuple((at[load], times) for load, times in counts) for counts in best.all]

    def trimmed(self, pattern: Counts, wanted: Ints) -> Counts:
        """The pattern without what several of its loads together hold too much."""
        left = wanted.tolist()
        kept: Counter[int] = Counter()
        for load in (load for load, times in pattern for _ in range(times)):
            held = tuple((n, min(left[n], copies)) for n, copies in self.loads[load].held)
            held = tuple((n, copies) for n, copies in held if copies)
            for n, copies in held:
                left[n] -= copies
            if held:
                self.add(held, self.loads[load].gpus)
                kept[self._known[held]] += 1
        return tuple(sorted(kept.items()))

    def _worths(self, values: Floats, loads: list[_Load]) -> Floats:
        """What each load is worth above the price of its GPUs."""
        listed = values.tolist()
        return np.array(
            [sum(listed[n] * times for n, times in x.held) - self.price * x.gpus for x in loads]
        )

    def _most(self, wanted: Ints) -> Ints:
        """How often each load is wanted in full."""
        listed = wanted.tolist()
        most = [min(listed[n] // times for n, times in x.held) for x in self.loads]
        return np.array(most, dtype=np.int64)

    def _fill(self, values: Floats, wanted: Ints) -> None:
        """Fillings of one GPU that are worth most after what they take of the host."""
        if not self.sharers:
            return
        worth = self._worths(values, self.loads)
        at = np.nonzero(worth > 0)[0]
        if not len(at):
            return
        parts = np.array([(x.gpus, x.cpu, x.memory) for x in self.loads], dtype=float) / np.maximum(
            1, self.room
        )
        weights = surrogate(worth[at], parts[at]) / np.maximum(1, self.room)
        hosts = np.array(
            [
                self.deployments[n].host_cpu_millicores * weights[1] * self.bounded[0]
                + self.deployments[n].host_memory_mib * weights[2] * self.bounded[1]
                for n in self.sharers
            ]
        )
        found = self.filler.best(
            values[self.sharers] - hosts, 0.0, exact=False, most=wanted[self.sharers]
        )
        for counts in found.all[:NEW_FILLINGS]:
            self.add(tuple((self.sharers[size], times) for size, times in counts), 1)

    def seats(self, nodes: Iterable[tuple[Counts, int]]) -> Iterator[Seat]:
        """Where the replicas of patterns lie, node after node."""
        free = iter(self.nodes)
        for pattern, times in nodes:
            for _ in range(times):
                node = next(free)
                gpus = [f"{node.name}/{index}" for index in node.open_gpus()]
                for load, number in pattern:
                    for _ in range(number):
                        on = tuple(gpus[: self.loads[load].gpus])
                        del gpus[: len(on)]
                        for deployment, copies in self.loads[load].held:
                            way = self.ways[deployment]
                            yield from [Seat(way.deployment, way, on)] * copies


@dataclass(frozen=True, slots=True)
class _Column:
    kind: int
    pattern: Counts
    held: Counts  # replicas by deployment


class _Program:
    """The linear program: nodes of each kind by pattern, replicas wanted and left out."""

    def __init__(self, problem: PlacementProblem, kinds: list[_Kind]) -> None:
        self.kinds = kinds
        self.asked: Ints = np.array([d.min_replicas for d in problem.deployments], dtype=np.int64)
        self.fixed: Counter[tuple[int, Counts]] = Counter()
        self.columns: dict[tuple[int, Counts], _Column] = {}
        self._count()
        self.unit = max([1.0, *(kind.price for kind in kinds)])
        self.root = 0.0  # the program's value before anything was fixed
        self.values, self.paid = np.zeros(len(self.asked)), [0.0] * len(kinds)
        self.work = 0  # simplex iterations times rows, in hundreds, and a quarter of loads weighed
        most = max([1, *self.wanted.tolist()])
        ranks = sorted({d.priority for d in problem.deployments})
        self.weights: Floats = np.array(
            [
                LEFT_OUT * most / max(1, d.min_replicas) * 100.0 ** ranks.index(d.priority)
                for d in problem.deployments
            ]
        )
        self._begin()

    def _begin(self) -> None:
        """A program without patterns for what is wanted now."""
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        self.rows = [self.lp.Constraint(float(n), self.lp.infinity()) for n in self.wanted]
        self.room = [self.lp.Constraint(-self.lp.infinity(), float(n)) for n in self.nodes]
        self.taken: dict[tuple[int, Counts], pywraplp.Variable] = {}
        objective = self.lp.Objective()
        objective.SetMinimization()
        for weight, row in zip(self.weights.tolist(), self.rows, strict=True):
            out = self.lp.NumVar(0, self.lp.infinity(), "")
            objective.SetCoefficient(out, weight)
            row.SetCoefficient(out, 1.0)

    @property
    def hasty(self) -> bool:
        """Whether few rounds and large steps must do."""
        return self.work > MUCH or ear.heard()

    def _count(self) -> None:
        """Replicas wanted and nodes free beside what is fixed."""
        self.wanted = self.asked.copy()
        self.nodes = [len(kind.nodes) for kind in self.kinds]
        for (kind, pattern), times in self.fixed.items():
            self.nodes[kind] -= times
            for n, copies in self.columns[kind, pattern].held:
                self.wanted[n] -= copies * times

    @property
    def cost(self) -> float:
        """What the fixed nodes and the replicas left out cost."""
        gpus = sum(self._price(key) * times for key, times in self.fixed.items())
        return gpus + float(self.weights @ self.wanted)

    def _price(self, key: tuple[int, Counts]) -> float:
        kind, pattern = self.kinds[key[0]], key[1]
        gpus = sum(kind.loads[load].gpus * times for load, times in pattern)
        return gpus * kind.price / self.unit

    def solve(self) -> bool:
        """Prices of replicas and of nodes; False where GLOP gives up, on a fresh program too."""
        solved = self.lp.Solve() == pywraplp.Solver.OPTIMAL
        if not solved:
            known = [self.columns[key] for key in self.taken]
            self._begin()
            for column in filter(self._fits, known):
                self._take(column)
            solved = self.lp.Solve() == pywraplp.Solver.OPTIMAL
        self.work += 1 + self.lp.iterations() * len(self.rows) // 100
        if solved:
            self.values = np.array([max(0.0, r.dual_value()) for r in self.rows])
            self.paid = [max(0.0, -r.dual_value()) for r in self.room]
        return solved

    def generate(self) -> int:
        """How many patterns were added that gain at the program's prices."""
        added = 0
        for number, kind in enumerate(self.kinds):
            if not self.nodes[number]:
                continue
            target = (self.paid[number] + WORTH) * self.unit
            self.work += len(kind.loads) // 4
            for pattern in kind.patterns(self.values * self.unit, target, self.wanted):
                added += self._add(number, pattern)
        return added

    def _add(self, number: int, pattern: Counts) -> bool:
        if (number, pattern) in self.taken:
            return False
        self._take(self._column(number, pattern))
        return True

    def _column(self, number: int, pattern: Counts) -> _Column:
        if (number, pattern) not in self.columns:
            kind = self.kinds[number]
            held: Counter[int] = Counter()
            for load, times in pattern:
                for deployment, copies in kind.loads[load].held:
                    held[deployment] += copies * times
            column = _Column(number, pattern, tuple(sorted(held.items())))
            self.columns[number, pattern] = column
        return self.columns[number, pattern]

    def _take(self, column: _Column) -> None:
        """Into the program."""
        key = column.kind, column.pattern
        x = self.taken[key] = self.lp.NumVar(0, self.lp.infinity(), "")
        self.lp.Objective().SetCoefficient(x, self._price(key))
        self.room[column.kind].SetCoefficient(x, 1.0)
        for deployment, copies in column.held:
            self.rows[deployment].SetCoefficient(x, copies)

    def dive(self) -> None:
        """Fix what the program uses most, ask for the rest anew, and so on."""
        while self.wanted.any() and any(self.nodes):
            if self.work > MOST or ear.heard():
                break
            if self.hasty:
                self._renew()
            elif self.fixed:
                self._ask()
            if not self._generated(HASTY_ROUNDS if self.hasty else DIVE_ROUNDS):
                break
            self.root = self.root or self.lp.Objective().Value()
            chosen = self._chosen()
            if not chosen:
                break
            for column, times in chosen:
                self.fixed[column.kind, column.pattern] += times
            self._count()
        self._fill_up()

    def _generated(self, rounds: int) -> bool:
        """Whether the program is solved, with new patterns of so many rounds at most."""
        for _ in range(rounds):
            if not self.solve():
                return False
            if ear.heard() or not self.generate():
                return True
        return self.solve()

    def _fill_up(self) -> None:
        """Nodes left hold what counts most of what is left, kind after kind."""
        for number, kind in enumerate(self.kinds):
            while self.nodes[number] and self.wanted.any():
                found = kind.patterns(self.weights * self.unit, 0.0, self.wanted)
                fitting = (kind.trimmed(pattern, self.wanted) for pattern in found[:1])
                columns = (self._column(number, pattern) for pattern in fitting)
                chosen = self._within((column, len(kind.nodes)) for column in columns)
                if not chosen:
                    break
                for column, times in chosen:
                    self.fixed[number, column.pattern] += times
                self._count()

    def improve(self) -> None:
        """Exchange what is left out, dive again with some nodes emptied, keep what is no worse."""
        vain = 0
        self._exchange()
        for turn in range(TURNS):
            if self._near or vain == VAIN or self.work > MOST or ear.heard():
                break
            kept, cost = self.fixed.copy(), self.cost
            self._loosen(random.Random(turn))
            self.dive()
            self._exchange()
            vain = 0 if self.cost < cost - TINY else vain + 1
            if self.cost > cost:
                self.fixed = kept
                self._count()

    @property
    def _near(self) -> bool:
        """Whether no replica more can be expected to find a place."""
        out = self.weights[self.wanted > 0]
        return not len(out) or bool(self.cost - self.root < out.min())

    def _exchange(self) -> None:
        """Nodes hold instead what counts more, out of what they hold and what is left out."""
        for _ in range(SWEEPS):
            before = self.cost
            for key in sorted(self.fixed):
                if self._near or ear.heard():
                    return
                self._exchange_in(self.columns[key])
            self.fixed = +self.fixed
            if self.cost > before - TINY:
                return

    def _exchange_in(self, column: _Column) -> None:
        """In one node that is so filled."""
        kind, key = self.kinds[column.kind], (column.kind, column.pattern)
        if not any(self.wanted[n] for n in kind.ways):
            return
        asked, worth = self.wanted.copy(), self._worth(column)
        for n, copies in column.held:
            asked[n] += copies
        self.work += len(kind.loads) // 4
        found = kind.patterns(self.weights * self.unit, (worth + WORTH) * self.unit, asked)
        for pattern in found[:1]:
            other = self._column(column.kind, kind.trimmed(pattern, asked))
            if self._worth(other) > worth + TINY:
                self.fixed[key] -= 1
                self.fixed[other.kind, other.pattern] += 1
                self._count()

    def _worth(self, column: _Column) -> float:
        """What leaving out all that a column holds would cost more."""
        held = sum(float(self.weights[n]) * copies for n, copies in column.held)
        return held - self._price((column.kind, column.pattern))

    def _loosen(self, dice: random.Random) -> None:
        """Empty some nodes of each kind."""
        for key in sorted(self.fixed):
            times = self.fixed[key]
            self.fixed[key] -= sum(dice.random() < LOOSE for _ in range(times))
        self.fixed = +self.fixed
        self._count()

    def seats(self) -> list[Seat]:
        """Where all replicas of the fixed nodes lie."""
        by_kind: dict[int, list[tuple[Counts, int]]] = defaultdict(list)
        for (kind, pattern), times in sorted(self.fixed.items()):
            by_kind[kind].append((pattern, times))
        return [seat for n, some in by_kind.items() for seat in self.kinds[n].seats(some)]

    def _ask(self) -> None:
        """State what is left, without the columns that hold more than is wanted."""
        for row, n in zip(self.rows, self.wanted.tolist(), strict=True):
            row.SetLb(float(n))
        for room, n in zip(self.room, self.nodes, strict=True):
            room.SetUb(float(n))
        for key, x in self.taken.items():
            x.SetUb(self.lp.infinity() if self._fits(self.columns[key]) else 0.0)

    def _fits(self, column: _Column) -> bool:
        return all(self.wanted[n] >= copies for n, copies in column.held)

    def _renew(self) -> None:
        """State what is left anew, with few of the columns, so that it is solved soon."""
        fitting = [c for c in self.columns.values() if self.nodes[c.kind] and self._fits(c)]
        self._begin()
        for column in sorted(fitting, key=self._reduced)[:FEW_COLUMNS]:
            self._take(column)

    def _reduced(self, column: _Column) -> float:
        """What a column costs more than the program pays for what it holds."""
        worth = sum(float(self.values[n]) * copies for n, copies in column.held)
        return self._price((column.kind, column.pattern)) + self.paid[column.kind] - worth

    def _chosen(self) -> list[tuple[_Column, int]]:
        """Columns used nearly whole, else those used most."""
        used = [(x.solution_value(), self.columns[key]) for key, x in self.taken.items()]
        used = [(often, column) for often, column in used if often > 1e-9]
        whole = [(column, int(often + 1 - NEAR)) for often, column in used]
        chosen = self._within((column, times) for column, times in whole if times)
        part = HASTY_PART if self.hasty else PART
        wanted = max(1, int(part * sum(often for often, _ in used)))
        if sum(times for _, times in chosen) >= wanted:
            return chosen
        by_rest = sorted(used, key=lambda x: (int(x[0] + 1 - NEAR) - x[0], x[1].kind, x[1].pattern))
        more = [(column, 1) for _, column in by_rest[:wanted]]
        if self.hasty:
            return self._within([*((c, t) for c, t in whole if t), *more])
        return chosen or self._within(more)

    def _within(self, columns: Iterable[tuple[_Column, int]]) -> list[tuple[_Column, int]]:
        """As many of each as there are nodes for, and replicas wanted."""
        nodes, wanted = list(self.nodes), self.wanted.copy()
        kept = []
        for column, times in columns:
            asked = (int(wanted[n]) // copies for n, copies in column.held)
            times = min(times, nodes[column.kind], *asked)
            if times > 0:
                nodes[column.kind] -= times
                for n, copies in column.held:
                    wanted[n] -= copies * times
                kept.append((column, times))
        return kept
