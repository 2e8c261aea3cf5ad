"""A planned fleet, read once: what is left of each GPU, and who may lie beside whom."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from optimizer.domain.fleet import FleetGpu, Node, Sharing
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica, node_of
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import avoided, cordon, fixed_layout
from optimizer.solver.measure import candidates_of


@dataclass(frozen=True, slots=True)
class Room:
    """What one GPU has left. ``taken`` instances stay; ``kept``: its layout is fixed to these."""

    used: bool
    modes: tuple[Sharing, ...]
    taken: tuple[PlacedProfile, ...] = ()
    kept: tuple[PlacedProfile, ...] | None = None
    share: Use | None = None  # of a shared or an empty GPU


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned fleet, read once: who is on each GPU, what is left of each node."""

    problem: PlacementProblem
    placement: Placement
    gpus: tuple[FleetGpu, ...]
    on_gpu: Mapping[str, list[Replica]]
    on_node: Mapping[str, set[str]]
    kept: Mapping[str, list[PlacedProfile | None]]
    fixed: Mapping[str, tuple[PlacedProfile, ...]]
    cpu: Counter[str]
    memory: Counter[str]
    network: Counter[str]  # MB/s that pipelines over several nodes hand over
    states: list["States"] = field(default_factory=list)  # none yet, or one

    @classmethod
    def of(cls, problem: PlacementProblem, placement: Placement) -> "Planned":
        """Index a placement."""
        names = {d.name: d for d in problem.deployments}
        on_gpu: dict[str, list[Replica]] = defaultdict(list)
        on_node: dict[str, set[str]] = defaultdict(set)
        kept: dict[str, list[PlacedProfile | None]] = defaultdict(list)
        cpu, memory, network = Counter[str](), Counter[str](), Counter[str]()
        way_of = candidates_of(problem)
        for replica in placement.replicas:
            for gpu in replica.gpus:
                on_gpu[gpu].append(replica)
            for node in replica.nodes:
                on_node[node].add(replica.deployment)
                cpu[node] += names[replica.deployment].host_cpu_millicores
                memory[node] += names[replica.deployment].host_memory_mib
            way = way_of(replica) if len(replica.nodes) > 1 else None
            network.update(dict.fromkeys(replica.nodes, way.network_mbs if way else 0))
        for piece in placement.reserved:
            for gpu in piece.gpus:
                kept[gpu].append(piece.mig)
        gpus = tuple(problem.fleet.gpus())
        fixed = fixed_layout(problem)
        return cls(problem, placement, gpus, on_gpu, on_node, kept, fixed, cpu, memory, network)

    def room(self, gpu: FleetGpu, alone: "Company") -> Room | None:
        """What is left of a GPU for the deployment; None: it may not lie there at all."""
        if not alone.welcome(self.on_gpu.get(gpu.id, []), bool(self.kept.get(gpu.id))):
            return None
        return self.left(gpu)

    def left(self, gpu: FleetGpu) -> Room | None:
        """What is left of a GPU, whoever asks; None: it is held whole."""
        here = self.on_gpu.get(gpu.id, [])
        pieces = self.kept.get(gpu.id, [])
        fixed = self.fixed.get(gpu.id)
        if any(mig is None for mig in pieces):
            return None
        modes = tuple(m for m in gpu.node.sharing if not fixed or m is Sharing.MIG)
        if fixed == ():
            modes = tuple(m for m in modes if m is not Sharing.MIG)
        if not here and not pieces:
            return Room(False, modes, kept=fixed or None, share=gpu.gpu.room)
        held = [r.mig for r in here if r.mig] + [mig for mig in pieces if mig]
        if len(held) == len(here) + len(pieces):
            return Room(True, (Sharing.MIG,), tuple(sorted(held)), fixed or None)
        shares = [r.share for r in here if r.share]
        if len(shares) < len(here):
            return None  # held whole
        used = sum(shares, Use())
        whole = gpu.gpu.room
        left = Use(
            whole.memory_mib - used.memory_mib,
            whole.bandwidth_mbs - used.bandwidth_mbs,
            whole.compute_ppm - used.compute_ppm,
        )
        return Room(True, (Sharing.SHARED,), share=left)

    def ready(self) -> "States":
        """The fleet's nodes by what is left of them, looked through once."""
        if not self.states:
            self.states.append(States.of(self))
        return self.states[0]


@dataclass(frozen=True, slots=True)
class State:
    """Alike nodes: the same product, price and rooms left."""

    node: Node
    rooms: tuple[tuple[Room, int], ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class States:
    """Nodes by state, and apart from these the nodes where somebody minds company."""

    alike: tuple[State, ...]
    gpus: Mapping[str, tuple[FleetGpu, ...]]
    minding: frozenset[str]

    @classmethod
    def of(cls, planned: Planned) -> "States":
        """Look through a planned fleet."""
        apart = avoided(planned.problem)
        touchy = {d.name for d in planned.problem.deployments if d.isolate != "none"} | set(apart)
        gpus: dict[str, list[FleetGpu]] = defaultdict(list)
        for gpu in planned.gpus:
            if cordon(gpu):
                gpus[gpu.node.name].append(gpu)
        found: dict[object, tuple[Node, list[str]]] = {}
        minding = {name for name, here in planned.on_node.items() if here & touchy}
        for name, some in gpus.items():
            node = some[0].node
            rooms = Counter(r for gpu in some if (r := planned.left(gpu)) is not None)
            price = planned.problem.fleet.price_micros(node)
            key = (node.gpu.name, price, node.nvlink_domain == "pair", frozenset(rooms.items()))
            if name not in minding and rooms:
                found.setdefault(key, (node, []))[1].append(name)
        alike = tuple(
            State(node, tuple(sorted(key[3], key=repr)), tuple(names))  # type: ignore[index]
            for key, (node, names) in found.items()
        )
        return cls(alike, {n: tuple(some) for n, some in gpus.items()}, frozenset(minding))


def is_empty(room: Room) -> bool:
    """Whether nothing is on a GPU that may be held whole."""
    return Sharing.WHOLE in room.modes and not room.used


class Company:
    """Who may lie beside whom (rules isolation, anti_affinity, affinity)."""

    def __init__(self, planned: Planned, new: Deployment) -> None:
        self.planned, self.new = planned, new
        problem = planned.problem
        self.names = {d.name: d for d in problem.deployments}
        both = replace(problem, deployments=(*problem.deployments, new))
        self.apart = avoided(both).get(new.name, set())

    def welcome(self, here: Sequence[Replica], kept: bool) -> bool:
        """Whether those on a GPU bear the deployment beside them, and it bears them."""
        if kept and self.new.isolate != "none":
            return False
        if here and self.new.isolate == "gpu":
            return False
        others = {r.deployment for r in here}
        if others & self.apart:
            return False
        return all(self._bears(self.names[name], ("tenant", "node", "gpu")) for name in others)

    def _bears(self, other: Deployment, kinds: tuple[str, ...]) -> bool:
        if other.isolate == "gpu" and "gpu" in kinds:
            return False
        strict = other.isolate in kinds or self.new.isolate in kinds
        return not strict or other.tenant == self.new.tenant

    def welcome_on_node(self, node: str) -> bool:
        """Whether the node holds whom it wants near, and nobody who wants the node alone."""
        here = self.planned.on_node.get(node, set())
        if not here.issuperset(self.new.near):
            return False
        if self.new.isolate == "node" and any(node_of(gpu) == node for gpu in self.planned.kept):
            return False
        return all(self._bears(self.names[name], ("node",)) for name in here)
