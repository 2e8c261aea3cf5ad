"""What schedulers do: best-fit, first-fit-decreasing, load-balanced, one replica after the other.

All see the same candidates as the solver, keep slot legality, shares and groups in one node, and
never look back. Their answers are judged by the same judge.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import Use
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver.where import Seat, layout, settle


@dataclass(slots=True)
class _Open:
    """A GPU that holds instances or shares, with room left."""

    node: Node
    id: str
    mode: Sharing
    used: Use = field(default_factory=Use)
    profiles: tuple[str, ...] = ()
    seats: list[tuple[Deployment, Candidate]] = field(default_factory=list)


@dataclass(slots=True)
class _Fleet:
    """Free GPUs by product and number left in a node, and GPUs in use with room."""

    free: dict[str, dict[str, list[int]]] = field(default_factory=lambda: defaultdict(dict))
    nodes: dict[str, Node] = field(default_factory=dict)
    started: dict[tuple[str, Sharing], list[_Open]] = field(
        default_factory=lambda: defaultdict(list)
    )
    seats: list[Seat] = field(default_factory=list)
    balanced: bool = False  # onto the emptiest node, and into a GPU in use only if none is free


def best_fit(problem: PlacementProblem) -> Placement:
    """Deployments as listed; each replica the way that adds least price for what it serves."""
    return _run(problem, list(problem.deployments), best=True)


def first_fit_decreasing(problem: PlacementProblem) -> Placement:
    """Largest demand first, each by its cheapest way, into the first GPU that takes it."""
    prices = {n.gpu.name: problem.fleet.price_micros(n) for n in problem.fleet.nodes}

    def size(d: Deployment) -> float:
        ways = problem.candidates[d.name]
        return min(
            -(-(d.asked_mrps or 0) // (w.capacity_mrps or 1)) * prices[w.gpu] * w.shape.gpus
            for w in ways
        )

    return _run(problem, sorted(problem.deployments, key=lambda d: -size(d)), best=False)


def load_balanced(problem: PlacementProblem) -> Placement:
    """Deployments as listed; each by its cheapest way, on the node with most GPUs free."""
    return _run(problem, list(problem.deployments), best=False, balanced=True)


def _run(
    problem: PlacementProblem, order: list[Deployment], *, best: bool, balanced: bool = False
) -> Placement:
    fleet = _Fleet(balanced=balanced)
    for node in problem.fleet.nodes:
        fleet.nodes[node.name] = node
        fleet.free[node.gpu.name][node.name] = list(range(node.gpus))
    prices = {n.gpu.name: problem.fleet.price_micros(n) for n in problem.fleet.nodes}
    for d in order:
        left, count = d.asked_mrps or 0, 0
        ways = sorted(problem.candidates[d.name], key=lambda w: _rate_price(w, prices, fleet))
        while left > 0 or count < d.min_replicas:
            way = _pick(fleet, d, ways, prices, left, best)
            if way is None:
                break
            left -= way.capacity_mrps or 0
            count += 1
    for started in fleet.started.values():
        for gpu in started:
            fleet.seats += _cut(gpu)
    return settle(problem, fleet.seats)


def _rate_price(way: Candidate, prices: dict[str, int], fleet: _Fleet) -> float:
    node = next(n for n in fleet.nodes.values() if n.gpu.name == way.gpu)
    part: float = way.shape.gpus
    if way.shape.share is not None:
        part = max(way.shape.share.parts_of(node.gpu.room))
    elif way.shape.profile and node.gpu.mig is not None:
        profile = node.gpu.mig.profile(way.shape.profile)
        part = profile.memory_slices / node.gpu.mig.memory_slices if profile else 1
    return prices[way.gpu] * part / max(1, way.capacity_mrps or 0)


def _pick(
    fleet: _Fleet,
    d: Deployment,
    ways: list[Candidate],
    prices: dict[str, int],
    left: int,
    best: bool,
) -> Candidate | None:
    """Place one replica; the way it runs, or None where none fits."""
    options: list[tuple[float, int, Candidate, _Open | str]] = []
    for number, way in enumerate(ways):
        place = _place_for(fleet, way)
        if place is None:
            continue
        added = prices[way.gpu] * way.shape.gpus if isinstance(place, str) else 0
        serves = min(way.capacity_mrps or 1, max(1, left))
        options.append((added / serves, number, way, place))
        if not best:
            break
    if not options:
        return None
    _, _, way, place = min(options, key=lambda option: option[:2])
    if isinstance(place, str):
        _open(fleet, d, way, place)
    else:
        _join(place, d, way)
    return way


def _place_for(fleet: _Fleet, way: Candidate) -> _Open | str | None:
    sharing = way.shape.sharing
    started = None if fleet.balanced or sharing is Sharing.WHOLE else _joined(fleet, way)
    if started is not None:
        return started
    fitting = [
        (len(free), name)
        for name, free in fleet.free[way.gpu].items()
        if len(free) >= way.shape.gpus and sharing in fleet.nodes[name].sharing
    ]
    if fleet.balanced:
        node = min(fitting, key=lambda free: (-free[0], free[1]), default=None)
        return node[1] if node else _joined(fleet, way)
    return min(fitting)[1] if fitting else None


def _joined(fleet: _Fleet, way: Candidate) -> _Open | None:
    """The first GPU in use that takes it."""
    return next((gpu for gpu in fleet.started[way.gpu, way.shape.sharing] if _fits(gpu, way)), None)


def _fits(gpu: _Open, way: Candidate) -> bool:
    if way.shape.share is not None:
        return (gpu.used + way.shape.share).fits_in(gpu.node.gpu.room)
    table = gpu.node.gpu.mig
    assert table is not None
    wanted = tuple(sorted(Counter((*gpu.profiles, way.shape.profile or "")).items()))
    return wanted in _legal(gpu.node)


_LEGAL: dict[str, frozenset[tuple[tuple[str, int], ...]]] = {}


def _legal(node: Node) -> frozenset[tuple[tuple[str, int], ...]]:
    if node.gpu.name not in _LEGAL:
        assert node.gpu.mig is not None
        names = tuple(p.name for p in node.gpu.mig.profiles if p.plain)
        _LEGAL[node.gpu.name] = frozenset(node.gpu.mig.multisets(names))
    return _LEGAL[node.gpu.name]


def _open(fleet: _Fleet, d: Deployment, way: Candidate, name: str) -> None:
    free = fleet.free[way.gpu][name]
    taken = [free.pop(0) for _ in range(way.shape.gpus)]
    if not free:
        del fleet.free[way.gpu][name]
    ids = tuple(f"{name}/{index}" for index in taken)
    if way.shape.sharing is Sharing.WHOLE:
        fleet.seats.append(Seat(d.name, way, ids))
        return
    gpu = _Open(fleet.nodes[name], ids[0], way.shape.sharing)
    _join(gpu, d, way)
    fleet.started[way.gpu, way.shape.sharing].append(gpu)


def _join(gpu: _Open, d: Deployment, way: Candidate) -> None:
    gpu.used = gpu.used + (way.shape.share or Use())
    gpu.profiles = tuple(sorted((*gpu.profiles, *filter(None, [way.shape.profile]))))
    gpu.seats.append((d, way))


def _cut(gpu: _Open) -> Iterator[Seat]:
    starts = defaultdict(list)
    if gpu.profiles and gpu.node.gpu.mig is not None:
        for placed in layout(gpu.node.gpu.mig, (), (), gpu.profiles):
            starts[placed.profile].append(placed)
    for d, way in gpu.seats:
        mig = starts[way.shape.profile].pop(0) if way.shape.profile else None
        yield Seat(d.name, way, (gpu.id,), mig)
