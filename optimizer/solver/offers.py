"""What every domain of a planned fleet offers to one more deployment."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import Use
from optimizer.domain.problem import capacity_mrps
from optimizer.domain.workload import Deployment
from optimizer.solver.beside import Company, Planned, Room, is_empty
from optimizer.solver.columns import (
    SharePattern,
    counted,
    domain_of,
    pin,
    share_patterns,
)
from optimizer.solver.room import (
    Domain,
    Found,
    by_count,
    cheapest,
    cheapest_apart,
    fillings,
    grouped,
    joined,
)

Offer = tuple[str, int, tuple[int, ...]]  # of a domain: its name, a GPU's price, what it gives
Table = tuple[tuple[int, ...], ...]  # by GPUs switched on, by number of replicas: the most given


@lru_cache(maxsize=65536)
def _shared(room: Use, sizes: tuple[Use, ...]) -> tuple[SharePattern, ...]:
    return share_patterns(room, sizes) or ()


def least(planned: Planned, new: Deployment, ways: Sequence[Candidate]) -> Found | str | None:
    """The least that room can cost and the nodes to look at; None: there is none.

    A word where the rules look further than this does.
    """
    if any(way.shape.stages > 1 for way in ways):
        return "pipelines over nodes"
    offers = Offers(planned, new, ways)
    asked, outlive = new.asked_mrps or new.min_replicas, bool(new.survive and new.asked_mrps)
    if outlive and new.survive == "zone":
        zones = offers.zones()
        if zones is None:
            return "looks further"
        found = cheapest_apart(zones, asked)
    else:
        domains = offers.domains()
        if domains is None:
            return "looks further"
        found = cheapest(domains, asked, outlive)
    if found is None:
        return None
    nodes = {node for name in found.names for node in offers.nodes.get(name, (name,))}
    return Found(found.price, tuple(sorted(nodes)), found.switched)


@dataclass(frozen=True, slots=True)
class Here:
    """Alike nodes and what is left on each for this deployment."""

    node: Node
    rooms: tuple[tuple[Room, int], ...]
    names: tuple[str, ...]


class Offers:
    """What is left of each node for one more deployment."""

    def __init__(self, planned: Planned, new: Deployment, ways: Sequence[Candidate]) -> None:
        self.planned, self.new = planned, new
        self.by_product: dict[str, list[Candidate]] = defaultdict(list)
        for way in ways:
            if not way.running_only:
                self.by_product[way.gpu].append(way)
        self.nodes: dict[str, tuple[str, ...]] = {}  # of domains that are not nodes
        self._known: dict[tuple[str, Room, int], tuple[int, ...]] = {}
        self._whole: dict[tuple[str, Room, int, int], Table] = {}

    # --- which nodes

    def here(self) -> Iterator[Here]:
        """Nodes by what is left of them for this deployment."""
        new, states = self.new, self.planned.ready()
        if not (new.pin or new.near or new.isolate != "none" or new.avoid):
            for state in states.alike:
                if state.node.gpu.name in self.by_product:
                    yield Here(state.node, state.rooms, state.names)
            names = [n for n in states.gpus if n in states.minding]
        else:
            names = list(states.gpus)
        alone = Company(self.planned, new)
        for name in names:
            gpus = states.gpus[name]
            if gpus[0].gpu.name not in self.by_product or not alone.welcome_on_node(name):
                continue
            rooms: dict[Room, int] = {}
            for gpu in gpus:
                room = self.planned.room(gpu, alone) if pin(new, gpu) else None
                if room is not None:
                    rooms[room] = rooms.get(room, 0) + 1
            if rooms:
                yield Here(gpus[0].node, tuple(rooms.items()), (name,))

    def domains(self) -> list[Domain] | None:
        """The domains that the rules look at, alike ones together; None: they look further."""
        new = self.new
        by_rack = new.survive == "rack" or (new.spread_rack is not None and not new.survive)
        found = self._racks(new.survive or "rack") if by_rack else self._small()
        return None if found is None or self._paired() else grouped(iter(found))

    def zones(self) -> dict[str, list[Domain]] | None:
        """The domains of each zone; None: the rules look further."""
        found = self._racks("rack") if self.new.spread_rack is not None else self._small()
        if found is None or self._paired():
            return None
        zone_of = {n.name: n.zone_domain for n in self.planned.problem.fleet.nodes}
        zones: dict[str, list[Offer]] = defaultdict(list)
        for offer in found:
            zones[zone_of[self.nodes.get(offer[0], offer)[0]]].append(offer)
        return {zone: grouped(iter(some)) for zone, some in zones.items()}

    def _small(self) -> Iterable[Offer]:
        """Nodes where a rule looks at these, else GPUs."""
        new = self.new
        host = bool(new.host_cpu_millicores or new.host_memory_mib)
        by_node = new.survive == "node" or new.spread_node is not None or host
        return self._node_domains() if by_node else self._gpu_domains()

    def _paired(self) -> bool:
        """Whether groups of two may need bridged pairs, which are not told apart here."""
        twos = {g for g, ways in self.by_product.items() if any(w.shape.gpus == 2 for w in ways)}
        return any(
            n.nvlink_domain == "pair" and n.gpu.name in twos
            for n in self.planned.problem.fleet.nodes
        )

    def _price(self, node: Node) -> int:
        return self.planned.problem.fleet.price_micros(node)

    # --- domains

    def _gpu_domains(self) -> Iterator[Offer]:
        for here in self.here():
            price = self._price(here.node)
            for room, number in here.rooms:
                gives = self._offer(here.node, room, 0)[0]
                for name in here.names:
                    label = f"{name}|{len(self.nodes)}"
                    if not is_empty(room) and gives:
                        self.nodes[label] = (name,)
                        total = gives * number if room.used else gives
                        yield label, price, (total,) if room.used else (0, gives)
                        for extra in range(0 if room.used else number - 1):
                            self.nodes[f"{label}.{extra}"] = (name,)
                            yield f"{label}.{extra}", price, (0, gives)
                    elif is_empty(room):
                        table = self._empties(here.node, room, number, 0)
                        self.nodes[label] = (name,)
                        yield label, price, tuple(row[0] for row in table)

    def _node_domains(self) -> Iterator[Offer]:
        for here in self.here():
            price, tables = self._price(here.node), dict[int, tuple[int, ...]]()
            for name in here.names:
                most = self._most(here.node, name)
                if most not in tables:
                    tables[most] = tuple(row[-1] for row in self._table(here, most))
                yield name, price, tables[most]

    def _most(self, node: Node, name: str) -> int:
        """So many replicas fit a node by its rules; 0: no such limit."""
        new, limits = self.new, []
        if new.spread_node is not None:
            limits.append(new.spread_node)
        for need, has, used in (
            (new.host_cpu_millicores, node.cpu_millicores, self.planned.cpu[name]),
            (new.host_memory_mib, node.host_memory_mib, self.planned.memory[name]),
        ):
            if need and has is not None:
                limits.append(max(0, (has - used) // need))
        return min(limits, default=0) if min(limits, default=1) else -1

    def _racks(self, kind: str) -> list[Offer] | None:
        racks: dict[str, list[tuple[str, int, Table]]] = defaultdict(list)
        rack_of = {n.name: domain_of(n, kind) for n in self.planned.problem.fleet.nodes}
        few = self.new.spread_rack or 0
        for here in self.here():
            price, tables = self._price(here.node), dict[int, Table]()
            for name in here.names:
                most = self._most(here.node, name)
                if most not in tables:
                    tables[most] = self._table(here, most if not few else min(most or few, few))
                racks[rack_of[name]].append((name, price, tables[most]))
        found: list[Offer] = []
        known: dict[object, tuple[int, ...]] = {}
        for rack, some in racks.items():
            if len({price for _, price, _ in some}) > 1:
                return None
            key = tuple(sorted(table for _, _, table in some))
            if key not in known:
                known[key] = _together([table for _, _, table in some], few)
            self.nodes[rack] = tuple(name for name, _, _ in some)
            found.append((rack, some[0][1], known[key]))
        return found

    # --- what is offered

    def _rate(self, way: Candidate) -> int:
        asked = self.new.asked_mrps
        return min(capacity_mrps(self.new, way), asked) if asked else 1

    def _offer(self, node: Node, room: Room, most: int) -> tuple[int, ...]:
        """The most one GPU gives with 0, 1, ... replicas; without a limit, at all."""
        key = (node.gpu.name, room, most)
        if key not in self._known:
            rates = list(self.fillings(node, room))
            if most:
                self._known[key] = by_count(rates, most)
            else:
                self._known[key] = (max(map(sum, rates), default=0),)
        return self._known[key]

    def fillings(self, node: Node, room: Room) -> Iterator[list[int]]:
        """Every way to fill what is left of a GPU: its replicas' rates."""
        ways = self.by_product[node.gpu.name]
        if Sharing.MIG in room.modes and node.gpu.mig is not None:
            best: dict[str, int] = {}
            for way in ways:
                if way.shape.profile is not None:
                    name = way.shape.profile
                    best[name] = max(best.get(name, 0), self._rate(way))
            if room.kept is not None:
                free = list(room.kept)
                for placed in room.taken:
                    free.remove(placed)
                patterns = [counted(p.profile for p in free if p.profile in best)]
            else:
                names = tuple(sorted(best))
                patterns = list(fillings(node.gpu.mig, room.taken, names)) if names else []
            for pattern in patterns:
                yield [best[profile] for profile, number in pattern for _ in range(number)]
        if Sharing.SHARED in room.modes:
            sizes: dict[Use, int] = {}
            for way in ways:
                if way.shape.share is not None:
                    share = way.shape.share
                    sizes[share] = max(sizes.get(share, 0), self._rate(way))
            if sizes:
                order = sorted(
                    sizes, key=lambda u: (-u.memory_mib, -u.bandwidth_mbs, -u.compute_ppm)
                )
                for shares in _shared(room.share or Use(), tuple(order)):
                    yield [sizes[share] for share, number in shares for _ in range(number)]
        if is_empty(room):
            yield from (
                [self._rate(w)]
                for w in ways
                if w.shape.sharing is Sharing.WHOLE and w.shape.gpus == 1
            )

    def _empties(self, node: Node, room: Room, number: int, most: int) -> Table:
        """Empty GPUs of a node, alone or in groups, by how many are switched on."""
        key = (node.gpu.name, room, number, most)
        if key in self._whole:
            return self._whole[key]
        single = self._offer(node, room, most)
        groups: dict[int, int] = {}
        for way in self.by_product[node.gpu.name]:
            if way.shape.sharing is Sharing.WHOLE and way.shape.gpus > 1:
                size = way.shape.gpus
                groups[size] = max(groups.get(size, 0), self._rate(way))
        table: list[tuple[int, ...]] = [(0,) * (most + 1)]
        for used in range(1, number + 1):
            rows = [joined(table[used - 1], single, most)]
            for size, rate in groups.items():
                if size <= used:
                    group = (0, rate) if most else (rate,)
                    rows.append(joined(table[used - size], group, most))
            table.append(_best(rows))
        self._whole[key] = tuple(table)
        return self._whole[key]

    def _table(self, here: Here, most: int) -> Table:
        """All of a node, by how many GPUs are switched on; ``most`` below zero: nothing fits."""
        if most < 0:
            return ((0,),)
        free: tuple[int, ...] = (0,) * (most + 1)
        table: Table = ((0,) * (most + 1),)
        for room, number in here.rooms:
            if is_empty(room):
                table = _summed(table, self._empties(here.node, room, number, most), most)
                continue
            offer = self._offer(here.node, room, most)
            if not any(offer):
                continue
            for _ in range(number):
                if room.used:
                    free = joined(free, offer, most)
                else:
                    table = _summed(table, ((0,) * (most + 1), offer), most)
        return _summed(table, (free,), most)


def _best(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    longest = max(map(len, rows))
    return tuple(max(row[min(n, len(row) - 1)] for row in rows) for n in range(longest))


def _summed(one: Table, other: Table, most: int) -> Table:
    """Two parts of a domain together, by how many GPUs are switched on in both."""
    found: list[list[tuple[int, ...]]] = [[] for _ in range(len(one) + len(other) - 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            found[i + j].append(joined(a, b, most))
    return tuple(_best(rows) for rows in found)


def _together(tables: Sequence[Table], most: int) -> tuple[int, ...]:
    """A rack's nodes together, by GPUs switched on; ``most`` replicas in all, 0: any number."""
    if not most:
        tables = [tuple((row[-1],) for row in table) for table in tables]
    whole: Table = ((0,) * (most + 1),)
    for table in tables:
        whole = _summed(whole, table, most)
    return tuple(row[-1] for row in whole)
