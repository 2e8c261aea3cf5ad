"""The integer program of one more deployment beside what is planned, and the places it names.

GPUs with the same room left, on nodes that no rule tells apart, are one kind with a count, so the
program grows with the variety of the fleet and not with its size. Its optimum is exact.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ortools.sat.python import cp_model

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import FleetGpu, Limits, Node, Sharing
from optimizer.domain.gpu import Use
from optimizer.domain.placement import replica_order
from optimizer.domain.problem import capacity_mrps
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.beside import Company, Planned, Room, is_empty
from optimizer.solver.columns import (
    Refill,
    additions,
    cordon,
    counted,
    domain_of,
    pin,
    share_patterns,
    shares_of,
)
from optimizer.solver.formulation import Expr, total
from optimizer.solver.integer import value_of
from optimizer.solver.room import Found
from optimizer.solver.where import Seat, layout

EFFORT = 5.0  # deterministic
SHORT_EFFORT = 0.5
SHORTEST_EFFORT = 0.02  # for fewer replicas where the price is known already


@dataclass(slots=True)
class _Kind:
    """Alike nodes: how many GPUs of each room every one of them has."""

    node: Node
    rooms: dict[Room, list[list[str]]] = field(default_factory=dict)  # GPUs, node by node
    nodes: int = 0


@dataclass(slots=True)
class _Place:
    """So many replicas of one candidate on one room of a kind (``room`` None: whole GPUs)."""

    kind: _Kind
    candidate: Candidate
    count: Expr
    room: Room | None


@dataclass(slots=True)
class _Pipeline:
    """Whether one new pipeline runs, and its parts: ``gpus`` of a node, ``of`` such in all."""

    candidate: Candidate
    count: Expr
    parts: list[tuple[_Kind, int, int, Expr]] = field(default_factory=list)

    def touches(self, kinds: Iterable[_Kind]) -> list[Expr]:
        """Whether it lies in each of these nodes."""
        some = {id(kind) for kind in kinds}
        return [lies for kind, _, _, lies in self.parts if id(kind) in some]


@dataclass(slots=True)
class _Fill:
    """So many GPUs of one room filled one way."""

    kind: _Kind
    room: Room
    count: Expr
    mig: Refill | None = None
    shares: tuple[tuple[Use, int], ...] = ()
    whole: bool = False


class Program:
    """Where a new deployment may run, filled at the least price."""

    def __init__(
        self,
        planned: Planned,
        new: Deployment,
        ways: Sequence[Candidate],
        among: frozenset[str] | None = None,
        only: frozenset[str] | None = None,
    ) -> None:
        """``among``: only these nodes; ``only``: only these GPUs."""
        self.planned, self.new, self.among, self.only = planned, new, among, only
        self.ways = [way for way in ways if not way.running_only]
        self.model = cp_model.CpModel()
        self.solver = cp_model.CpSolver()
        self.solver.parameters.num_workers = 1
        self.solver.parameters.linearization_level = 2  # what is lost binds: the bound needs it
        self.solver.parameters.cp_model_probing_level = 0  # takes longer than the search
        self.places: list[_Place] = []
        self.fills: list[_Fill] = []
        self.values: list[int] = []
        self.held: dict[int, list[str]] = {}  # GPUs of pipelines, by identity
        self.pending: dict[tuple[int, int], list[Candidate]] = {}  # not seated yet
        host = new.host_cpu_millicores or new.host_memory_mib
        staged = any(way.shape.stages > 1 for way in self.ways)
        self.by_node = bool(new.spread_node is not None or new.survive == "node" or host or staged)
        self.apart = self.by_node or new.survive is not None or new.spread_rack is not None
        self.kinds = list(self._kinds())
        self.pipelines = list(self._pipelines())
        for kind in self.kinds:
            self._offer(kind)
        for pipeline in self.pipelines:
            self._join(pipeline)
        self._rules()

    # --- what is left

    def _kinds(self) -> Iterator[_Kind]:
        products = {way.gpu for way in self.ways}
        by_node: dict[str, list[tuple[Room, str]]] = defaultdict(list)
        nodes: dict[str, Node] = {}
        alone = Company(self.planned, self.new)
        gpus: Iterable[FleetGpu] = self.planned.gpus
        if self.among is not None:
            by_name = self.planned.ready().gpus
            gpus = (gpu for name in sorted(self.among) for gpu in by_name[name])
        if self.only is not None:
            gpus = (gpu for gpu in gpus if gpu.id in self.only)
        for gpu in gpus:
            if gpu.gpu.name not in products or not cordon(gpu) or not pin(self.new, gpu):
                continue
            if alone.welcome_on_node(gpu.node.name):
                room = self.planned.room(gpu, alone)
                if room is not None:
                    by_node[gpu.node.name].append((room, gpu.id))
                    nodes[gpu.node.name] = gpu.node
        found: dict[object, _Kind] = {}
        for name, rooms in by_node.items():
            for some in self._parts(rooms):
                sizes = Counter(room for room, _ in some)
                empty = frozenset((r, n) for r, n in sizes.items() if is_empty(r) or self.by_node)
                key = (self._alike(nodes[name]), empty)
                kind = found.setdefault(key, _Kind(nodes[name]))
                kind.nodes += 1
                for room in sizes:
                    ids = [gpu for other, gpu in some if other == room]
                    kind.rooms.setdefault(room, []).append(ids)
        return iter(found.values())

    def _parts(self, rooms: list[tuple[Room, str]]) -> list[list[tuple[Room, str]]]:
        """A node's GPUs together; or apart where only groups of empty ones care for the node."""
        if self.by_node:
            return [rooms]
        empty = [pair for pair in rooms if is_empty(pair[0])]
        rest = [pair for pair in rooms if not is_empty(pair[0])]
        return [some for some in (empty, rest) if some]

    def _alike(self, node: Node) -> object:
        """What tells nodes apart under the rules of this deployment."""
        new, limits = self.new, self.planned.problem.fleet.limits
        pair = node.nvlink_domain == "pair"
        rack = new.spread_rack is not None or limits.rack_power_w is not None
        rack = rack or new.survive == "rack"
        return (
            node.name if self.by_node or pair else None,
            node.rack_domain if rack else None,
            node.zone_domain if new.survive == "zone" else None,
            node.gpu.name,
            self.planned.problem.fleet.price_micros(node),
        )

    # --- how it may be filled

    def _offer(self, kind: _Kind) -> None:
        ways = [way for way in self.ways if way.gpu == kind.node.gpu.name]
        whole = [way for way in ways if way.shape.sharing is Sharing.WHOLE]
        for room, ids in kind.rooms.items():
            gpus = sum(map(len, ids))
            some: list[Expr] = []
            if Sharing.MIG in room.modes:
                some += self._slices(kind, room, gpus, ways)
            if Sharing.SHARED in room.modes:
                some += self._shares(kind, room, gpus, ways)
            if Sharing.WHOLE in room.modes and not room.used and whole:
                count = self.model.new_int_var(0, gpus, "whole")
                self.fills.append(_Fill(kind, room, count, whole=True))
                some.append(count)
            if some:
                self.model.add(total(some) <= gpus)
        self._groups(kind, whole)

    def _slices(self, kind: _Kind, room: Room, gpus: int, ways: list[Candidate]) -> Iterator[Expr]:
        table = kind.node.gpu.mig
        cut = [w for w in ways if w.shape.sharing is Sharing.MIG]
        profiles = tuple(sorted({w.shape.profile or "" for w in cut}))
        if table is None or not profiles:
            return
        if room.kept is not None:
            free = list(room.kept)
            for placed in room.taken:
                free.remove(placed)
            patterns = [counted(p.profile for p in free if p.profile in profiles)]
        else:
            patterns = list(additions(table, room.taken, profiles))
        supply: dict[str, list[Expr]] = defaultdict(list)
        for pattern in patterns:
            if pattern:
                count = self.model.new_int_var(0, gpus, "cut")
                self.fills.append(_Fill(kind, room, count, mig=Refill((), pattern, True)))
                for profile, number in pattern:
                    supply[profile].append(number * count)
                yield count
        for profile, offered in supply.items():
            same = [w for w in cut if w.shape.profile == profile]
            most = gpus * table.memory_slices
            self.model.add(
                total(self._place(kind, way, most, room) for way in same) <= total(offered)
            )

    def _shares(self, kind: _Kind, room: Room, gpus: int, ways: list[Candidate]) -> Iterator[Expr]:
        sizes = shares_of(ways, kind.node.gpu.name)
        supply: dict[Use, list[Expr]] = defaultdict(list)
        for pattern in share_patterns(room.share or Use(), sizes) or ():
            if pattern:
                count = self.model.new_int_var(0, gpus, "shared")
                self.fills.append(_Fill(kind, room, count, shares=pattern))
                for share, number in pattern:
                    supply[share].append(number * count)
                yield count
        for share, offered in supply.items():
            same = [w for w in ways if w.shape.share == share]
            places = [self._place(kind, way, 1 << 20, room) for way in same]
            self.model.add(total(places) <= total(offered))

    def _groups(self, kind: _Kind, whole: list[Candidate]) -> None:
        taken = [fill.count for fill in self.fills if fill.kind is kind and fill.whole]
        if not taken:
            return
        empty = [
            sum(len(ids[n]) for room, ids in kind.rooms.items() if is_empty(room))
            for n in range(kind.nodes)
        ]
        most = kind.nodes * max(empty)
        plain = [way for way in whole if way.shape.stages == 1]
        places = [(w.shape.gpus, self._place(kind, w, most, None)) for w in plain]
        places += [(n, x) for p in self.pipelines for n, x in self._part(p, kind, most)]
        self.model.add(total(gpus * x for gpus, x in places) == total(taken))
        for size in sorted({n for w in whole for n in (w.shape.gpus, w.shape.block)} - {1}):
            blocks = total(gpus // size * x for gpus, x in places if gpus % size == 0)
            room_for = sum(n // size for n in empty)
            if size == 2 and kind.node.nvlink_domain == "pair":
                room_for = len(self._pairs(kind))
            self.model.add(blocks <= room_for)

    def _pipelines(self) -> Iterator[_Pipeline]:
        """New pipelines, one by one: each is told apart in the domains that it touches."""
        for way in (way for way in self.ways if way.shape.stages > 1):
            before = None
            for _ in range(self._useful(way)):
                count = self.model.new_bool_var("pipeline")
                if before is not None:
                    self.model.add_implication(count, before)
                before = count
                yield _Pipeline(way, count)

    def _part(self, pipeline: _Pipeline, kind: _Kind, room: int) -> Iterator[tuple[int, Expr]]:
        """Whether it has one of so many parts in that node."""
        way, link = pipeline.candidate, kind.node.network_mbs
        left = None if link is None else link - self.planned.network[kind.node.name]
        for of in (n for n in range(1, way.shape.stages + 1) if way.shape.stages % n == 0):
            slow = of > 1 and left is not None and way.network_mbs > left
            if way.gpu == kind.node.gpu.name and way.shape.gpus // of <= room and not slow:
                lies = self.model.new_bool_var("part")
                pipeline.parts.append((kind, of, way.shape.gpus // of, lies))
                yield way.shape.gpus // of, lies

    def _join(self, pipeline: _Pipeline) -> None:
        """It runs over one number of nodes, with a part in each."""
        over = []
        for of in sorted({of for _, of, _, _ in pipeline.parts}):
            over.append(self.model.new_bool_var(f"over {of}"))
            parts = total(lies for _, n, _, lies in pipeline.parts if n == of)
            self.model.add(parts == of * over[-1])
        self.model.add(total(over) == pipeline.count)

    def _pairs(self, kind: _Kind) -> list[tuple[str, str]]:
        free = {
            g for room, ids in kind.rooms.items() if is_empty(room) for some in ids for g in some
        }
        lows = sorted(int(gpu.rpartition("/")[2]) for gpu in free)
        name = kind.node.name
        return [
            (f"{name}/{i}", f"{name}/{i + 1}")
            for i in lows
            if i % 2 == 0 and f"{name}/{i + 1}" in free
        ]

    def _place(self, kind: _Kind, way: Candidate, most: int, room: Room | None) -> Expr:
        count = self.model.new_int_var(0, min(most, self._useful(way)), f"{way.gpu}")
        self.places.append(_Place(kind, way, count, room))
        return count

    def _useful(self, way: Candidate) -> int:
        """More replicas of that way never help."""
        rate, asked = capacity_mrps(self.new, way), self.new.asked_mrps or 0
        enough = ceil_div(asked, rate) * (2 if self.new.survive else 1) if rate else 0
        return max(self.new.min_replicas, enough)

    # --- rules

    def _rules(self) -> None:
        new, model = self.new, self.model
        every: list[_Place | _Pipeline] = [*self.places, *self.pipelines]
        running = total(p.count for p in every)
        self.running = running
        asked = new.asked_mrps or 0
        self.served = total(self._rate(p) * p.count for p in every)
        self.needs = [model.add(self.served >= asked).index] if asked else []
        if new.min_replicas:
            self.needs.append(model.add(running >= new.min_replicas).index)
        if new.replica_limit is not None:
            model.add(running <= new.replica_limit)
        for kind in self.kinds:
            here = [p.count for p in self.places if p.kind is kind]
            here += [lies for p in self.pipelines for lies in p.touches([kind])]
            self._network(kind)
            if new.spread_node is not None:
                model.add(total(here) <= new.spread_node)
            name, node = kind.node.name, kind.node
            if new.host_cpu_millicores and node.cpu_millicores is not None:
                left = node.cpu_millicores - self.planned.cpu[name]
                model.add(new.host_cpu_millicores * total(here) <= left)
            if new.host_memory_mib and node.host_memory_mib is not None:
                left = node.host_memory_mib - self.planned.memory[name]
                model.add(new.host_memory_mib * total(here) <= left)
        if new.spread_rack is not None:
            for some in self._by("rack"):
                model.add(total(count for _, count in some) <= new.spread_rack)
        if new.survive is not None and asked:
            for some in self._by(new.survive):
                lost = total(rate * count for rate, count in some)
                self.needs.append(model.add(self.served - lost >= asked).index)
        self._ceilings()

    def _network(self, kind: _Kind) -> None:
        """Rule ``network_bandwidth``: what is handed over fits what the node's link has left."""
        link, handed = kind.node.network_mbs, []
        for p in self.pipelines:
            mbs = p.candidate.network_mbs
            handed += [mbs * lies for k, of, _, lies in p.parts if k is kind and of > 1]
        if link is not None and handed:
            left = link - self.planned.network[kind.node.name]
            self.model.add(total(handed) <= max(0, left))

    def _rate(self, place: _Place | _Pipeline) -> int:
        return min(capacity_mrps(self.new, place.candidate), self.new.asked_mrps or 0)

    def _by(self, domain: str) -> list[list[tuple[int, Expr]]]:
        """By domain: the rate of each that may touch it, and how often it does."""
        found: dict[str, list[tuple[int, Expr]]] = defaultdict(list)
        for place in self.places:
            name = domain_of(place.kind.node, domain)
            found[name].append((self._rate(place), place.count))
        kinds: dict[str, list[_Kind]] = defaultdict(list)
        for kind in self.kinds if self.pipelines else ():
            kinds[domain_of(kind.node, domain)].append(kind)
        for name, some in kinds.items():
            for pipeline in self.pipelines:
                touched = self.model.new_bool_var(f"touches {name}")
                for lies in pipeline.touches(some):
                    self.model.add(lies <= touched)
                found[name].append((self._rate(pipeline), touched))
        return list(found.values())

    def _ceilings(self) -> None:
        fleet = self.planned.problem.fleet
        self.cost = total(
            fleet.price_micros(fill.kind.node) * fill.count
            for fill in self.fills
            if not fill.room.used
        )
        used = {*self.planned.on_gpu, *self.planned.kept} if fleet.limits != Limits() else set()
        if fleet.limits.price_micros_per_hour is not None:
            now = sum(fleet.price_micros(g.node) for g in self.planned.gpus if g.id in used)
            self.model.add(self.cost <= fleet.limits.price_micros_per_hour - now)
        if fleet.limits.rack_power_w is None:
            return
        watts = Counter[str]()
        for gpu in self.planned.gpus:
            if gpu.id in used:
                watts[gpu.node.rack_domain] += gpu.gpu.tdp_w or 0
        more: dict[str, list[Expr]] = defaultdict(list)
        for fill in self.fills:
            if not fill.room.used:
                node = fill.kind.node
                more[node.rack_domain].append((node.gpu.tdp_w or 0) * fill.count)
        for rack, some in more.items():
            self.model.add(total(some) <= fleet.limits.rack_power_w - watts[rack])

    # --- answers

    def solve(self) -> Any:
        """The cheapest, proved; then at that price few replicas, as far as a short look goes."""
        status = self._solved(self.cost, EFFORT)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return status
        self.model.add(self.cost <= self.at(self.cost))
        self._hint(self.values)
        self._solved(self.running, SHORTEST_EFFORT)
        return status

    def reaches(self, low: Found) -> bool:
        """Whether room for all of it costs no more; then with few replicas, by a short look."""
        self.model.add(self.cost <= low.price)
        here: dict[str, list[Expr]] = defaultdict(list)
        for fill in self.fills:
            if not fill.room.used:
                node = fill.kind.node
                here[node.name if node.name in low.switched else node.rack_domain].append(
                    fill.count
                )
        if self.apart and low.switched and low.switched.keys() <= here.keys():
            for name, some in here.items():
                self.model.add(total(some) == low.switched.get(name, 0))
        status = self._solved(self.running, SHORTEST_EFFORT)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            status = self._solved(self.running, SHORT_EFFORT)
        return status in (cp_model.OPTIMAL, cp_model.FEASIBLE)

    def _hint(self, values: list[int]) -> None:
        self.values = values
        for index, value in enumerate(values):
            self.model.add_hint(self.model.get_int_var_from_proto_index(index), value)

    def feasible(self, effort: float = EFFORT) -> bool:
        """Whether any room for all of it was found."""
        self.solver.parameters.max_deterministic_time = effort
        return self.solver.solve(self.model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)

    def _solved(self, goal: Expr, effort: float) -> Any:
        self.solver.parameters.max_deterministic_time = effort
        self.model.minimize(goal)
        status = self.solver.solve(self.model)
        found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        self.values = list(self.solver.response_proto.solution) if found else self.values
        return status

    def at(self, expr: Expr) -> int:
        """Value of an expression in the solution kept."""
        return value_of(expr, self.values)

    def most(self) -> int:
        """The most that fits: thousandths of a request per second, or replicas."""
        for index in self.needs:
            self.model.proto.constraints[index].clear_linear()
        self.model.clear_objective()
        self.model.maximize(self.served if self.new.asked_mrps else self.running)
        self.solver.parameters.max_deterministic_time = EFFORT
        if self.solver.solve(self.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return 0
        return round(self.solver.objective_value)

    def price_micros(self) -> int:
        """What the GPUs that it switches on cost per hour."""
        return self.at(self.cost)

    def seats(self) -> list[Seat]:
        """Exact GPUs and starts, surplus copies left out."""
        found: list[Seat] = []
        for kind in self.kinds:
            free = {room: [list(some) for some in ids] for room, ids in kind.rooms.items()}
            found += self._whole(kind, free)
            for room, ids in free.items():
                left = [gpu for some in ids for gpu in some]
                for fill in self.fills:
                    if fill.kind is kind and fill.room is room and not fill.whole:
                        taken = [left.pop(0) for _ in range(self.at(fill.count))]
                        found += self._filled(kind, fill, taken)
        for pipeline in self.pipelines:
            if self.at(pipeline.count):
                gpus = tuple(sorted(self.held.pop(id(pipeline)), key=replica_order))
                found.append(Seat(self.new.name, pipeline.candidate, gpus))
        return found

    def _wanted(self, kind: _Kind, room: Room | None) -> list[Candidate]:
        return [
            p.candidate
            for p in self.places
            if p.kind is kind and p.room is room
            for _ in range(self.at(p.count))
        ]

    def _whole(self, kind: _Kind, free: dict[Room, list[list[str]]]) -> Iterator[Seat]:
        rooms = [room for room in free if is_empty(room)]
        pairs = self._pairs(kind) if kind.node.nvlink_domain == "pair" else []
        wanted: list[tuple[Candidate, int, _Pipeline | None]] = [
            (way, way.shape.gpus, None) for way in self._wanted(kind, None)
        ]
        for p in self.pipelines:
            parts = [gpus for k, _, gpus, lies in p.parts if k is kind and self.at(lies)]
            wanted += [(p.candidate, gpus, p) for gpus in parts]
        for way, size, pipeline in sorted(wanted, key=lambda w: (-w[0].shape.block, -w[1])):
            chosen: list[str] = []
            for _ in range(size // way.shape.block):
                block = way.shape.block
                chosen += pairs.pop(0) if block == 2 and pairs else _block(kind, free, rooms, block)
                for ids in (some for room in rooms for some in free[room]):
                    ids[:] = [gpu for gpu in ids if gpu not in chosen]
            if pipeline is None:
                yield Seat(self.new.name, way, tuple(chosen))
            else:
                self.held.setdefault(id(pipeline), []).extend(chosen)

    def _filled(self, kind: _Kind, fill: _Fill, gpus: list[str]) -> Iterator[Seat]:
        key = (id(kind), id(fill.room))
        if key not in self.pending:
            self.pending[key] = self._wanted(kind, fill.room)
        pending = self.pending[key]
        for gpu in gpus:
            here: list[Candidate] = []
            slots = fill.mig.added if fill.mig else fill.shares
            for size, number in slots:
                for _ in range(number):
                    fitting = [w for w in pending if size in (w.shape.profile, w.shape.share)]
                    if fitting:
                        pending.remove(fitting[0])
                        here.append(fitting[0])
            yield from self._seated(kind, fill, gpu, here)

    def _seated(self, kind: _Kind, fill: _Fill, gpu: str, here: list[Candidate]) -> Iterator[Seat]:
        if fill.mig is None:
            yield from (Seat(self.new.name, way, (gpu,)) for way in here)
            return
        assert kind.node.gpu.mig is not None
        profiles = tuple(sorted(w.shape.profile or "" for w in here))
        standing = [p for p in fill.room.kept or () if p not in fill.room.taken]
        starts = defaultdict(list)
        for placed in layout(kind.node.gpu.mig, fill.room.taken, tuple(standing), profiles):
            starts[placed.profile].append(placed)
        for way in here:
            yield Seat(self.new.name, way, (gpu,), starts[way.shape.profile or ""].pop(0))


def _block(
    kind: _Kind, free: dict[Room, list[list[str]]], rooms: list[Room], size: int
) -> list[str]:
    """So many free GPUs of one node."""
    n = next(n for n in range(kind.nodes) if sum(len(free[r][n]) for r in rooms) >= size)
    return [gpu for room in rooms for gpu in free[room][n]][:size]
