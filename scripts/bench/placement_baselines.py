"""What schedulers do: best-fit, first-fit-decreasing, load-balanced, one replica after the other.

All see the same candidates as the solver, keep slot legality, shares and groups in one node, and
never look back. A replica runs the way that costs least for the requests it would serve of those
left, counting the part of a GPU that it holds: as who picks a GPU type for each model first. Where
that finds no place the next way is tried. Their answers are judged by the same judge.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush

import numpy as np

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import Gpu, Use
from optimizer.domain.placement import Placement
from optimizer.domain.prices import held
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver.where import Seat, layout, settle

State = tuple[str, ...]  # the MIG profiles of a GPU, by name


class Fit(Enum):
    """Which of the places that take a replica it gets."""

    TIGHTEST = "where least room is left"
    FIRST = "the first"
    EMPTIEST = "on the node with most GPUs free; in a GPU in use only where none is"


def best_fit(problem: PlacementProblem) -> Placement:
    """Deployments as listed, each replica where least room is left."""
    return _run(problem, Fit.TIGHTEST, problem.deployments)


def first_fit_decreasing(problem: PlacementProblem) -> Placement:
    """The deployment that costs most first, each replica into the first place that takes it."""
    rates = _Rates(problem)

    def price(d: Deployment) -> float:
        left = d.asked_mrps or 1
        return left * min((rates.of(w, left) for w in problem.candidates[d.name]), default=0.0)

    return _run(problem, Fit.FIRST, sorted(problem.deployments, key=price, reverse=True))


def load_balanced(problem: PlacementProblem) -> Placement:
    """Deployments as listed, each replica on the node with most GPUs free."""
    return _run(problem, Fit.EMPTIEST, problem.deployments)


def _run(problem: PlacementProblem, fit: Fit, order: Sequence[Deployment]) -> Placement:
    rates, places = _Rates(problem), _Places(problem, fit)
    for d in order:
        left, count = d.asked_mrps or 0, 0
        open_ways = list(problem.candidates[d.name])
        while open_ways and (left > 0 or count < d.min_replicas):
            way = min(open_ways, key=lambda w: (rates.of(w, max(1, left)), w.key))
            if places.put(d, way):
                left -= way.capacity_mrps or 0
                count += 1
            else:  # a fleet only fills, so it will not fit later either
                open_ways.remove(way)
    return settle(problem, places.seats())


class _Rates:
    """What a way costs for each request per second that it would serve."""

    def __init__(self, problem: PlacementProblem) -> None:
        prices = {n.gpu.name: problem.fleet.price_micros(n) for n in problem.fleet.nodes}
        gpus = {gpu.name: gpu for gpu in problem.fleet.products()}
        self.price = {
            id(way): prices[way.gpu] * way.shape.gpus * float(held(gpus[way.gpu], way.shape))
            for ways in problem.candidates.values()
            for way in ways
        }

    def of(self, way: Candidate, left_mrps: int) -> float:
        return self.price[id(way)] / max(1, min(way.capacity_mrps or 1, left_mrps))


class _Places:
    """Free GPUs of nodes, and GPUs in use that have room left."""

    def __init__(self, problem: PlacementProblem, fit: Fit) -> None:
        self.fit = fit
        self.whole: list[Seat] = []
        self.sliced: dict[str, _Sliced] = {}
        self.shared: dict[str, _Shared] = {}
        self.free: dict[str, _Free] = {}
        nodes: dict[str, list[Node]] = defaultdict(list)
        for node in problem.fleet.nodes:
            nodes[node.gpu.name].append(node)
        for name, mine in nodes.items():
            gpu = mine[0].gpu
            self.free[name] = _Free(mine)
            self.sliced[name] = _Sliced(gpu)
            self.shared[name] = _Shared(gpu, sum(node.gpus for node in mine))

    def put(self, d: Deployment, way: Candidate) -> bool:
        """Whether the replica found a place; it has it then."""
        sharing, free = way.shape.sharing, self.free[way.gpu]
        if sharing is Sharing.WHOLE:
            taken = free.take(way.shape.gpus, self.fit, sharing)
            if taken is not None:
                self.whole.append(Seat(d.name, way, taken))
            return taken is not None
        used = (self.sliced if sharing is Sharing.MIG else self.shared)[way.gpu]
        if self.fit is not Fit.EMPTIEST and used.join(d, way, self.fit):
            return True
        taken = free.take(1, self.fit, sharing)
        if taken is not None:
            used.open(taken[0], d, way)
            return True
        return self.fit is Fit.EMPTIEST and used.join(d, way, self.fit)

    def seats(self) -> list[Seat]:
        parts = (*self.sliced.values(), *self.shared.values())
        return [*self.whole, *(seat for part in parts for seat in part.seats())]


class _Free:
    """Nodes of one product by how many GPUs are free: a heap of their numbers for each count."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.left = [node.gpus for node in nodes]
        self.heaps: dict[tuple[Sharing, ...], dict[int, list[int]]] = {}
        for number, node in enumerate(nodes):
            heaps = self.heaps.setdefault(node.sharing, defaultdict(list))
            heaps[node.gpus].append(number)

    def take(self, size: int, fit: Fit, sharing: Sharing) -> tuple[str, ...] | None:
        """GPUs of one node."""
        found = []
        for modes, heaps in self.heaps.items():
            for count in heaps if sharing in modes else ():
                heap = heaps[count]
                while heap and self.left[heap[0]] != count:
                    heappop(heap)
                if heap and count >= size:
                    rank = {Fit.TIGHTEST: count, Fit.FIRST: 0, Fit.EMPTIEST: -count}[fit]
                    found.append((rank, heap[0]))
        if not found:
            return None
        number = min(found)[1]
        node, left = self.nodes[number], self.left[number]
        self.left[number] = left - size
        if left > size:
            heappush(self.heaps[node.sharing][left - size], number)
        first = node.gpus - left
        return tuple(f"{node.name}/{index}" for index in range(first, first + size))


@dataclass(slots=True)
class _Open:
    """A GPU in use and who runs on it."""

    id: str
    number: int
    state: State = ()
    runs: list[tuple[str, Candidate]] = field(default_factory=list)


class _Sliced:
    """GPUs with MIG instances, by what they hold: a heap of their numbers for each multiset."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.gpus: list[_Open] = []
        self.heaps: dict[State, list[int]] = defaultdict(list)
        names = tuple(p.name for p in gpu.mig.profiles if p.plain) if gpu.mig else ()
        self.legal = set(gpu.mig.multisets(names)) if gpu.mig else set()
        self.slices = {p.name: p.memory_slices for p in gpu.mig.profiles} if gpu.mig else {}

    def join(self, d: Deployment, way: Candidate, fit: Fit) -> bool:
        found = []
        for state, heap in self.heaps.items():
            while heap and self.gpus[heap[0]].state != state:
                heappop(heap)
            if heap and tuple(sorted(Counter(_with(state, way)).items())) in self.legal:
                fullness = -sum(self.slices[name] for name in state)
                found.append((fullness if fit is Fit.TIGHTEST else 0, heap[0]))
        if found:
            self._enter(self.gpus[min(found)[1]], d, way)
        return bool(found)

    def open(self, id: str, d: Deployment, way: Candidate) -> None:
        self.gpus.append(_Open(id, len(self.gpus)))
        self._enter(self.gpus[-1], d, way)

    def _enter(self, gpu: _Open, d: Deployment, way: Candidate) -> None:
        gpu.state = _with(gpu.state, way)
        gpu.runs.append((d.name, way))
        heappush(self.heaps[gpu.state], gpu.number)

    def seats(self) -> Iterator[Seat]:
        for gpu in self.gpus:
            assert self.gpu.mig is not None
            starts = defaultdict(list)
            for placed in layout(self.gpu.mig, (), (), gpu.state):
                starts[placed.profile].append(placed)
            for name, way in gpu.runs:
                yield Seat(name, way, (gpu.id,), starts[way.shape.profile or ""].pop(0))


def _with(state: State, way: Candidate) -> State:
    return tuple(sorted((*state, way.shape.profile or "")))


class _Shared:
    """GPUs with shares, and the room that each has left."""

    def __init__(self, gpu: Gpu, most: int) -> None:
        self.room = _parts(gpu.room)
        self.left = np.zeros((most, 3), dtype=np.int64)
        self.gpus: list[_Open] = []

    def join(self, d: Deployment, way: Candidate, fit: Fit) -> bool:
        left = self.left[: len(self.gpus)] - _parts(way.shape.share or Use())
        fits = np.flatnonzero((left >= 0).all(axis=1))
        if not fits.size:
            return False
        number = fits[0]
        if fit is Fit.TIGHTEST:
            number = fits[np.argmin((left[fits] / self.room).min(axis=1))]
        self._enter(self.gpus[number], d, way)
        return True

    def open(self, id: str, d: Deployment, way: Candidate) -> None:
        self.left[len(self.gpus)] = self.room
        self.gpus.append(_Open(id, len(self.gpus)))
        self._enter(self.gpus[-1], d, way)

    def _enter(self, gpu: _Open, d: Deployment, way: Candidate) -> None:
        self.left[gpu.number] -= _parts(way.shape.share or Use())
        gpu.runs.append((d.name, way))

    def seats(self) -> Iterator[Seat]:
        for gpu in self.gpus:
            for name, way in gpu.runs:
                yield Seat(name, way, (gpu.id,))


def _parts(use: Use) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([use.memory_mib, use.bandwidth_mbs, use.compute_ppm], dtype=np.int64)
