"""What runs, made to agree with counts: what is too much ends, what lacks gets room, by force.

The counts say how many replicas of which kind lie in which class of nodes. Where the free room is
in pieces too small, smaller replicas make way and look for room themselves, so each is placed at
most as often as there are sizes.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.placement import node_of
from optimizer.domain.prices import held as part_held
from optimizer.solver.formulation import Formulation
from optimizer.solver.repair import Repair, Staying
from optimizer.solver.where import Seat

TRIED = 8  # nodes or GPUs on which others may make way

Kind = tuple[str, object, int]  # deployment, key of its candidate, site


def refitted(f: Formulation, values: list[int], staying: Staying) -> Repair:
    """What runs, repaired towards the counts of a coarse view; who is short then is filled up."""
    repair = Repair(f.problem, f.problem.current, staying)
    _Refit(f, repair, values).run()
    repair.fill()
    return repair


def squeezed(repair: Repair, enough: float) -> None:
    """Empty GPUs that hold little into others in use, until the price is at most ``enough``."""
    room, tried = repair.room, set[str]()
    while room.price() > enough:
        seats_on = _seats_on(repair)
        light = [
            (sum(_size(repair, seat) for seat in seats_on[id]), id)
            for id, held in room.held.items()
            if seats_on.get(id) and id not in tried and held.mode is not Sharing.WHOLE
        ]
        if not light:
            return
        id = min(light)[1]
        tried.add(id)
        _move_out(repair, seats_on[id])


def _move_out(repair: Repair, seats: list[Seat]) -> None:
    """Move them to GPUs in use, all or none."""
    if any(_tied(repair, seat) for seat in seats):
        return
    repair.lift(seats)
    found: list[Seat] = []
    avoided = seats[0].gpus[0]
    for seat in sorted(seats, key=lambda s: -_size(repair, s)):
        other = repair.room.next(seat.candidate, anew=False)
        if other is None or other.gpus[0] == avoided:
            break
        repair.add(other)
        found.append(other)
    if len(found) < len(seats):
        repair.lift(found)
        _put_back(repair, seats)


def _put_back(repair: Repair, seats: Iterable[Seat]) -> None:
    for seat in seats:
        repair.room.put(seat)
        repair.add(seat)


def _tied(repair: Repair, seat: Seat) -> bool:
    """Whether it must stay: it may not be disturbed, or one needs the other near."""
    d = repair.room.names[seat.deployment]
    wanted = {name for other in repair.problem.deployments for name in other.near}
    return d.disturb == "never" or bool(d.near) or d.name in wanted


def _seats_on(repair: Repair) -> dict[str, list[Seat]]:
    found: dict[str, list[Seat]] = defaultdict(list)
    for seat in repair.seats:
        for gpu in seat.gpus:
            found[gpu].append(seat)
    return found


def _size(repair: Repair, seat: Seat) -> float:
    """How many GPUs it takes, or which part of one."""
    gpu = repair.room.held[seat.gpus[0]].gpu.gpu
    shape = seat.candidate.shape
    return shape.gpus * float(part_held(gpu, shape))


@dataclass(order=True, slots=True)
class _Want:
    """One more replica of a kind; the largest comes first."""

    smaller: float
    number: int
    way: Candidate = field(compare=False)
    site: int = field(compare=False)


class _Refit:
    """One repair on its way to the counts."""

    def __init__(self, f: Formulation, repair: Repair, values: list[int]) -> None:
        self.f, self.repair = f, repair
        self.nodes = [frozenset(node.name for node in site.nodes) for site in f.sites]
        self.site_of = {name: s for s, names in enumerate(self.nodes) for name in names}
        # A pipeline may lie in several sites: it counts in one and is looked for in all.
        self.wide: dict[tuple[str, object], tuple[int, frozenset[str]]] = {}
        for c in f.copies:
            if c.parts:
                reach = frozenset(n for site, _ in c.lies for n in self.nodes[site])
                self.wide[c.deployment, c.candidate.key] = (c.site, reach)
        self.queue: list[_Want] = []
        self.counts: Counter[Kind] = Counter()
        self.ways: dict[Kind, Candidate] = {}
        for c in f.copies:
            kind = (c.deployment, c.candidate.key, c.site)
            self.counts[kind] += values[c.count.index]
            self.ways[kind] = c.candidate

    def run(self) -> None:
        """Shed what is too much, then place what lacks, the largest first."""
        runs: dict[Kind, list[Seat]] = defaultdict(list)
        for seat in self.repair.seats:
            runs[self._kind(seat)].append(seat)
        for kind, seats in runs.items():
            if not _tied(self.repair, seats[0]):
                self._shed(seats, len(seats) - self.counts[kind])
        for kind, way in self.ways.items():
            for _ in range(self.counts[kind] - len(runs[kind])):
                self._want(way, kind[2])
        while self.queue:
            want = heapq.heappop(self.queue)
            wide = self.wide.get((want.way.deployment, want.way.key))
            within = self.nodes[want.site] if wide is None else wide[1]
            found = self.repair.room.next(want.way, within)
            if found is not None:
                self.repair.add(found)
            elif wide is None:
                self._make_room(want)

    def _kind(self, seat: Seat) -> Kind:
        wide = self.wide.get((seat.deployment, seat.candidate.key))
        site = self.site_of.get(node_of(seat.gpus[0]), -1) if wide is None else wide[0]
        return (seat.deployment, seat.candidate.key, site)

    def _want(self, way: Candidate, site: int) -> None:
        shape = way.shape
        size = shape.gpus * float(part_held(self.f.sites[site].gpu, shape))
        heapq.heappush(self.queue, _Want(-size, len(self.queue), way, site))

    def _shed(self, seats: list[Seat], surplus: int) -> None:
        """End those that are most alone."""
        if surplus <= 0:
            return
        held = self.repair.room.held
        alone = sorted(seats, key=lambda s: (sum(held[g].replicas for g in s.gpus), s.gpus, s.mig))
        self.repair.lift(alone[:surplus])

    def _make_room(self, want: _Want) -> None:
        """Smaller replicas go where that makes room at the least load; they are wanted then."""
        options = self._options(want)
        for _, node, out in sorted(options, key=lambda o: (o[0], o[1]))[:TRIED]:
            self.repair.lift(out)
            seat = self.repair.room.next(want.way, frozenset((node,)))
            if seat is not None:
                self.repair.add(seat)
                for gone in out:
                    self._want(gone.candidate, self.site_of[node])
                return
            _put_back(self.repair, out)

    def _options(self, want: _Want) -> list[tuple[int, str, list[Seat]]]:
        """By node: the load of who would make way there, and who."""
        room, shape = self.repair.room, want.way.shape
        seats_on = _seats_on(self.repair)
        by_node: dict[str, list[tuple[int, list[Seat]]]] = defaultdict(list)
        for held in room.usable.get(want.way.gpu, ()):
            node, here = held.gpu.node.name, seats_on.get(held.gpu.id, [])
            if node not in self.nodes[want.site]:
                continue
            if all(self._makes_way(seat, want) for seat in here):
                by_node[node].append((sum(seat.candidate.load_mib for seat in here), here))
        found = []
        for node, gpus in by_node.items():
            if len(gpus) >= shape.gpus:
                gpus.sort(key=lambda item: item[0])
                chosen = gpus[: shape.gpus]
                out = {id(seat): seat for _, here in chosen for seat in here}
                found.append((sum(load for load, _ in chosen), node, list(out.values())))
        return found

    def _makes_way(self, seat: Seat, want: _Want) -> bool:
        return _size(self.repair, seat) < -want.smaller and not _tied(self.repair, seat)
