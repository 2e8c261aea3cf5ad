"""From counts to GPUs on large fleets: replicas are dealt over the nodes, then conflicts swapped.

A *load* is what one or more GPUs of one node hold together: a group of whole GPUs, one GPU cut
into instances, or one GPU of shares. The counts say how many loads of which kind there are, so
only the rules that look at nodes and racks are left: ``spread``, ``host_cpu``, ``host_memory`` and
the ``isolation`` of nodes. What cannot be dealt is left out and counted as missing.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import Use
from optimizer.domain.placement import node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.workload import Deployment
from optimizer.solver.bulk import Filled
from optimizer.solver.columns import Site, avoided, domain_of
from optimizer.solver.formulation import Copies, Formulation
from optimizer.solver.scatter import scattered
from optimizer.solver.where import Seat, layout

Counted = list[tuple[Copies, int]]
Strangers = dict[str, set[str]]
Sharings = (Sharing.WHOLE, Sharing.MIG, Sharing.SHARED)
MOST_GPUS = 1024  # of one node
MOST_LOOKED_AT = 200  # nodes tried for a load before it waits for a swap


@dataclass(slots=True)
class Load:
    """Replicas that lie together on ``gpus`` GPUs of one node, by candidate.

    ``parts``: all parts of the pipeline that this is one of, itself included.
    """

    zone: int | None
    gpus: int
    held: list[tuple[Copies, str]] = field(default_factory=list)  # with the profile, or ""
    node: str | None = None
    on: tuple[int, ...] = ()
    parts: list["Load"] = field(default_factory=list)

    @property
    def deployments(self) -> Counter[str]:
        """How many replicas of each deployment it holds."""
        return Counter(c.deployment for c, _ in self.held)

    def rate_mrps(self, d: Deployment) -> int:
        """What its replicas of that deployment serve."""
        return sum(capacity_mrps(d, c.candidate) for c, _ in self.held if c.deployment == d.name)


@dataclass(slots=True)
class Ground:
    """What each node and rack holds so far."""

    problem: PlacementProblem
    deployments: dict[str, Deployment]
    nodes: dict[str, Node]
    by_node: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_rack: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    slack: Mapping[str, int] = field(default_factory=dict)  # what a loss may take (survive), mrps
    lenient: bool = False  # let rules be broken that exchanges of replicas may mend
    inside: Counter[tuple[str, str]] = field(default_factory=Counter)  # by deployment and domain
    watts: Counter[str] = field(default_factory=Counter)  # by rack
    network: Counter[str] = field(default_factory=Counter)  # MB/s by node
    cpu: Counter[str] = field(default_factory=Counter)
    memory: Counter[str] = field(default_factory=Counter)

    def fits(self, load: Load, node: Node) -> bool:
        """Whether the node may hold the load too."""
        held = load.deployments
        limit = self.problem.fleet.limits.rack_power_w
        watts = (node.gpu.tdp_w or 0) * load.gpus
        if limit is not None and self.watts[node.rack_domain] + watts > limit:
            return False
        here = self.by_node[node.name]
        cpu, memory = self.cpu[node.name], self.memory[node.name]
        for name, count in held.items():
            d = self.deployments[name]
            cpu += d.host_cpu_millicores * count
            memory += d.host_memory_mib * count
            if not self._alone(d, here) or not (self.lenient or self._apart(d, load, node)):
                return False
        link, handed = node.network_mbs, _handed_mbs(load)
        if link is not None and handed and self.network[node.name] + handed > link:
            return False
        if node.cpu_millicores is not None and cpu > node.cpu_millicores:
            return False
        return node.host_memory_mib is None or memory <= node.host_memory_mib

    def kept(self, load: Load) -> bool:
        """Whether the load is room kept free, which must find a place."""
        return any(self.deployments[c.deployment].reserve for c, _ in load.held)

    def _apart(self, d: Deployment, load: Load, node: Node) -> bool:
        """Whether few enough replicas lie in the node and its rack (``spread``, ``survive``)."""
        count = load.deployments[d.name]
        here = self.by_node[node.name][d.name]
        if d.spread_node is not None and here + count > d.spread_node:
            return False
        rack = self.by_rack[node.rack_domain][d.name]
        first = self._first(load, node, "rack")
        if d.spread_rack is not None and rack + count * first > d.spread_rack:
            return False
        return self._outlived(d, load, node)

    def _alone(self, d: Deployment, here: Counter[str]) -> bool:
        """A tenant that asks for whole nodes shares none (rule ``isolation``)."""
        for other in here:
            o = self.deployments[other]
            if here[other] and o.tenant != d.tenant and "node" in (d.isolate, o.isolate):
                return False
        return True

    def _first(self, load: Load, node: Node, kind: str) -> bool:
        """Whether no other part of its pipeline lies in that rack or zone (or node)."""
        others = [self.nodes[p.node] for p in load.parts if p is not load and p.node]
        return all(domain_of(other, kind) != domain_of(node, kind) for other in others)

    def _outlived(self, d: Deployment, load: Load, node: Node) -> bool:
        """Whether a loss of the node's domain leaves enough elsewhere (rule ``survive``)."""
        if d.name not in self.slack or not self._first(load, node, d.survive or ""):
            return True
        here = self.inside[d.name, domain_of(node, d.survive or "")]
        return here + load.rate_mrps(d) <= self.slack[d.name]

    def put(self, load: Load, node: Node, sign: int = 1) -> None:
        """Count the load in, or with ``sign`` -1 out."""
        self.watts[node.rack_domain] += sign * (node.gpu.tdp_w or 0) * load.gpus
        self.network[node.name] += sign * _handed_mbs(load)
        first = self._first(load, node, "rack")
        for name, count in load.deployments.items():
            d = self.deployments[name]
            self.by_node[node.name][name] += sign * count
            self.by_rack[node.rack_domain][name] += sign * count * first
            self.cpu[node.name] += sign * d.host_cpu_millicores * count
            self.memory[node.name] += sign * d.host_memory_mib * count
            if name in self.slack and self._first(load, node, d.survive or ""):
                place = (name, domain_of(node, d.survive or ""))
                self.inside[place] += sign * load.rate_mrps(d)


def _handed_mbs(load: Load) -> int:
    """What a part of a pipeline hands to others over its node's network."""
    return load.held[0][0].candidate.network_mbs if len(load.parts) > 1 else 0


def deal(
    f: Formulation,
    values: list[int],
    fillings: list[Filled],
    problem: PlacementProblem | None = None,
) -> list[Seat]:
    """Seats of all replicas that the counts ask for, as far as the rules let them lie somewhere.

    ``problem``: the one to deal for, where the formulation's is without some of its pins.
    """
    problem = problem or f.problem
    apart = _strangers(problem)
    ground = Ground(
        problem,
        {d.name: d for d in problem.deployments},
        {n.name: n for n in problem.fleet.nodes},
        slack=_slack(f, values),
    )
    seats: list[Seat] = []
    copies: dict[tuple[int, Sharing], list[tuple[Copies, int]]] = defaultdict(list)
    for c in f.copies:
        if not c.parts and (count := values[c.count.index]):
            copies[c.site, c.candidate.shape.sharing].append((c, count))
    dealers = [_Dealer(ground, site) for site in f.sites]
    staged = _Pipelines(f, values, dealers)
    for s, site in enumerate(f.sites):  # what takes more of a node than a stage comes before
        large = [g for g in _groups(copies[s, Sharing.WHOLE]) if g.gpus > staged.block]
        seats += [seat for load in dealers[s].run(large) for seat in _seats(site, load)]
    seats += staged.run()
    for s, site in enumerate(f.sites):
        whole, mig, shared = (copies[s, mode] for mode in Sharings)
        loads = [
            *(group for group in _groups(whole) if group.gpus <= staged.block),
            *_cut(f, s, values, mig, apart),
            *_packed(f, s, values, fillings, shared, apart),
        ]
        placed = dealers[s].run(loads)
        seats += [seat for load in placed for seat in _seats(site, load)]
    return _near_enough(problem, scattered(problem, seats))


def _strangers(problem: PlacementProblem) -> Strangers:
    """Who may not lie on one GPU with whom: who avoids whom, and who is pinned elsewhere."""
    found = {name: set(others) for name, others in avoided(problem).items()}
    pinned = [d for d in problem.deployments if len(d.pin) == 1]
    for d in pinned:
        elsewhere = {o.name for o in pinned if o.pin != d.pin}
        found[d.name] = found.get(d.name, set()) | elsewhere
    return found


def _slack(f: Formulation, values: list[int]) -> dict[str, int]:
    """What deployments that outlive a loss serve above what is asked."""
    asking = {d.name: d for d in f.problem.deployments if d.survive and d.asked_mrps}
    found = {name: -(d.asked_mrps or 0) for name, d in asking.items()}
    for name, d in asking.items():
        for c in f.of(name):
            found[name] += capacity_mrps(d, c.candidate) * values[c.count.index]
    return found


def _near_enough(problem: PlacementProblem, seats: list[Seat]) -> list[Seat]:
    """Rule ``affinity``: without the replicas whose node lacks one that they want near."""
    near = {d.name: d.near for d in problem.deployments if d.near}
    while near:
        on_node: dict[str, set[str]] = defaultdict(set)
        for seat in seats:
            for node in nodes_of(seat):
                on_node[node].add(seat.deployment)
        kept = [
            seat
            for seat in seats
            if all(
                any(wanted in on_node[node] for node in nodes_of(seat))
                for wanted in near.get(seat.deployment, ())
            )
        ]
        if len(kept) == len(seats):
            break
        seats = kept
    return seats


def _groups(copies: Counted) -> Iterator[Load]:
    for c, count in copies:
        for _ in range(count):
            yield Load(None, c.candidate.shape.gpus, [(c, "")])


def _cut(
    f: Formulation, s: int, values: list[int], copies: Counted, apart: Strangers
) -> Iterator[Load]:
    """GPUs cut into instances; slots are dealt so that a deployment's replicas lie apart."""
    loads: list[Load] = []
    slots: dict[tuple[int, str, str], list[tuple[int, Load]]] = defaultdict(list)
    for filling in f.fillings:
        if filling.at[0] != s or filling.mig is None:
            continue
        for _ in range(values[filling.count.index]):
            load = Load(filling.at[1], 1)
            loads.append(load)
            for profile, number in filling.mig.added:
                key = (filling.at[1], filling.colour, profile)
                slots[key] += [(turn, load) for turn in range(number)]
    queues = {
        key: deque(load for _, load in sorted(pairs, key=lambda pair: pair[0]))
        for key, pairs in slots.items()
    }
    for c, count in copies:
        profile = c.candidate.shape.profile or ""
        for _ in range(count):
            slot = _pop(queues[c.zone or 0, c.colour or "", profile], c.deployment, apart)
            if slot is not None:
                slot.held.append((c, profile))
    return iter([load for load in loads if load.held])


def _packed(
    f: Formulation,
    s: int,
    values: list[int],
    fillings: list[Filled],
    copies: Counted,
    apart: Strangers,
) -> Iterator[Load]:
    """GPUs of shares: by pattern, or by what filled the pool."""
    slots: dict[tuple[int, str, Use], deque[Load]] = defaultdict(deque)
    loads: list[Load] = []

    def add(zone: int, colour: str, some: Iterable[tuple[Use, int]], times: int) -> None:
        for _ in range(times):
            load = Load(zone, 1)
            loads.append(load)
            for share, count in some:
                slots[zone, colour, share].extend([load] * count)

    for filling in f.fillings:
        if filling.at[0] == s and filling.shares is not None:
            add(filling.at[1], filling.colour, filling.shares, values[filling.count.index])
    for pool, filled in zip(f.pools, fillings, strict=True):
        if pool.site == s:
            for counts, times in filled:
                some = [(pool.wanted[size][0], count) for size, count in counts]
                add(pool.zone, pool.colour, some, times)
    for c, count in copies:
        room = slots[c.zone or 0, c.colour or "", c.candidate.shape.share or Use()]
        for _ in range(count):
            slot = _pop(room, c.deployment, apart)
            if slot is not None:
                slot.held.append((c, ""))
    yield from (load for load in loads if load.held)


def _pop(queue: deque[Load], name: str, apart: dict[str, set[str]]) -> Load | None:
    """The next slot on a GPU with nobody whom the deployment avoids; None if there is none."""
    for step, load in enumerate(queue):
        if apart.get(name, set()).isdisjoint(c.deployment for c, _ in load.held):
            del queue[step]
            return load
    return None


class _Dealer:
    """Deals the loads of one site to its nodes."""

    def __init__(self, ground: Ground, site: Site) -> None:
        self.ground, self.site = ground, site
        self.barred = [zone.barred for zone in site.zones]
        self.free: dict[str, list[tuple[int, int]]] = {n.name: [] for n in site.nodes}
        for z, zone in enumerate(site.zones):
            for cell in zone.cells:
                for gpu in cell.gpus:
                    node, _, index = gpu.rpartition("/")
                    self.free[node].append((int(index), z))
        for gpus in self.free.values():
            gpus.sort()
        self.order = [n for n in site.nodes if self.free[n.name]]
        # Nodes by how many GPUs are free; dicts as sets that keep their order.
        self.by_free: dict[int, dict[str, None]] = defaultdict(dict)
        for n in self.order:
            self.by_free[len(self.free[n.name])][n.name] = None
        self.turn = 0

    def run(self, loads: list[Load]) -> list[Load]:
        """Largest first; groups fill nodes up, single GPUs go round the nodes."""
        placed: list[Load] = []
        waiting: list[Load] = []
        for load in sorted(
            loads,
            key=lambda load: (not self._at_home(load), -load.gpus, not self.ground.kept(load)),
        ):
            if self._at_home(load):
                done = self._anywhere(load)
            else:
                done = self._fill_up(load) if load.gpus > 1 else self._next_round(load)
            (placed if done else waiting).append(load)
        for load in waiting:
            if self._anywhere(load) or self._by_swap(load, placed) or self._crowded(load):
                placed.append(load)
        return placed

    def _crowded(self, load: Load) -> bool:
        """Wherever there is room: exchanges of replicas may bring them apart later."""
        self.ground.lenient = True
        done = self._anywhere(load)
        self.ground.lenient = False
        return done

    def _gpus_for(self, load: Load, node: Node) -> tuple[int, ...]:
        """GPUs of the node that the load may take now; none when they do not do."""
        names = [c.deployment for c, _ in load.held]
        pinned = [name for name in names if self.ground.deployments[name].pin]
        here = [
            index
            for index, z in self.free[node.name]
            if (z == load.zone or (load.zone is None and not self.site.zones[z].sliced))
            and not any(name in self.barred[z] for name in names)
            and all(self._may(name, node, index) for name in pinned)
        ]
        if node.nvlink_domain == "pair":
            return _on_pairs(here, load.gpus, load.held[0][0].candidate.shape.block)
        return tuple(here[: load.gpus]) if len(here) >= load.gpus else ()

    def _may(self, name: str, node: Node, index: int) -> bool:
        """Rule ``pin``, where the formulation knows nothing of it."""
        wanted = self.ground.deployments[name].pin
        return node.name in wanted or f"{node.name}/{index}" in wanted

    def _at_home(self, load: Load) -> bool:
        """Whether a replica of it may lie on one node or GPU alone."""
        return any(len(self.ground.deployments[c.deployment].pin) == 1 for c, _ in load.held)

    def roomy(self, gpus: int) -> Iterator[Node]:
        """Nodes with so many free GPUs, the fullest first, a few of each."""
        for size in sorted(size for size in self.by_free if size >= gpus):
            for name in list(islice(self.by_free[size], MOST_LOOKED_AT)):
                yield self.ground.nodes[name]

    def put(self, load: Load, node: Node) -> list[tuple[int, int]] | None:
        """Put it there; what was free there before, or None where it does not fit."""
        before = self.free[node.name]
        return before if self._try(load, node) else None

    def take_back(self, load: Load, before: list[tuple[int, int]]) -> None:
        """Undo a ``put``."""
        node = self.ground.nodes[load.node or ""]
        self.ground.put(load, node, -1)
        load.node = None
        self._set_free(node, before)

    def _try(self, load: Load, node: Node) -> bool:
        on = self._gpus_for(load, node)
        if not on or not self.ground.fits(load, node):
            return False
        self._place(load, node, on)
        return True

    def _place(self, load: Load, node: Node, on: tuple[int, ...]) -> None:
        load.node, load.on = node.name, on
        self._set_free(node, [pair for pair in self.free[node.name] if pair[0] not in on])
        self.ground.put(load, node)

    def _set_free(self, node: Node, gpus: list[tuple[int, int]]) -> None:
        self.by_free[len(self.free[node.name])].pop(node.name, None)
        self.by_free[len(gpus)][node.name] = None
        self.free[node.name] = gpus

    def _lift(self, load: Load, zones: dict[int, int]) -> None:
        node = self.ground.nodes[load.node or ""]
        self.ground.put(load, node, -1)
        freed = [*self.free[node.name], *((i, zones[i]) for i in load.on)]
        self._set_free(node, sorted(freed))
        load.node = None

    def _fill_up(self, load: Load) -> bool:
        """The fullest node that still has room for the group."""
        looked_at = 0
        for size in sorted(self.by_free):
            if size < load.gpus:
                continue
            for name in list(islice(self.by_free[size], MOST_LOOKED_AT)):
                if self._try(load, self.ground.nodes[name]):
                    return True
                looked_at += 1
                if looked_at >= MOST_LOOKED_AT:
                    return False
        return False

    def _next_round(self, load: Load) -> bool:
        """The next node in turn that takes it."""
        for step in range(min(len(self.order), MOST_LOOKED_AT)):
            node = self.order[(self.turn + step) % len(self.order)]
            if self.free[node.name] and self._try(load, node):
                self.turn = (self.turn + step + 1) % len(self.order)
                return True
        return False

    def _anywhere(self, load: Load) -> bool:
        return any(self._try(load, node) for node in self.order if self.free[node.name])

    def _by_swap(self, load: Load, placed: list[Load]) -> bool:
        """Take the place of another load of as many GPUs that can go where there is room."""
        zones = {
            (node.name, int(gpu.rpartition("/")[2])): z
            for node in self.order
            for z, zone in enumerate(self.site.zones)
            for cell in zone.cells
            for gpu in cell.gpus
            if gpu.startswith(node.name + "/")
        } if len(self.site.zones) > 1 else {}  # fmt: skip
        roomy = [n for n in self.order if len(self.free[n.name]) >= load.gpus][:8]
        for other in placed:
            if other.gpus != load.gpus or other.node is None:
                continue
            node, on = self.ground.nodes[other.node], other.on
            here = {i: zones.get((node.name, i), 0) for i in on}
            self._lift(other, here)
            if self._try(load, node):
                if any(self._try(other, n) for n in roomy):
                    return True
                taken = {i: zones.get((node.name, i), 0) for i in load.on}
                self._lift(load, taken)
            self._place(other, node, on)
        return False


class _Pipelines:
    """Deals pipelines over the nodes of all sites, each in as few nodes as it may."""

    def __init__(self, f: Formulation, values: list[int], dealers: list[_Dealer]) -> None:
        self.dealers = dealers
        self.wanted = [
            (c, values[c.count.index]) for c in f.copies if c.parts and values[c.count.index]
        ]
        self.wanted.sort(key=lambda w: (-w[0].candidate.shape.block, -w[0].candidate.shape.gpus))
        self.block = max((c.candidate.shape.block for c, _ in self.wanted), default=MOST_GPUS)
        # GPUs that the counts give each in each site.
        self.given: dict[int, Counter[int]] = {id(c): Counter() for c, _ in self.wanted}
        for c, _ in self.wanted:
            for part in c.parts:
                self.given[id(c)][part.site] += part.gpus * values[part.count.index]

    def run(self) -> list[Seat]:
        """Seats of all that find places."""
        found = (self._seat(c) for c, count in self.wanted for _ in range(count))
        return [seat for seat in found if seat is not None]

    def _seat(self, c: Copies) -> Seat | None:
        shape = c.candidate.shape
        for of in (n for n in range(1, shape.stages + 1) if shape.stages % n == 0):
            parts = [Load(None, shape.gpus // of, [(c, "")]) for _ in range(of)]
            for part in parts:
                part.parts = parts
            if self._lie(c, parts):
                gpus = [(part.node or "", i) for part in parts for i in part.on]
                return Seat(c.deployment, c.candidate, tuple(f"{n}/{i}" for n, i in sorted(gpus)))
        return None

    def _lie(self, c: Copies, parts: list[Load]) -> bool:
        """Find a node for each part; all or none."""
        done: list[tuple[int, Load, list[tuple[int, int]]]] = []
        for part in parts:
            spot = self._spot(c, part)
            if spot is None:
                for s, other, before in reversed(done):
                    self.dealers[s].take_back(other, before)
                    self.given[id(c)][s] += other.gpus
                return False
            done.append((spot[0], part, spot[1]))
            self.given[id(c)][spot[0]] -= part.gpus
        return True

    def _spot(self, c: Copies, part: Load) -> tuple[int, list[tuple[int, int]]] | None:
        taken = {other.node for other in part.parts}
        for s, left in self.given[id(c)].items():
            for node in self.dealers[s].roomy(part.gpus) if left >= part.gpus else ():
                if node.name not in taken:
                    before = self.dealers[s].put(part, node)
                    if before is not None:
                        return s, before
        return None


def nodes_of(seat: Seat) -> list[str]:
    """The nodes that a replica touches there."""
    return sorted({node_of(gpu) for gpu in seat.gpus})


def _on_pairs(free: list[int], size: int, block: int) -> tuple[int, ...]:
    """GPUs where bridged pairs matter: two together are a pair, one spares the pairs."""
    whole = [(i, i + 1) for i in free if i % 2 == 0 and i + 1 in free]
    if block == 2:
        return (
            tuple(i for pair in whole[: size // 2] for i in pair) if 2 * len(whole) >= size else ()
        )
    if size > 1:
        return tuple(free[:size]) if len(free) >= size else ()
    inside = {i for pair in whole for i in pair}
    single = [i for i in free if i not in inside] or free
    return tuple(single[:1])


def _seats(site: Site, load: Load) -> Iterator[Seat]:
    gpus = tuple(f"{load.node}/{index}" for index in load.on)
    profiles = tuple(sorted(profile for _, profile in load.held if profile))
    starts = defaultdict(list)
    if profiles and site.gpu.mig is not None:
        kept = site.zones[load.zone or 0].layout or ()
        for placed in layout(site.gpu.mig, (), kept, profiles):
            starts[placed.profile].append(placed)
    for c, profile in load.held:
        candidate: Candidate = c.candidate
        yield Seat(c.deployment, candidate, gpus, starts[profile].pop(0) if profile else None)
