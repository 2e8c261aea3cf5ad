"""What every GPU and node holds at one moment, and what stands in the way of one more replica."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.gpu import Gpu, MigProfile, PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.planning.layout import Layouts, keep_beside, legal


@dataclass(frozen=True, slots=True)
class Act:
    """Something done to a GPU before a replica can start on it."""

    gpu: str
    action: str  # create_instance | destroy_instance | set_mig_mode
    placed: PlacedProfile | None = None
    enable: bool | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """Who must leave: all of ``every``, and of each group in ``some`` enough to make room."""

    every: tuple[Replica, ...] = ()
    some: tuple[tuple[Replica, ...], ...] = ()
    never: str = ""  # why waiting is in vain

    def __bool__(self) -> bool:
        return bool(self.every or self.some or self.never)


FREE = Blocked()


@dataclass(slots=True)
class _Held:
    """One GPU: its instances and who runs in them; who runs outside MIG; whether MIG is on.

    ``node``: its node's name. ``taken``: the memory slices that replicas hold, as bits.
    """

    gpu: FleetGpu
    node: str
    by_cells: bool  # whether instances that share no slice are always legal together
    cells: "_Cells"
    taken: int = 0
    instances: dict[PlacedProfile, Replica | None] = field(default_factory=dict)
    plain: list[Replica] = field(default_factory=list)
    mig_on: bool = False

    def occupants(self) -> list[Replica]:
        inside = [r for r in self.instances.values() if r is not None]
        return [*inside, *self.plain]

    def hold(self, placed: PlacedProfile, replica: Replica | None) -> None:
        """That instance is the replica's now, or nobody's."""
        self.instances[placed] = replica
        if replica is not None:
            self.taken |= self.cells[placed]
            return
        self.taken = 0
        for one, inside in self.instances.items():
            if inside is not None:
                self.taken |= self.cells[one]


class _Cells(dict[PlacedProfile, int]):
    """The memory slices of one product's instances as bits, once asked."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu
        self.by_profile: dict[str, tuple[PlacedProfile, ...]] = {}

    def __missing__(self, placed: PlacedProfile) -> int:
        """Those of a profile nobody knows are all."""
        profile = self.gpu.mig.profile(placed.profile) if self.gpu.mig is not None else None
        known = profile is not None and placed.start in profile.starts
        slices = profile.memory_slices if profile is not None and known else 0
        self[placed] = ((1 << slices) - 1) << placed.start if slices else -1
        return self[placed]

    def of(self, name: str) -> tuple[PlacedProfile, ...]:
        """Every place of an instance of that profile."""
        if name not in self.by_profile:
            profile = self.gpu.mig.profile(name) if self.gpu.mig is not None else None
            starts = () if profile is None else profile.starts
            self.by_profile[name] = tuple(PlacedProfile(start, name) for start in starts)
        return self.by_profile[name]


class Rooms:
    """The fleet as it changes; two copies of one replica may run at once."""

    def __init__(
        self,
        problem: PlacementProblem,
        placement: Placement | None,
        layouts: Layouts,
        rebuilt: Layouts | None = None,
    ) -> None:
        # Given: GPUs are cut anew as a whole, once nobody is on them, to these layouts.
        self.rebuilt = rebuilt
        self.deployments = {d.name: d for d in problem.deployments}
        # Whether anybody minds whom it meets at all.
        self.apart = any(d.avoid or d.isolate != "none" for d in problem.deployments)
        # Deployments that take nothing of a host and may be as close as they like.
        self.easy = {
            d.name
            for d in problem.deployments
            if not (d.host_cpu_millicores or d.host_memory_mib)
            and d.spread_node is None
            and d.spread_rack is None
        }
        self.nodes = {n.name: n for n in problem.fleet.nodes}
        # Facts about products, once asked.
        self.legal: dict[tuple[object, ...], bool] = {}
        products = {n.gpu.name: n.gpu for n in problem.fleet.nodes}
        self.cells = {name: _Cells(gpu) for name, gpu in products.items()}
        by_cells = {name: _by_cells(gpu) for name, gpu in products.items()}
        self.gpus = {
            g.id: _Held(g, g.node.name, by_cells[g.gpu.name], self.cells[g.gpu.name])
            for g in problem.fleet.gpus()
        }
        # By identity: two copies of one replica may be equal.
        self.on_node: dict[str, dict[int, Replica]] = {n: {} for n in self.nodes}
        for gpu, layout in layouts.items():
            self.gpus[gpu].instances = dict.fromkeys(layout)
        for replica in placement.replicas if placement is not None else ():
            self.take(replica)
        for held in self.gpus.values():
            said = held.gpu.device.mig_enabled
            held.mig_on = bool(held.instances) if said is None else said or bool(held.instances)

    def known(self, replica: Replica) -> bool:
        """Whether all its GPUs are in the fleet."""
        if len(replica.gpus) == 1:
            return replica.gpus[0] in self.gpus
        return all(gpu in self.gpus for gpu in replica.gpus)

    def take(self, replica: Replica) -> None:
        """The replica runs there now."""
        if not self.known(replica):
            return
        for gpu in replica.gpus:
            held = self.gpus[gpu]
            if replica.mig is not None:
                held.hold(replica.mig, replica)
            else:
                held.plain.append(replica)
            self.on_node[held.node][id(replica)] = replica

    def release(self, replica: Replica) -> None:
        """The replica has stopped; its instance stands empty."""
        if not self.known(replica):
            return
        for gpu in replica.gpus:
            held = self.gpus[gpu]
            if replica.mig is not None:
                held.hold(replica.mig, None)
            else:
                held.plain.remove(replica)
            self.on_node[held.node].pop(id(replica), None)

    def blocked(self, replica: Replica) -> Blocked:
        """Who must leave before the replica can start in its place; false when nobody must."""
        if not self.known(replica):
            return Blocked(never="its GPU is not in the fleet")
        if self._plainly_free(replica):
            return FREE
        every: dict[int, Replica] = {}
        some: list[tuple[Replica, ...]] = []
        for gpu in replica.gpus:
            held = self.gpus[gpu]
            for other in self._in_the_way(held, replica):
                every[id(other)] = other
            if replica.share is not None and not self._share_fits(held, replica.share):
                some.append(tuple(r for r in held.plain if r.share is not None))
        for node in replica.nodes:
            some.extend(self._on_host(node, replica))
        if every or some:
            return Blocked(tuple(every.values()), tuple(some))
        return FREE

    def watched(self, target: Replica) -> list[str]:
        """Nodes on which a stop may make room for the target."""
        deployment = self.deployments.get(target.deployment)
        if deployment is None or deployment.spread_rack is None:
            return list(target.nodes)
        racks = {self.nodes[n].rack_domain for n in target.nodes if n in self.nodes}
        return [n.name for n in self.nodes.values() if n.rack_domain in racks]

    def _plainly_free(self, replica: Replica) -> bool:
        """Whether it runs in an instance and slices are all it asks: free ones are then enough."""
        if replica.mig is None or self.apart or self.rebuilt is not None:
            return False
        held = self.gpus[replica.gpus[0]]
        if not held.by_cells or held.plain or replica.deployment not in self.easy:
            return False
        return not held.taken & held.cells[replica.mig]

    def _in_the_way(self, held: _Held, replica: Replica) -> Iterator[Replica]:
        """Those in the same room, and those who must not be on the same GPU."""
        if replica.share is None and replica.mig is None:
            yield from held.occupants()
            return
        if replica.mig is None:
            yield from (r for r in held.occupants() if r.share is None)
        else:
            yield from held.plain
            if self._to_rebuild(held, replica.mig):
                yield from (r for r in held.instances.values() if r is not None)
            else:
                yield from self._same_slices(held, replica.mig)
        if self.apart:
            yield from (r for r in held.occupants() if self.strangers(r, replica))

    def _same_slices(self, held: _Held, placed: PlacedProfile) -> Iterator[Replica]:
        gpu = held.gpu.gpu
        if gpu.mig is None:
            return
        mine = held.cells[placed]
        inside = {p: r for p, r in held.instances.items() if r is not None}
        apart = []
        for other, replica in inside.items():
            if other == placed or mine & held.cells[other]:
                yield replica
            else:
                apart.append(other)
        if not held.by_cells and not self._legal(gpu, (*sorted(apart), placed)):
            # Together they are too many of one profile or hand out an engine twice.
            yield from (inside[p] for p in sorted(apart))

    def clash(self, gpu_id: str, one: PlacedProfile, other: PlacedProfile) -> bool:
        """Whether the two instances cannot stand on that GPU together."""
        held = self.gpus[gpu_id]
        if one == other or held.cells[one] & held.cells[other]:
            return True
        return not held.by_cells and not self._legal(held.gpu.gpu, (one, other))

    def _legal(self, gpu: Gpu, layout: tuple[PlacedProfile, ...]) -> bool:
        key = (gpu.name, *layout)
        if key not in self.legal:
            self.legal[key] = gpu.mig is not None and legal(gpu.mig, layout)
        return self.legal[key]

    def _share_fits(self, held: _Held, share: Use) -> bool:
        taken = sum((r.share for r in held.plain if r.share is not None), Use())
        return (taken + share).fits_in(held.gpu.gpu.room)

    def _on_host(self, name: str, replica: Replica) -> Iterator[tuple[Replica, ...]]:
        """Groups of which some must leave: for host room, for spread, for isolation by node."""
        here = tuple(self.on_node[name].values())
        deployment = self.deployments.get(replica.deployment)
        if deployment is None:
            return
        yield from self._too_close(name, replica, deployment)
        if self.apart:
            yield from ((r,) for r in here if self.node_strangers(r, replica))
        node = self.nodes[name]
        if not (deployment.host_cpu_millicores or deployment.host_memory_mib):
            return
        cpu = deployment.host_cpu_millicores
        memory = deployment.host_memory_mib
        for other in here:
            its = self.deployments.get(other.deployment)
            cpu += 0 if its is None else its.host_cpu_millicores
            memory += 0 if its is None else its.host_memory_mib
        if node.cpu_millicores is not None and cpu > node.cpu_millicores:
            yield here
        if node.host_memory_mib is not None and memory > node.host_memory_mib:
            yield here

    def _too_close(
        self, name: str, replica: Replica, deployment: Deployment
    ) -> Iterator[tuple[Replica, ...]]:
        """Others of its deployment where spread allows no more; its own old copy does not count."""
        rack = self.nodes[name].rack_domain
        limits = [(deployment.spread_node, [name])]
        if deployment.spread_rack is not None:
            inside = [n.name for n in self.nodes.values() if n.rack_domain == rack]
            limits.append((deployment.spread_rack, inside))
        for limit, names in limits:
            if limit is None:
                continue
            others = {
                r.id: r
                for n in names
                for r in self.on_node[n].values()
                if r.deployment == deployment.name and r.id != replica.id
            }
            if len(others) >= limit:
                yield tuple(others.values())

    def strangers(self, a: Replica, b: Replica) -> bool:
        """Whether isolation or anti-affinity keeps the two off one GPU."""
        if a.deployment == b.deployment or not self.apart:
            return False
        one, two = self.deployments.get(a.deployment), self.deployments.get(b.deployment)
        for mine, other, name in ((one, two, b.deployment), (two, one, a.deployment)):
            if mine is None:
                continue
            if mine.isolate == "gpu" or name in mine.avoid:
                return True
            if mine.isolate == "tenant" and (other is None or other.tenant != mine.tenant):
                return True
        return self.node_strangers(a, b)

    def node_strangers(self, a: Replica, b: Replica) -> bool:
        """Whether isolation by node keeps the two off one node."""
        if a.deployment == b.deployment or not self.apart:
            return False
        one, two = self.deployments.get(a.deployment), self.deployments.get(b.deployment)
        if "node" not in {
            one.isolate if one else "",
            two.isolate if two else "",
        }:
            return False
        return one is None or two is None or one.tenant != two.tenant

    def prepare(self, replica: Replica) -> list[Act]:
        """Make the place ready for a replica that nothing blocks, and say what was done."""
        acts: list[Act] = []
        for gpu in replica.gpus:
            held = self.gpus[gpu]
            if replica.mig is None:
                acts.extend(_clear(gpu, held))
            else:
                acts.extend(self._cut(gpu, held, replica.mig))
        return acts

    def _cut(self, gpu: str, held: _Held, placed: PlacedProfile) -> Iterator[Act]:
        if not held.mig_on:
            yield Act(gpu, "set_mig_mode", enable=True)
            held.mig_on = True
        table = held.gpu.gpu.mig
        if self._to_rebuild(held, placed):
            yield from self._rebuild(gpu, held, placed)
            return
        if placed in held.instances or table is None:
            return
        empty = [p for p, r in held.instances.items() if r is None]
        if held.by_cells:
            mine = held.cells[placed]
            gone = [p for p in empty if mine & held.cells[p]]
        else:
            busy = {p for p, r in held.instances.items() if r is not None}
            gone = list({*empty} - {*keep_beside(table, {*busy, placed}, empty)})
        for instance in sorted(gone):
            yield Act(gpu, "destroy_instance", instance)
            del held.instances[instance]
        yield Act(gpu, "create_instance", placed)
        held.instances[placed] = None

    def _to_rebuild(self, held: _Held, placed: PlacedProfile) -> bool:
        """Whether the whole GPU must be cut anew before that instance is used."""
        if self.rebuilt is None:
            return False
        last = self.rebuilt.get(held.gpu.id, ())
        wanted = last if placed in last else (placed,)
        return any(instance not in held.instances for instance in wanted)

    def _rebuild(self, gpu: str, held: _Held, placed: PlacedProfile) -> Iterator[Act]:
        """The whole GPU to its last layout at once; for a stop on the way to that one instance."""
        last = (self.rebuilt or {}).get(gpu, ())
        wanted = last if placed in last else (placed,)
        for instance in sorted(set(held.instances) - set(wanted)):
            yield Act(gpu, "destroy_instance", instance)
            del held.instances[instance]
        for instance in sorted(set(wanted) - set(held.instances)):
            yield Act(gpu, "create_instance", instance)
            held.instances[instance] = None

    def changes_layout(self, replica: Replica) -> bool:
        """Whether its place would have to be cut or cleared first."""
        for gpu in replica.gpus:
            held = self.gpus[gpu]
            if replica.mig is None and (held.instances or held.mig_on):
                return True
            if replica.mig is not None and replica.mig not in held.instances:
                return True
        return False

    def allows(self, deployment: Deployment, gpu: FleetGpu, sharing: Sharing) -> bool:
        """Whether a new replica may be on that GPU at all: cordon, mode and pin."""
        pinned = not deployment.pin or bool({gpu.id, gpu.node.name} & {*deployment.pin})
        return pinned and not gpu.cordoned and sharing in gpu.node.sharing


def _most_apart(profile: MigProfile) -> int:
    """How many instances of one profile share no slice."""
    count, end = 0, 0
    for start in sorted(profile.starts):
        if start >= end:
            count, end = count + 1, start + profile.memory_slices
    return count


def _by_cells(gpu: Gpu) -> bool:
    """Whether instances that share no slice are always legal together on that product."""
    profiles = gpu.mig.profiles if gpu.mig is not None else ()
    return all(not p.engines and p.max_instances >= _most_apart(p) for p in profiles)


def _clear(gpu: str, held: _Held) -> Iterator[Act]:
    for placed in sorted(held.instances):
        yield Act(gpu, "destroy_instance", placed)
    held.instances.clear()
    if held.mig_on:
        yield Act(gpu, "set_mig_mode", enable=False)
    held.mig_on = False
