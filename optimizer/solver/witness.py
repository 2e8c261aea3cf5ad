"""A placement of all that hard rules demand, built in one pass: the proof that they do not clash.

Each replica lies on GPUs that nobody else uses, so who may lie beside whom hardly matters. That
wastes room and is quick: where it succeeds nothing clashes, and where it fails nothing is known.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import Gpu
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import domain_of, fixed_layout

WAYS_TRIED = 3  # on each product, the cheapest first


@dataclass(slots=True)
class _Ground:
    """A node and what is left of it."""

    node: Node
    price: int
    free: list[str] = field(default_factory=list)
    cut: dict[str, Counter[str]] = field(default_factory=dict)  # fixed instances by GPU
    sliceable: bool = True  # whether free GPUs may be cut
    cpu: int | None = None
    memory: int | None = None
    company: list[tuple[str, bool]] = field(default_factory=list)  # tenants, who wants it alone


@dataclass(frozen=True, slots=True)
class _Option:
    """A way to run it, ``each`` so many replicas to a GPU of their own."""

    way: Candidate
    each: int


@dataclass(slots=True)
class _Taken:
    """One GPU or group that was taken, with the replicas on it."""

    ground: _Ground
    gpus: tuple[str, ...]
    replicas: int
    cut: Counter[str] | None


class Witness:
    """The fleet, filled deployment by deployment."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.price = 0  # micros per hour, of what is taken
        self.watts: Counter[str] = Counter()  # by rack
        self.grounds = list(self._grounds())
        self._known: dict[tuple[str, str], list[list[_Ground]]] = {}

    def _grounds(self) -> Iterator[_Ground]:
        fixed = fixed_layout(self.problem)
        for node in self.problem.fleet.nodes:
            ground = _Ground(
                node,
                self.problem.fleet.price_micros(node),
                sliceable=Sharing.MIG in node.sharing and not node.layouts_fixed,
                cpu=node.cpu_millicores,
                memory=node.host_memory_mib,
            )
            for index in node.open_gpus():
                gpu = f"{node.name}/{index}"
                if fixed.get(gpu):
                    ground.cut[gpu] = Counter(placed.profile for placed in fixed[gpu])
                else:
                    ground.free.append(gpu)
            yield ground

    def place(self, d: Deployment) -> bool:
        """Whether all that is demanded of it was given room."""
        if d.near:
            return False  # who is near whom is not looked at
        return any(self._tried(d, option) is not None for option in self._options(d))

    def fits_alone(self, d: Deployment) -> bool:
        """Whether it would be given room now; nothing is taken."""
        if d.near:
            return False
        for option in self._options(d):
            taken = self._tried(d, option)
            if taken is not None:
                self._undo(d, taken)
                return True
        return False

    # --- ways

    def _options(self, d: Deployment) -> list[_Option]:
        """The cheapest of each product first, by the price of the GPUs that it would take."""
        found: dict[str, list[tuple[int, int, _Option]]] = defaultdict(list)
        grounds = {g.node.gpu.name: g for g in reversed(self.grounds)}
        for number, way in enumerate(self.problem.candidates.get(d.name, ())):
            ground = grounds.get(way.gpu)
            if ground is None or way.running_only or way.shape.stages > 1:
                continue
            if d.survive and not capacity_mrps(d, way):
                continue
            each = per_gpu(ground.node.gpu, way)
            for times in sorted({1, each} if d.survive else {each}) if each else ():
                gpus = _gpus(d, way, times)
                found[way.gpu].append((gpus * max(1, ground.price), number, _Option(way, times)))
        few = (sorted(some, key=_cost)[:WAYS_TRIED] for some in found.values())
        best = sorted((offer for some in few for offer in some), key=_cost)
        return [option for _, _, option in best]

    # --- places

    def _domains(self, d: Deployment, way: Candidate) -> list[list[_Ground]]:
        """Nodes of the product, by the domain whose loss is to be outlived."""
        kind = d.survive or "node"
        key = (way.gpu, kind)
        if key not in self._known:
            groups: dict[str, list[_Ground]] = defaultdict(list)
            for ground in self.grounds:
                if ground.node.gpu.name == way.gpu:
                    groups[domain_of(ground.node, kind)].append(ground)
            self._known[key] = list(groups.values())
        if not d.pin:
            return self._known[key]
        nodes = {name.partition("/")[0] for name in d.pin}
        some = ([g for g in group if g.node.name in nodes] for group in self._known[key])
        return [group for group in some if group]

    def _tried(self, d: Deployment, option: _Option) -> list[_Taken] | None:
        """What it takes that way; None, and nothing taken, where that is not enough."""
        taken: list[_Taken] = []
        rate, count, asked = capacity_mrps(d, option.way), 0, d.asked_mrps or 0
        lost: Counter[str] = Counter()
        racks: Counter[str] = Counter()
        nodes: Counter[str] = Counter()
        for ground in self._in_turn(d, option):
            if self._too_dear(ground, option.way.shape.gpus):
                break  # nodes of one product mostly cost the same
            name, rack = ground.node.name, ground.node.rack_domain
            room = option.each
            if d.spread_node is not None:
                room = min(room, d.spread_node - nodes[name])
            if d.spread_rack is not None:
                room = min(room, d.spread_rack - racks[rack])
            if d.replica_limit is not None:
                room = min(room, d.replica_limit - count)
            one = self._take(d, option.way, ground, room) if room > 0 else None
            if one is None:
                continue
            taken.append(one)
            count += one.replicas
            nodes[name] += one.replicas
            racks[rack] += one.replicas
            if d.survive:
                lost[domain_of(ground.node, d.survive)] += one.replicas
            left = count - max(lost.values(), default=0)
            if left * rate >= asked if d.survive else count >= d.min_replicas:
                return taken
        self._undo(d, taken)
        return None

    def _in_turn(self, d: Deployment, option: _Option) -> Iterator[_Ground]:
        """Nodes to try: one domain after the other where a loss is to be outlived, else filled up.

        A node comes again as long as it gave something.
        """
        groups = self._domains(d, option.way)
        if not d.survive:
            for ground in (g for group in groups for g in group):
                before = -1
                while before != (before := _left(ground)):
                    yield ground
            return
        while groups:
            still = []
            for group in groups:
                for ground in group:
                    before = _left(ground)
                    if before:
                        yield ground
                        if _left(ground) != before:
                            still.append(group)
                            break
            groups = still

    def _take(self, d: Deployment, way: Candidate, ground: _Ground, room: int) -> _Taken | None:
        """A GPU or group of that node, with up to so many replicas."""
        node, shape = ground.node, way.shape
        if shape.sharing not in node.sharing or not _welcome(d, ground):
            return None
        for need, left in (
            (d.host_cpu_millicores, ground.cpu),
            (d.host_memory_mib, ground.memory),
        ):
            if need and left is not None:
                room = min(room, left // need)
        if room < 1:
            return None
        pinned = None if not d.pin or node.name in d.pin else set(d.pin)
        if shape.profile is not None and ground.cut:
            for gpu, slots in ground.cut.items():
                if slots[shape.profile] and (pinned is None or gpu in pinned):
                    if self._too_hot(ground, 1):
                        return None
                    one = _Taken(ground, (gpu,), min(room, slots[shape.profile]), slots)
                    return self._booked(d, one)
        if shape.sharing is Sharing.MIG and not ground.sliceable:
            return None
        if shape.gpus == 2 and node.nvlink_domain == "pair":
            return None  # which of them are bridged is not looked at
        free = ground.free if pinned is None else [gpu for gpu in ground.free if gpu in pinned]
        if len(free) < shape.gpus or self._too_hot(ground, shape.gpus):
            return None
        replicas = 1 if shape.sharing is Sharing.WHOLE else min(room, per_gpu(node.gpu, way))
        return self._booked(d, _Taken(ground, tuple(free[: shape.gpus]), replicas, None))

    def _too_dear(self, ground: _Ground, gpus: int) -> bool:
        limit = self.problem.fleet.limits.price_micros_per_hour
        return limit is not None and self.price + ground.price * gpus > limit

    def _too_hot(self, ground: _Ground, gpus: int) -> bool:
        limit = self.problem.fleet.limits.rack_power_w
        watts = (ground.node.gpu.tdp_w or 0) * gpus
        return limit is not None and self.watts[ground.node.rack_domain] + watts > limit

    def _booked(self, d: Deployment, one: _Taken) -> _Taken:
        ground = one.ground
        if one.cut is not None:
            del ground.cut[one.gpus[0]]
        else:
            gone = set(one.gpus)
            ground.free = [gpu for gpu in ground.free if gpu not in gone]
        ground.company.append((d.tenant, d.isolate == "node"))
        self._count(d, one, -1)
        return one

    def _undo(self, d: Deployment, taken: Iterable[_Taken]) -> None:
        for one in taken:
            if one.cut is not None:
                one.ground.cut[one.gpus[0]] = one.cut
            else:
                one.ground.free = [*one.gpus, *one.ground.free]
            one.ground.company.remove((d.tenant, d.isolate == "node"))
            self._count(d, one, 1)

    def _count(self, d: Deployment, one: _Taken, sign: int) -> None:
        ground, gpus = one.ground, len(one.gpus)
        if ground.cpu is not None:
            ground.cpu += sign * d.host_cpu_millicores * one.replicas
        if ground.memory is not None:
            ground.memory += sign * d.host_memory_mib * one.replicas
        self.price -= sign * ground.price * gpus
        self.watts[ground.node.rack_domain] -= sign * (ground.node.gpu.tdp_w or 0) * gpus


def _cost(offer: tuple[int, int, _Option]) -> tuple[int, int]:
    return offer[:2]


def _left(ground: _Ground) -> int:
    return len(ground.free) + len(ground.cut)


def _welcome(d: Deployment, ground: _Ground) -> bool:
    """Rule ``isolation`` of whole nodes."""
    alone = d.isolate == "node"
    return all(tenant == d.tenant or not (alone or strict) for tenant, strict in ground.company)


def per_gpu(gpu: Gpu, way: Candidate) -> int:
    """How many replicas of that way one GPU holds."""
    shape = way.shape
    if shape.profile is not None:
        profile = gpu.mig.profile(shape.profile) if gpu.mig else None
        return profile.max_instances if profile else 0
    if shape.share is None:
        return 1
    room, share = gpu.room, shape.share
    parts = [
        room_part // part
        for part, room_part in (
            (share.memory_mib, room.memory_mib),
            (share.bandwidth_mbs, room.bandwidth_mbs),
            (share.compute_ppm, room.compute_ppm),
        )
        if part
    ]
    return min(parts, default=1)


def _gpus(d: Deployment, way: Candidate, each: int) -> int:
    """About how many GPUs it would take that way, where a domain loses ``each`` replicas."""
    rate = capacity_mrps(d, way)
    if d.survive and rate:
        return ceil_div(ceil_div(d.asked_mrps or 0, rate) + each, each) * way.shape.gpus
    return ceil_div(d.min_replicas, each) * way.shape.gpus
