"""The GPUs worth looking at for one more deployment of few replicas: the others are dominated.

A solution touches at most so many domains as its replicas have parts. So a GPU, or a whole domain,
that as many others are at least as good as, at the same price, is never needed: whatever lies there
can lie on one of those that is not used. What is left has the same optimum.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node
from optimizer.domain.problem import capacity_mrps
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.beside import Company, Planned, Room, is_empty
from optimizer.solver.columns import pin
from optimizer.solver.offers import Offers

FEW = 64  # parts of replicas; with more nothing is dominated to speak of

Rates = tuple[int, ...]  # the most with exactly 0, 1, ... replicas; below 0: so many do not fit
Kind = tuple[bool, int, Rates]  # in use, price, what it gives


@dataclass(frozen=True, slots=True)
class _Spot:
    """A node with what is left on it: GPUs by kind, and empty ones.

    ``left``: its network, host CPU and host memory, as far as rules look at these.
    """

    node: Node
    price: int
    kinds: Mapping[Kind, int]
    empty: int
    left: tuple[int, ...]

    @property
    def room(self) -> tuple[int, ...]:
        """What a node of the same product and price is better by, for whole GPUs."""
        return (self.empty, *self.left)

    def as_good_as(self, other: "_Spot") -> bool:
        """Whether all that fits there fits here at the same price."""
        return (
            (self.node.gpu.name, self.price) == (other.node.gpu.name, other.price)
            and _at_least(self.room, other.room)
            and all(self.kinds.get(kind, 0) >= n for kind, n in other.kinds.items())
        )


def worth_trying(
    planned: Planned, new: Deployment, ways: Sequence[Candidate]
) -> frozenset[str] | None:
    """The GPUs among which the cheapest room is; None: all of them may be needed."""
    offered = [way for way in ways if not way.running_only]
    parts = _most_parts(new, offered)
    fleet = planned.problem.fleet
    pairs = any(n.nvlink_domain == "pair" for n in fleet.nodes)
    if parts > FEW or pairs or fleet.limits.rack_power_w is not None:
        return None
    by_node = _by_node(new, offered)
    areas: dict[str, list[_Spot]] = defaultdict(list)
    for spot in _spots(planned, new, offered, parts):
        areas[_area(spot.node, new, by_node)].append(spot)
    kept = [some if by_node else _best(some, parts) for some in areas.values()]
    kept = _best_areas(kept, parts, by_node)
    return _gpus(planned, new, offered, [spot for some in kept for spot in some], parts)


def _most_parts(new: Deployment, ways: Sequence[Candidate]) -> int:
    """So many GPUs or groups in one node a solution takes at most."""
    most = 0
    for way in ways:
        rate, asked = capacity_mrps(new, way), new.asked_mrps or 0
        enough = ceil_div(asked, rate) if asked and rate else 0
        replicas = max(new.min_replicas, enough * (2 if new.survive else 1))
        if new.replica_limit is not None:
            replicas = min(replicas, new.replica_limit)
        most = max(most, replicas)
    return most * max((way.shape.stages for way in ways), default=1)


def _by_node(new: Deployment, ways: Sequence[Candidate]) -> bool:
    """Whether a rule tells a node's GPUs from another's."""
    host = new.host_cpu_millicores or new.host_memory_mib
    staged = any(way.shape.stages > 1 for way in ways)
    return bool(new.spread_node is not None or new.survive == "node" or host or staged)


def _area(node: Node, new: Deployment, by_node: bool) -> str:
    """The smallest domain that a rule tells from others."""
    if new.survive == "zone" and new.spread_rack is None:
        return node.zone_domain
    if new.survive in ("rack", "zone") or new.spread_rack is not None:
        return (
            f"{node.zone_domain} {node.rack_domain}" if new.survive == "zone" else node.rack_domain
        )
    return node.name if by_node else ""


def _spots(
    planned: Planned, new: Deployment, ways: Sequence[Candidate], parts: int
) -> Iterator[_Spot]:
    offers, states = Offers(planned, new, ways), planned.ready()
    crossing = any(way.network_mbs for way in ways)
    known: dict[tuple[str, Room], Rates] = {}
    for here in offers.here():
        price = planned.problem.fleet.price_micros(here.node)
        kinds: Counter[Kind] = Counter()
        empty = 0
        for room, number in here.rooms:
            if is_empty(room):
                empty += number
                continue
            key = (here.node.gpu.name, room)
            if key not in known:
                known[key] = _exactly(offers.fillings(here.node, room), parts)
            if max(known[key]) > 0:
                kinds[room.used, 0 if room.used else price, known[key]] += number
        if not (kinds or empty):
            continue
        for name in here.names:
            node = states.gpus[name][0].node
            left = (_link_left(planned, node),) if crossing else ()
            yield _Spot(node, price, kinds, empty, (*left, *_host_left(planned, new, node)))


def _exactly(fillings: Iterable[Sequence[int]], most: int) -> Rates:
    """The most that one GPU gives with exactly 0, 1, ... replicas."""
    best = [0] + [-1] * most
    for rates in fillings:
        given = 0
        for number, rate in enumerate(sorted(rates, reverse=True)[:most], 1):
            given += rate
            best[number] = max(best[number], given)
    return tuple(best)


def _link_left(planned: Planned, node: Node) -> int:
    link = node.network_mbs
    return 1 << 40 if link is None else link - planned.network[node.name]


def _host_left(planned: Planned, new: Deployment, node: Node) -> Iterator[int]:
    """How many replicas its CPU and its memory are enough for."""
    for need, has, used in (
        (new.host_cpu_millicores, node.cpu_millicores, planned.cpu[node.name]),
        (new.host_memory_mib, node.host_memory_mib, planned.memory[node.name]),
    ):
        if need:
            yield FEW if has is None else min(FEW, (has - used) // need)


def _best(spots: Sequence[_Spot], parts: int) -> list[_Spot]:
    """Of an area's GPUs, whose nodes no rule tells apart, those that fewer than so many beat."""
    kinds: Counter[Kind] = Counter()
    for spot in spots:
        kinds.update(spot.kinds)
    left = {kind: parts for kind in kinds if _better(kind, kinds) < parts}
    roomy = {id(spot) for spot in _roomiest(spots, parts)}
    found = []
    for spot in spots:
        kept: dict[Kind, int] = {}
        for kind, number in spot.kinds.items():
            some = min(number, left.get(kind, 0))
            if some:
                kept[kind] = some
                left[kind] -= some
        empty = spot.empty if id(spot) in roomy else 0
        if kept or empty:
            found.append(replace(spot, kinds=kept, empty=empty))
    return found


def _better(kind: Kind, kinds: Mapping[Kind, int]) -> int:
    """How many GPUs of other kinds give as much at the price or less."""
    used, price, rates = kind
    return sum(
        number
        for other, number in kinds.items()
        if other != kind
        and other[0] >= used
        and (other[0] or other[1] == price)
        and _at_least(other[2], rates)
        and (other[2] != rates or other[0] > used)
    )


def _roomiest(spots: Sequence[_Spot], parts: int) -> Iterator[_Spot]:
    """Nodes that fewer than so many of the same product and price have more empty GPUs than."""
    alike: dict[tuple[str, int], list[_Spot]] = defaultdict(list)
    for spot in spots:
        if spot.empty:
            alike[spot.node.gpu.name, spot.price].append(spot)
    for some in alike.values():
        yield from sorted(some, key=lambda s: -s.empty)[:parts]


def _at_least(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))


def _best_areas(areas: Sequence[list[_Spot]], parts: int, by_node: bool) -> list[list[_Spot]]:
    """Areas that fewer than so many others are as good as."""

    def size(area: list[_Spot]) -> tuple[int, int]:
        return (sum(s.empty for s in area), sum(n for s in area for n in s.kinds.values()))

    kept: list[list[_Spot]] = []
    totals: list[Counter[Kind]] = []
    for area in sorted(areas, key=size, reverse=True):
        whole: Counter[Kind] = Counter()
        for spot in area:
            whole.update(spot.kinds)
        better = 0
        for other, has in zip(kept, totals, strict=True):
            enough = all(has[kind] >= n for kind, n in whole.items())
            better += enough and _covers(other, area, by_node)
            if better >= parts:
                break
        if better < parts:
            kept.append(area)
            totals.append(whole)
    return kept


def _covers(one: Sequence[_Spot], other: Sequence[_Spot], by_node: bool) -> bool:
    """Whether each node of the other has one of its own that is as good.

    Where no rule looks at nodes, it is so for the empty GPUs only.
    """
    free = list(one)
    for spot in sorted(other, key=lambda s: -s.empty):
        wanted = spot if by_node else replace(spot, kinds={})
        if not by_node and not spot.empty:
            continue
        match = next((mine for mine in free if mine.as_good_as(wanted)), None)
        if match is None:
            return False
        free.remove(match)
    return True


def _gpus(
    planned: Planned,
    new: Deployment,
    ways: Sequence[Candidate],
    spots: Iterable[_Spot],
    parts: int,
) -> frozenset[str]:
    """The ids of what is left of the nodes."""
    offers, alone, states = Offers(planned, new, ways), Company(planned, new), planned.ready()
    found = set()
    for spot in spots:
        left = dict(spot.kinds)
        for gpu in states.gpus[spot.node.name]:
            room = planned.room(gpu, alone) if pin(new, gpu) else None
            if room is None:
                continue
            if is_empty(room):
                if spot.empty:
                    found.add(gpu.id)
                continue
            rates = _exactly(offers.fillings(spot.node, room), parts)
            kind = (room.used, 0 if room.used else spot.price, rates)
            if left.get(kind, 0) > 0:
                left[kind] -= 1
                found.add(gpu.id)
    return frozenset(found)
