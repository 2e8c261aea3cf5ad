"""Interchangeable GPUs and the ways each can be filled: the columns of the formulation.

A *site* is a set of alike nodes (one node, in the fine view). Its GPUs fall into *zones* (the same
deployments are barred by pins, the same layout is fixed) and those into *cells* (they hold the
same replicas now). How a
GPU may be filled is enumerated: MIG multisets and share patterns are columns, never booleans per
slot, so the size follows the variety of the fleet and not its size.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from optimizer.domain.config import Candidate, Shape
from optimizer.domain.fleet import Fleet, FleetGpu, Node, Sharing
from optimizer.domain.gpu import Gpu, MigTable, PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment

OPEN = "open"
MOST_PATTERNS = 4_000
MOST_SIZES = 60
MOST_SHADES = 8

Multiset = tuple[tuple[str, int], ...]
Layout = tuple[PlacedProfile, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """GPUs that are alike in every way that matters, with what each holds now.

    Only a cell of one GPU holds anything: ``replicas`` that may stay, each with the candidate it
    runs as, and all ``standing`` MIG instances, empty ones included.
    """

    gpus: tuple[str, ...]
    replicas: tuple[tuple[Replica, Candidate], ...] = ()
    standing: tuple[PlacedProfile, ...] = ()

    @property
    def bare(self) -> bool:
        """Whether nothing is here that could stay or would have to go."""
        return not self.replicas and not self.standing


@dataclass(frozen=True, slots=True)
class Zone:
    """Cells of a site that bar the same deployments.

    ``layout``: the MIG instances that its GPUs keep (rule ``fixed_layout``); None: free to change.
    """

    barred: frozenset[str]
    cells: tuple[Cell, ...]
    layout: tuple[PlacedProfile, ...] | None = None

    @property
    def sliced(self) -> bool:
        """Whether its GPUs must stay cut as they are, so that nothing may take them whole."""
        return bool(self.layout)

    def bars(self, deployment: str | None) -> bool:
        """Whether the deployment (None: one that no pin bars) may not take these GPUs whole."""
        return self.sliced or deployment in self.barred


@dataclass(frozen=True, slots=True)
class Site:
    """Alike nodes: same product, price, modes, host room and zones."""

    nodes: tuple[Node, ...]
    zones: tuple[Zone, ...]
    price_micros: int

    @property
    def gpu(self) -> Gpu:
        """The product of its nodes."""
        return self.nodes[0].gpu

    @property
    def name(self) -> str:
        """The first node's name, and how many more there are."""
        more = f"+{len(self.nodes) - 1}" if len(self.nodes) > 1 else ""
        return self.nodes[0].name + more

    @property
    def gpus(self) -> int:
        """GPUs that may be used."""
        return sum(len(cell.gpus) for zone in self.zones for cell in zone.cells)

    def groups(self, size: int) -> int:
        """How many groups of ``size`` whole GPUs its nodes hold at most, if nothing else does."""
        usable: dict[str, list[int]] = {node.name: [] for node in self.nodes}
        for zone in self.zones:
            for cell in zone.cells if not zone.sliced else ():
                for gpu in cell.gpus:
                    node, _, index = gpu.rpartition("/")
                    usable[node].append(int(index))
        return sum(_groups_in(node, sorted(usable[node.name]), size) for node in self.nodes)


def _groups_in(node: Node, usable: list[int], size: int) -> int:
    if size == 2 and node.nvlink_domain == "pair":
        return len(pairs(usable))
    return len(usable) // size


def pairs(usable: Iterable[int]) -> list[tuple[int, int]]:
    """NVLink-bridged pairs (0, 1), (2, 3), ... of which both GPUs are usable."""
    present = set(usable)
    return [(i, i + 1) for i in sorted(present) if i % 2 == 0 and i + 1 in present]


def nodes_by_name(fleet: Fleet) -> dict[str, Node]:
    """Index of the fleet's nodes."""
    return {node.name: node for node in fleet.nodes}


def pin(deployment: Deployment, gpu: FleetGpu) -> bool:
    """A pinned deployment runs only on the nodes and GPUs that it names."""
    return not deployment.pin or gpu.node.name in deployment.pin or gpu.id in deployment.pin


def cordon(gpu: FleetGpu) -> bool:
    """Nothing runs on a cordoned GPU or node."""
    return not gpu.cordoned


def domain_of(node: Node, kind: str) -> str:
    """The node, rack or zone that a node is in."""
    if kind == "node":
        return node.name
    return node.rack_domain if kind == "rack" else node.zone_domain


def coarse_sites(problem: PlacementProblem) -> tuple[Site, ...]:
    """Nodes merged wherever no rule tells them apart; what runs now is left out."""
    grouped: dict[object, list[tuple[Node, tuple[Zone, ...]]]] = {}
    linked = any(way.network_mbs for ways in problem.candidates.values() for way in ways)
    for node, zones in _zones_by_node(problem):
        shape = tuple(
            (tuple(sorted(z.barred)), z.layout, tuple(len(c.gpus) for c in z.cells)) for z in zones
        )
        alike = (
            node.gpu.name,
            problem.fleet.price_micros(node),
            node.sharing,
            node.nvlink_domain if node.nvlink_domain in ("pair", "none") else "node",
            node.cpu_millicores,
            node.host_memory_mib,
            node.network_mbs if linked else None,
            shape,
            _group_signature(node, zones),
        )
        grouped.setdefault(alike, []).append((node, zones))
    return tuple(_merge(problem, members) for members in grouped.values())


def restored(problem: PlacementProblem) -> int:
    """How many GPUs must be cut anew because what stands today is not their fixed layout."""
    if problem.current is None:
        return 0
    today: dict[str, set[PlacedProfile]] = {}
    for replica in problem.current.replicas:
        for gpu in replica.gpus:
            today.setdefault(gpu, set()).update([replica.mig] if replica.mig else [])
    for instance in problem.current.instances:
        today.setdefault(instance.gpu, set()).add(instance.placed)
    fixed = fixed_layout(problem)
    return sum(bool(set(layout) - today.get(gpu, set(layout))) for gpu, layout in fixed.items())


def _group_signature(node: Node, zones: tuple[Zone, ...]) -> int:
    site = Site((node,), zones, 0)
    return site.groups(2)


def _merge(problem: PlacementProblem, members: list[tuple[Node, tuple[Zone, ...]]]) -> Site:
    first = members[0][1]
    merged = tuple(
        Zone(
            zone.barred,
            (Cell(tuple(g for _, zones in members for c in zones[index].cells for g in c.gpus)),),
            zone.layout,
        )
        for index, zone in enumerate(first)
    )
    price = problem.fleet.price_micros(members[0][0])
    return Site(tuple(node for node, _ in members), merged, price)


def fine_sites(problem: PlacementProblem) -> tuple[Site, ...]:
    """One site a node; GPUs that hold something now are cells of their own.

    So are all of a node whose GPUs come in pairs, or are shared in more ways than patterns can say.
    """
    by_gpu = _current_by_gpu(problem)
    ways = [way for offered in problem.candidates.values() for way in offered]
    twos = any(way.shape.gpus == 2 for way in ways)
    sites = []
    for node, zones in _zones_by_node(problem):
        shares = shares_of(ways, node.gpu.name) if Sharing.SHARED in node.sharing else ()
        crowded = share_patterns(node.gpu.room, shares) is None
        single = crowded or (node.nvlink_domain == "pair" and twos)
        fine = tuple(
            Zone(
                z.barred,
                tuple(_split([g for c in z.cells for g in c.gpus], by_gpu, single)),
                z.layout,
            )
            for z in zones
        )
        sites.append(Site((node,), fine, problem.fleet.price_micros(node)))
    return tuple(sites)


def _split(gpus: list[str], by_gpu: Mapping[str, Cell], single: bool) -> Iterator[Cell]:
    bare = [g for g in gpus if g not in by_gpu]
    if single:
        yield from (Cell((g,)) for g in bare)
    elif bare:
        yield Cell(tuple(bare))
    yield from (by_gpu[g] for g in gpus if g in by_gpu)


def _zones_by_node(problem: PlacementProblem) -> Iterator[tuple[Node, tuple[Zone, ...]]]:
    pinned = [d for d in problem.deployments if d.pin]
    fixed = fixed_layout(problem)
    by_node: dict[str, dict[tuple[frozenset[str], Layout | None], list[str]]] = {}
    for gpu in problem.fleet.gpus():
        if cordon(gpu):
            barred = frozenset(d.name for d in pinned if not pin(d, gpu))
            key = (barred, fixed.get(gpu.id))
            by_node.setdefault(gpu.node.name, {}).setdefault(key, []).append(gpu.id)
    for node in problem.fleet.nodes:
        if node.name in by_node:
            zones = sorted(
                by_node[node.name].items(), key=lambda item: (sorted(item[0][0]), item[0][1] or ())
            )
            yield (
                node,
                tuple(Zone(barred, (Cell(tuple(ids)),), kept) for (barred, kept), ids in zones),
            )


def fixed_layout(problem: PlacementProblem) -> dict[str, Layout]:
    """The MIG instances that GPUs of nodes with fixed layouts keep, no more and no fewer.

    The fleet's layout, or where it gives none what stands today.
    """
    nodes = {node.name for node in problem.fleet.nodes if node.layouts_fixed}
    today: dict[str, list[PlacedProfile]] = {}
    if nodes and problem.current is not None:
        for replica in problem.current.replicas:
            if replica.mig is not None:
                today.setdefault(replica.gpus[0], []).append(replica.mig)
        for instance in problem.current.instances:
            today.setdefault(instance.gpu, []).append(instance.placed)
    return {
        gpu.id: tuple(
            sorted(today.get(gpu.id, ()) if gpu.device.layout is None else gpu.device.layout)
        )
        for gpu in problem.fleet.gpus()
        if gpu.node.name in nodes
    }


def _current_by_gpu(problem: PlacementProblem) -> dict[str, Cell]:
    fixed = fixed_layout(problem)
    current = problem.current or Placement()
    gpus = {gpu.id: gpu for gpu in problem.fleet.gpus()}
    staying: dict[str, list[tuple[Replica, Candidate]]] = {}
    standing: dict[str, list[PlacedProfile]] = {}
    for replica in current.replicas:
        if replica.mig is not None and replica.gpus[0] in gpus:
            standing.setdefault(replica.gpus[0], []).append(replica.mig)
        candidate = may_stay(problem, replica, gpus)
        if candidate is not None and keeps_layout(replica, fixed):
            for gpu in replica.gpus:
                staying.setdefault(gpu, []).append((replica, candidate))
    for instance in current.instances:
        standing.setdefault(instance.gpu, []).append(instance.placed)
    standing |= {gpu: list(layout) for gpu, layout in fixed.items() if layout}
    return {
        gpu: Cell((gpu,), tuple(staying.get(gpu, ())), tuple(sorted(standing.get(gpu, ()))))
        for gpu in gpus
        if (gpu in staying or gpu in standing) and cordon(gpus[gpu])
    }


def keeps_layout(replica: Replica, fixed: Mapping[str, Layout]) -> bool:
    """Whether the layouts that its GPUs keep have its instance, or nothing if it has none."""
    if replica.mig is None:
        return not any(fixed.get(gpu) for gpu in replica.gpus)
    return replica.mig in fixed.get(replica.gpus[0], (replica.mig,))


def may_stay(
    problem: PlacementProblem, replica: Replica, gpus: Mapping[str, FleetGpu]
) -> Candidate | None:
    """The candidate that a running replica runs as, if every rule lets it stay where it is."""
    here = [gpus[g] for g in replica.gpus if g in gpus]
    names = {d.name: d for d in problem.deployments}
    if len(here) != len(replica.gpus) or replica.deployment not in names:
        return None
    deployment = names[replica.deployment]
    if not all(cordon(g) and pin(deployment, g) for g in here):
        return None
    if any(replica.shape.sharing not in g.node.sharing for g in here):
        return None
    if not _joined(here, replica.shape):
        return None
    matching = [
        c
        for c in problem.candidates.get(deployment.name, ())
        if replica.runs_as(c, here[0].gpu.name) and _linked(here, c)
    ]
    return min(matching, key=lambda c: c.key) if matching else None


def _linked(group: list[FleetGpu], candidate: Candidate) -> bool:
    """Whether the links of its nodes carry what the stages of one replica hand over."""
    nodes = {gpu.node.name: gpu.node for gpu in group}.values()
    links = [node.network_mbs for node in nodes if node.network_mbs is not None]
    return len(nodes) == 1 or candidate.network_mbs <= min(links, default=candidate.network_mbs)


def _joined(group: list[FleetGpu], shape: Shape) -> bool:
    """A group lies in one node, the blocks of a pipeline evenly in several; two GPUs on a pair."""
    by_node: dict[str, set[int]] = {}
    for gpu in group:
        by_node.setdefault(gpu.node.name, set()).add(gpu.device.index)
    each = {len(indexes) for indexes in by_node.values()}
    if len(each) != 1 or each.pop() % shape.block:
        return False
    paired = shape.block == 2 and shape.sharing is Sharing.WHOLE
    if not paired or group[0].node.nvlink_domain != "pair":
        return True
    return all(2 * len(pairs(indexes)) == len(indexes) for indexes in by_node.values())


def colours(problem: PlacementProblem, *, exact: bool = True) -> dict[str, tuple[str, ...]]:
    """The colours of MIG and shared GPUs that each deployment may lie on.

    Rule ``isolation``: a GPU is open to all, one tenant's alone, or one deployment's alone. Whoever
    asks for isolation lies only on its own colour; the others of that tenant may join it there.
    Rule ``anti_affinity``: each of these comes in shades, one for each largest set of deployments
    that do not avoid each other. Where there are too many, each deployment keeps to one shade,
    or without ``exact`` the rule is left out.
    """
    own = {d.tenant for d in problem.deployments if d.isolate in ("tenant", "node")}
    shades = _shades(problem, exact)
    found: dict[str, tuple[str, ...]] = {}
    for d in problem.deployments:
        if d.isolate == "gpu":
            found[d.name] = (f"gpu:{d.name}",)
            continue
        if d.isolate in ("tenant", "node"):
            plain: tuple[str, ...] = (f"tenant:{d.tenant}",)
        else:
            plain = (OPEN, f"tenant:{d.tenant}") if d.tenant in own else (OPEN,)
        found[d.name] = tuple(c + shade for c in plain for shade in shades.get(d.name, ("",)))
    if any(shades.values()):
        every = sorted({shade for some in shades.values() for shade in some})
        for d in problem.deployments:
            if d.name not in shades and d.isolate != "gpu":
                found[d.name] = tuple(c + shade for c in found[d.name] for shade in every)
    return found


def avoided(problem: PlacementProblem) -> dict[str, set[str]]:
    """Who avoids whom, whichever of the two says so."""
    known = {d.name for d in problem.deployments}
    found: dict[str, set[str]] = {}
    for d in problem.deployments:
        for other in d.avoid:
            if other in known and other != d.name:
                found.setdefault(d.name, set()).add(other)
                found.setdefault(other, set()).add(d.name)
    return found


def _shades(problem: PlacementProblem, exact: bool) -> dict[str, tuple[str, ...]]:
    """For each deployment that avoids or is avoided: the largest peaceful sets it lies in."""
    apart = avoided(problem)
    names = sorted(apart)
    sets = _peaceful(names, apart)
    if sets is None and not exact:
        return {}
    if sets is None:
        shade: dict[str, int] = {}
        for name in names:
            taken = {shade[other] for other in apart[name] if other in shade}
            shade[name] = next(i for i in range(len(names)) if i not in taken)
        return {name: (f"~{shade[name]}",) for name in names}
    return {name: tuple(f"~{i}" for i, some in enumerate(sets) if name in some) for name in names}


def _peaceful(names: list[str], apart: dict[str, set[str]]) -> list[frozenset[str]] | None:
    """All largest sets in which nobody avoids anybody; None when there are too many."""
    sets: set[frozenset[str]] = {frozenset()}
    for name in names:
        grown = set()
        for some in sets:
            grown.add(frozenset(some - apart[name]) | {name})
            if some & apart[name]:
                grown.add(some)
        sets = {s for s in grown if not any(s < other for other in grown)}
        if len(sets) > MOST_SHADES:
            return None
    return sorted(sets, key=sorted)


@lru_cache(maxsize=4096)
def mig_patterns(table: MigTable, profiles: tuple[str, ...]) -> tuple[Multiset, ...]:
    """Multisets of the wanted profiles that one bare GPU holds, none inside another."""
    return table.maximal_multisets(profiles)


@dataclass(frozen=True, slots=True)
class Refill:
    """One way to leave a MIG GPU: which of its replicas stay, what is added, is it cut anew."""

    stays: tuple[str, ...]  # replica ids
    added: Multiset
    repartitioned: bool


@lru_cache(maxsize=4096)
def refills(
    table: MigTable,
    staying: tuple[tuple[str, PlacedProfile], ...],
    standing: tuple[PlacedProfile, ...],
    profiles: tuple[str, ...],
) -> tuple[Refill, ...]:
    """Every undominated way to refill a GPU that holds ``standing`` instances.

    ``staying`` are the replicas that may stay, by id and instance. Without cutting anew, what is
    added reuses instances that stand empty.
    """
    found: list[Refill] = []
    for mask in range(1 << len(staying)):
        kept = [staying[bit] for bit in range(len(staying)) if mask >> bit & 1]
        stays = tuple(replica for replica, _ in kept)
        taken = [placed for _, placed in kept]
        free = list(standing)
        for placed in taken:
            free.remove(placed)
        reused = counted(p.profile for p in free if p.profile in profiles)
        found.append(Refill(stays, reused, False))
        for added in additions(table, tuple(sorted(taken)), profiles):
            if not _inside(added, reused):
                found.append(Refill(stays, added, True))
    return tuple(found)


@lru_cache(maxsize=65536)
def additions(
    table: MigTable, taken: tuple[PlacedProfile, ...], profiles: tuple[str, ...]
) -> tuple[Multiset, ...]:
    """Maximal multisets that fit beside instances which stay where they are."""
    held = {
        cell
        for placed in taken
        for profile in [table.profile(placed.profile)]
        if profile is not None
        for cell in range(placed.start, placed.start + profile.memory_slices)
    }
    every = {
        counted(p.profile for p in layout)
        for layout in all_layouts(table, profiles)
        if not held & cells_of(table, layout) and not table.faults((*taken, *layout))
    }
    return tuple(
        sorted(m for m in every if not any(m != other and _inside(m, other) for other in every))
    )


@lru_cache(maxsize=256)
def all_layouts(
    table: MigTable, profiles: tuple[str, ...]
) -> tuple[tuple[PlacedProfile, ...], ...]:
    """Every legal placed layout of the named profiles."""
    return tuple(table.layouts(profiles))


@lru_cache(maxsize=65536)
def cells_of(table: MigTable, layout: tuple[PlacedProfile, ...]) -> frozenset[int]:
    """The memory slices that a layout takes."""
    taken: set[int] = set()
    for placed in layout:
        profile = table.profile(placed.profile)
        if profile is not None:
            taken.update(range(placed.start, placed.start + profile.memory_slices))
    return frozenset(taken)


def counted(profiles: Iterable[str]) -> Multiset:
    """Profiles by name with how many there are."""
    counts: dict[str, int] = {}
    for profile in profiles:
        counts[profile] = counts.get(profile, 0) + 1
    return tuple(sorted(counts.items()))


def _inside(small: Multiset, large: Multiset) -> bool:
    room = dict(large)
    return all(room.get(profile, 0) >= count for profile, count in small)


SharePattern = tuple[tuple[Use, int], ...]


def share_patterns(room: Use, sizes: tuple[Use, ...]) -> tuple[SharePattern, ...] | None:
    """Multisets of shares that one GPU holds, none inside another; None when there are too many.

    Rules ``device_memory``, ``device_bandwidth`` and ``device_compute`` of shared GPUs.
    """
    found: list[SharePattern] = []
    looked_at = [0]
    sizes = tuple(s for s in sizes if s.fits_in(room))
    if len(sizes) > MOST_SIZES:
        return None

    def extend(index: int, chosen: SharePattern, used: Use) -> bool:
        looked_at[0] += 1
        if index == len(sizes):
            if all(not (used + size).fits_in(room) for size in sizes):
                found.append(chosen)
            return len(found) <= MOST_PATTERNS and looked_at[0] <= 50 * MOST_PATTERNS
        size = sizes[index]
        fitting = [used]
        while (fitting[-1] + size).fits_in(room) and size != Use():
            fitting.append(fitting[-1] + size)
        for count in range(len(fitting) - 1, -1, -1):
            longer = (*chosen, (size, count)) if count else chosen
            if not extend(index + 1, longer, fitting[count]):
                return False
        return True

    return tuple(found) if extend(0, (), Use()) else None


def shares_of(candidates: Iterable[Candidate], gpu: str) -> tuple[Use, ...]:
    """The distinct share sizes that candidates on that product take, largest first."""
    sizes = {
        c.shape.share
        for c in candidates
        if c.gpu == gpu and c.shape.sharing is Sharing.SHARED and c.shape.share is not None
    }
    return tuple(
        sorted(sizes, key=lambda u: (u.memory_mib, u.bandwidth_mbs, u.compute_ppm), reverse=True)
    )


def profiles_of(candidates: Iterable[Candidate], gpu: str) -> tuple[str, ...]:
    """The MIG profiles that candidates on that product take, sorted."""
    names = {
        c.shape.profile
        for c in candidates
        if c.gpu == gpu and c.shape.sharing is Sharing.MIG and c.shape.profile is not None
    }
    return tuple(sorted(names))
