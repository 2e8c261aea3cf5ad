"""The formulation: counts of replicas by place, counts of GPUs by how they are filled.

The same rules build the coarse view (sites of many alike nodes: which configurations, and the
bound) and the fine view (one site a node: where). A rule that looks at one node holds exactly in
the fine view and as its sum over the site in the coarse view, so the coarse optimum is a bound.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ortools.sat.python import cp_model

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import Use
from optimizer.domain.placement import Replica
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.units import MIB_PER_GIB, PPM, ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import (
    Cell,
    Refill,
    SharePattern,
    Site,
    Zone,
    colours,
    counted,
    domain_of,
    may_stay,
    mig_patterns,
    profiles_of,
    refills,
    restored,
    share_patterns,
    shares_of,
)
from optimizer.solver.pipelines import (
    Part,
    blocks_of,
    inside,
    new_parts,
    parts_today,
    staged_affinity,
)

Expr = Any  # cp_model.LinearExprT: an int, a variable or a sum of them
CellKey = tuple[int, int, int]  # site, zone, cell


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """How many replicas of one candidate lie in one place.

    ``stays`` names the running replica when this is the question whether that one stays.
    ``cell`` is set where the place is one GPU, ``colour`` where the GPU is MIG or shared. A
    pipeline may lie in several sites: its ``parts`` say where, and ``site`` is only the first.
    """

    deployment: str
    candidate: Candidate
    site: int
    count: Expr
    zone: int | None = None
    cell: int | None = None
    colour: str | None = None
    stays: Replica | None = None
    parts: tuple[Part, ...] = ()

    @property
    def lies(self) -> tuple[tuple[int, Expr], ...]:
        """The sites it may lie in, each with how many nodes' worth of replicas do."""
        if not self.parts:
            return ((self.site, self.count),)
        return tuple((part.site, part.count) for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Filling:
    """How many GPUs of a cell are filled one way (MIG columns and share patterns)."""

    at: CellKey
    mode: Sharing
    colour: str
    count: Expr
    mig: Refill | None = None
    shares: SharePattern | None = None  # None in mode shared: replicas are packed one by one


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Alike shared GPUs with too many ways to fill them: the bound generates those it needs.

    ``gpus`` counts the GPUs in use; ``wanted`` has the replicas by size of their share.
    """

    site: int
    zone: int
    colour: str
    gpus: tuple[Expr, ...]
    wanted: tuple[tuple[Use, tuple[Expr, ...]], ...]


@dataclass(slots=True)
class Formulation:
    """Variables and rules of one view of a problem."""

    problem: PlacementProblem
    sites: tuple[Site, ...]
    model: cp_model.CpModel = field(default_factory=cp_model.CpModel)
    copies: list[Copies] = field(default_factory=list)
    fillings: list[Filling] = field(default_factory=list)
    taken_whole: dict[CellKey, list[tuple[str | None, Expr]]] = field(default_factory=dict)
    pairs: dict[tuple[int, int], Expr] = field(default_factory=dict)  # (site, low index)
    missing: dict[str, Expr] = field(default_factory=dict)  # ppm by deployment
    colours: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pools: list[Pool] = field(default_factory=list)
    touched: dict[object, Expr] = field(default_factory=dict)  # domains that pipelines lie in
    _indexed: list[Copies] = field(default_factory=list)
    _by_name: dict[str, list[Copies]] = field(default_factory=dict)
    _by_site: dict[int, list[tuple[Copies, Expr]]] = field(default_factory=dict)

    def cells(self) -> Iterator[tuple[CellKey, Site, Zone, Cell]]:
        """Every cell with where it belongs."""
        for s, site in enumerate(self.sites):
            for z, zone in enumerate(site.zones):
                for c, cell in enumerate(zone.cells):
                    yield (s, z, c), site, zone, cell

    @property
    def coarse(self) -> bool:
        """Whether nodes are merged: then where replicas lie together is found afterwards."""
        return any(len(site.nodes) > 1 for site in self.sites)

    def replicas(self, deployment: str) -> Expr:
        """How many replicas of the deployment run."""
        return total(c.count for c in self.of(deployment))

    def of(self, deployment: str) -> list[Copies]:
        """The places of the deployment's replicas."""
        self._index()
        return self._by_name.get(deployment, [])

    def at(self, site: int) -> list[tuple[Copies, Expr]]:
        """Whose replicas may touch the nodes of a site, each with how often they do."""
        self._index()
        return self._by_site.get(site, [])

    def _index(self) -> None:
        if len(self._indexed) == len(self.copies):
            return
        self._indexed[:] = self.copies
        self._by_name.clear()
        self._by_site.clear()
        for c in self.copies:
            self._by_name.setdefault(c.deployment, []).append(c)
            for site, count in c.lies:
                self._by_site.setdefault(site, []).append((c, count))

    def used(self, at: CellKey) -> Expr:
        """How many GPUs of the cell hold a replica."""
        return total(self._uses[at])

    @property
    def _uses(self) -> dict[CellKey, list[Expr]]:
        uses: dict[CellKey, list[Expr]] = defaultdict(list)
        for filling in self.fillings:
            uses[filling.at].append(filling.count)
        for at, takes in self.taken_whole.items():
            uses[at].extend(count for _, count in takes)
        return uses

    def price_micros(self) -> Expr:
        """Price per hour of all used GPUs."""
        uses = self._uses
        return total(site.price_micros * use for at, site, _, _ in self.cells() for use in uses[at])

    def unmet_ppm(self, priority: int) -> Expr:
        """Sum of missing shares over the deployments of one priority."""
        return total(
            self.missing[d.name] for d in self.problem.deployments if d.priority == priority
        )

    def disruption_mib(self) -> Expr:
        """MiB of weights to load as they weigh, and 1 GiB for each GPU that is cut anew."""
        weight = {d.name: d.move_weight for d in self.problem.deployments}
        loads = total(
            weight[c.deployment] * c.candidate.load_mib * c.count
            for c in self.copies
            if c.stays is None
        )
        cells = {at: cell for at, _, _, cell in self.cells()}
        cuts = [
            f.count
            for f in self.fillings
            if (f.mode is Sharing.MIG and f.mig is not None and f.mig.repartitioned)
            or (f.mode is Sharing.SHARED and cells[f.at].standing)
        ]
        cuts += [
            count
            for at, takes in self.taken_whole.items()
            if cells[at].standing
            for _, count in takes
        ]
        return loads + MIB_PER_GIB * (total(cuts) + restored(self.problem))


def total(terms: Iterable[Expr]) -> Expr:
    """Sum that CP-SAT reads in one go."""
    return cp_model.LinearExpr.sum(list(terms))


Rule = Callable[["Formulation"], Iterator[Expr]]


def build(
    problem: PlacementProblem, sites: tuple[Site, ...], rules: tuple[Rule, ...] | None = None
) -> Formulation:
    """All variables and every rule over them, or only the ``rules`` named."""
    f = Formulation(problem, sites)
    f.colours = colours(problem, exact=not f.coarse)
    _running(f)
    _pipelines(f, exact=not f.coarse)
    for s in range(len(sites)):
        _whole(f, s)
        _mig(f, s)
        _shared(f, s)
    for rule in RULES if rules is None else rules:
        for constraint in rule(f):
            f.model.add(constraint)
    return f


# --- variables ---------------------------------------------------------------------------------


def _running(f: Formulation) -> None:
    """Whether each running replica that may stay does."""
    asked: dict[str, Expr] = {}
    for (s, z, c), _, _, cell in f.cells():
        for replica, candidate in cell.replicas:
            if replica.id in asked:
                continue
            asked[replica.id] = f.model.new_bool_var(f"stays {replica.id}")
            at = c if len(replica.gpus) == 1 else None
            f.copies.append(
                Copies(
                    replica.deployment,
                    candidate,
                    s,
                    asked[replica.id],
                    z if at is not None else None,
                    at,
                    stays=replica,
                    parts=parts_today(f, replica, asked[replica.id]),
                )
            )


def _offered(
    f: Formulation, site: Site, sharing: Sharing
) -> Iterator[tuple[Deployment, Candidate]]:
    """Rule ``allowed``: new replicas run only as candidates, on products and modes they name."""
    if any(sharing not in node.sharing for node in site.nodes[:1]):
        return
    for deployment in f.problem.deployments:
        for candidate in f.problem.candidates.get(deployment.name, ()):
            if candidate.gpu == site.gpu.name and candidate.shape.sharing is sharing:
                yield deployment, candidate


def _most(deployment: Deployment, candidate: Candidate, room: int) -> int:
    """More copies than this never help."""
    useful = deployment.min_replicas
    capacity = capacity_mrps(deployment, candidate)
    if deployment.asked_mrps and capacity:
        enough = ceil_div(deployment.asked_mrps, capacity)
        # Twice as many outlive any loss if they lie apart at all: half of them are elsewhere.
        useful = max(useful, 2 * enough if deployment.survive else enough)
    if deployment.replica_limit is not None:
        useful = min(useful, deployment.replica_limit)
    return max(0, min(useful, room))


def _pipelines(f: Formulation, *, exact: bool) -> None:
    """Replicas whose stages may lie in several sites; one by one where nodes are told apart."""
    usable: dict[tuple[str, object], list[int]] = defaultdict(list)
    for s, site in enumerate(f.sites):
        for deployment, candidate in _offered(f, site, Sharing.WHOLE):
            if candidate.shape.stages > 1 and not all(z.bars(deployment.name) for z in site.zones):
                usable[deployment.name, candidate.key].append(s)
    for deployment in f.problem.deployments:
        for candidate in f.problem.candidates.get(deployment.name, ()):
            sites = usable.get((deployment.name, candidate.key))
            if not sites:
                continue
            room = blocks_of(f.sites, sites, candidate) // candidate.shape.stages
            most, name = _most(deployment, candidate, room), f"{deployment.name} stages"
            before = None
            for number in range(most if exact else min(1, most)):
                each = 1 if exact else most
                count, parts = new_parts(f, sites, candidate, each, f"{name} {number}")
                if not parts:
                    break  # its stages cannot lie evenly in any nodes
                f.copies.append(Copies(deployment.name, candidate, sites[0], count, parts=parts))
                if before is not None:
                    f.model.add_implication(count, before)
                before = count


def _whole(f: Formulation, s: int) -> None:
    """Whole GPUs and groups of them in one node."""
    site = f.sites[s]
    takers = [
        _Taker(c.deployment, c.candidate.shape.block, part.gpus, part.count)
        for c in f.copies
        if c.stays is None
        for part in c.parts
        if part.site == s
    ]
    room: dict[int, int] = {}
    for deployment, candidate in _offered(f, site, Sharing.WHOLE):
        size = candidate.shape.gpus
        if candidate.shape.stages > 1:
            continue
        if size not in room:
            room[size] = site.groups(size)
        most = _most(deployment, candidate, room[size])
        if most and not all(zone.bars(deployment.name) for zone in site.zones):
            count = f.model.new_int_var(0, most, f"{deployment.name} whole {size} @{site.name}")
            f.copies.append(Copies(deployment.name, candidate, s, count))
            takers.append(_Taker(deployment.name, size, size, count))
    _take_gpus(f, s, takers)


@dataclass(frozen=True, slots=True, eq=False)
class _Taker:
    """New replicas, or parts of pipelines: ``gpus`` of one node each, in blocks."""

    deployment: str
    block: int
    gpus: int
    count: Expr


def _take_gpus(f: Formulation, s: int, takers: list[_Taker]) -> None:
    """Which cells the GPUs of new whole replicas come from."""
    site = f.sites[s]
    barring = sorted({name for zone in site.zones for name in zone.barred})
    for at, _, _, cell in f.cells():
        if at[0] == s:
            kept: list[tuple[str | None, Expr]] = [
                (c.deployment, c.count)
                for c in f.copies
                if c.stays is not None
                and c.candidate.shape.sharing is Sharing.WHOLE
                and cell.gpus[0] in c.stays.gpus
            ]
            f.taken_whole[at] = kept
    paired = {id(taker) for taker in _take_pairs(f, s, takers)}
    groups: dict[str | None, list[Expr]] = defaultdict(list)
    for taker in takers:
        if id(taker) not in paired:
            owner = taker.deployment if taker.deployment in barring else None
            groups[owner].append(taker.gpus * taker.count)
    for owner, wanted in sorted(groups.items(), key=lambda item: item[0] or ""):
        takes = []
        for at, _, zone, cell in f.cells():
            if at[0] == s and not zone.bars(owner):
                take = f.model.new_int_var(0, len(cell.gpus), f"take {owner} {at}")
                f.taken_whole[at].append((owner, take))
                takes.append(take)
        f.model.add(total(takes) == total(wanted))


def _take_pairs(f: Formulation, s: int, takers: list[_Taker]) -> list[_Taker]:
    """Groups of two on bridged pairs, in the fine view where each GPU is a cell of its own."""
    site = f.sites[s]
    node = site.nodes[0]
    twos = [taker for taker in takers if taker.block == 2]
    if node.nvlink_domain != "pair" or len(site.nodes) != 1 or not twos:
        return []
    where = {
        int(gpu.rsplit("/", 1)[1]): (at, zone)
        for at, _, zone, cell in f.cells()
        if at[0] == s
        for gpu in cell.gpus
    }
    if any(len(f.sites[s].zones[z].cells[c].gpus) > 1 for (_, z, c), _ in where.values()):
        return []
    owners = sorted({taker.deployment for taker in twos})
    chosen: dict[str, list[Expr]] = {name: [] for name in owners}
    for low in sorted(where):
        if low % 2 or low + 1 not in where:
            continue
        for name in owners:
            ends = (where[low], where[low + 1])
            if any(zone.bars(name) for _, zone in ends):
                continue
            pair = f.model.new_bool_var(f"pair {name} {node.name}/{low}")
            f.pairs[s, low] = f.pairs.get((s, low), 0) + pair
            chosen[name].append(pair)
            for at, _ in ends:
                f.taken_whole[at].append((f"pair:{name}:{low}", pair))
    for name in owners:
        wanted = total(t.gpus // 2 * t.count for t in twos if t.deployment == name)
        f.model.add(total(chosen[name]) == wanted)
    return twos


def _mig(f: Formulation, s: int) -> None:
    """MIG slices: new replicas by zone and colour, GPUs by column."""
    site = f.sites[s]
    table = site.gpu.mig
    offered = list(_offered(f, site, Sharing.MIG))
    kept = {
        c.candidate.shape.profile
        for c in f.copies
        if c.stays is not None and c.candidate.shape.profile is not None
    }
    profiles = tuple(sorted({*profiles_of((c for _, c in offered), site.gpu.name)}))
    if table is None or Sharing.MIG not in site.nodes[0].sharing or not (profiles or kept):
        return
    for z, zone in enumerate(site.zones):
        gpus = sum(len(cell.gpus) for cell in zone.cells)
        wanted: dict[str, set[str]] = defaultdict(set)
        for deployment, candidate in offered:
            if deployment.name in zone.barred:
                continue
            profile = table.profile(candidate.shape.profile or "")
            most = _most(deployment, candidate, gpus * (profile.max_instances if profile else 0))
            for colour in f.colours[deployment.name] if most and profile else ():
                name = f"{deployment.name} {profile.name} {colour} @{site.name}/{z}"  # type: ignore[union-attr]
                count = f.model.new_int_var(0, most, name)
                f.copies.append(Copies(deployment.name, candidate, s, count, z, colour=colour))
                wanted[colour].add(candidate.shape.profile or "")
        for c, cell in enumerate(zone.cells):
            named = {k: tuple(sorted(v)) for k, v in wanted.items()}
            _mig_columns(f, (s, z, c), zone, cell, named)


def _mig_columns(
    f: Formulation, at: CellKey, zone: Zone, cell: Cell, wanted: dict[str, tuple[str, ...]]
) -> None:
    table = f.sites[at[0]].gpu.mig
    assert table is not None
    if zone.layout == ():
        return  # no instance is to stand here
    staying = [(r, r.mig) for r, _ in cell.replicas if r.mig is not None]
    reachable = set(wanted)
    for replica, _ in staying:
        reachable.update(f.colours[replica.deployment])
    for colour in sorted(reachable):
        profiles = wanted.get(colour, ())
        here = tuple((r.id, p) for r, p in staying if colour in f.colours[r.deployment])
        if cell.bare and zone.layout is not None:
            kept = counted(p.profile for p in zone.layout if p.profile in profiles)
            columns = [Refill((), kept, False)]
        elif cell.bare:
            columns = [Refill((), m, True) for m in mig_patterns(table, profiles) if m]
        elif zone.layout is not None:
            every = refills(table, here, cell.standing, profiles)
            columns = [column for column in every if not column.repartitioned]
        else:
            columns = list(refills(table, here, cell.standing, profiles))
        for column in columns:
            if column.stays or column.added:
                count = f.model.new_int_var(0, len(cell.gpus), f"{at} {colour} {column}")
                f.fillings.append(Filling(at, Sharing.MIG, colour, count, mig=column))


def _shared(f: Formulation, s: int) -> None:
    """Shared GPUs: by pattern where GPUs are alike and sizes few, else packed one by one."""
    site = f.sites[s]
    offered = list(_offered(f, site, Sharing.SHARED))
    if Sharing.SHARED not in site.nodes[0].sharing:
        return
    for z, zone in enumerate(site.zones):
        if zone.sliced:
            continue
        here = [(d, c) for d, c in offered if d.name not in zone.barred]
        by_colour: dict[str, list[tuple[Deployment, Candidate]]] = defaultdict(list)
        for deployment, candidate in here:
            for colour in f.colours[deployment.name]:
                by_colour[colour].append((deployment, candidate))
        patterns = {
            colour: share_patterns(site.gpu.room, shares_of((c for _, c in some), site.gpu.name))
            for colour, some in by_colour.items()
        }
        pooled = {
            colour: some for colour, some in by_colour.items() if patterns[colour] is not None
        }
        bare = [c for c, cell in enumerate(zone.cells) if cell.bare]
        many = {k for k in by_colour if k not in pooled and f.coarse}
        for colour in sorted(by_colour) if bare else ():
            if colour in pooled:
                _shared_pool(f, (s, z), colour, pooled[colour], patterns[colour] or (), bare)
            elif colour in many:
                _shared_open(f, (s, z), colour, by_colour[colour], bare)
        for c, cell in enumerate(zone.cells):
            together = {*pooled, *many} if cell.bare else set()
            rest = {k: v for k, v in by_colour.items() if k not in together}
            _shared_direct(f, (s, z, c), cell, rest)


def _shared_pool(
    f: Formulation,
    zone: tuple[int, int],
    colour: str,
    offered: list[tuple[Deployment, Candidate]],
    patterns: tuple[SharePattern, ...],
    bare: list[int],
) -> None:
    s, z = zone
    site = f.sites[s]
    gpus = sum(len(site.zones[z].cells[c].gpus) for c in bare)
    for deployment, candidate in offered:
        share = candidate.shape.share or Use()
        per_gpu = max((dict(p).get(share, 0) for p in patterns), default=0)
        most = _most(deployment, candidate, gpus * per_gpu)
        if most:
            name = f"{deployment.name} share {colour} @{site.name}/{z}"
            count = f.model.new_int_var(0, most, name)
            f.copies.append(Copies(deployment.name, candidate, s, count, z, colour=colour))
    for c in bare:
        for pattern in patterns:
            if pattern:
                most = len(site.zones[z].cells[c].gpus)
                count = f.model.new_int_var(0, most, f"{zone} {c} {colour} {pattern}")
                f.fillings.append(Filling((s, z, c), Sharing.SHARED, colour, count, shares=pattern))


def _shared_open(
    f: Formulation,
    zone: tuple[int, int],
    colour: str,
    offered: list[tuple[Deployment, Candidate]],
    bare: list[int],
) -> None:
    """Replicas by size of share and GPUs in use; how they are filled is generated (Pool)."""
    s, z = zone
    site = f.sites[s]
    modes = []
    for c in bare:
        gpus = len(site.zones[z].cells[c].gpus)
        modes.append(f.model.new_int_var(0, gpus, f"shared {zone} {c} {colour}"))
        f.fillings.append(Filling((s, z, c), Sharing.SHARED, colour, modes[-1]))
    gpus = sum(len(site.zones[z].cells[c].gpus) for c in bare)
    wanted: dict[Use, list[Expr]] = defaultdict(list)
    for deployment, candidate in offered:
        share = candidate.shape.share or Use()
        most = _most(deployment, candidate, gpus * _times(share, site.gpu.room))
        if most:
            name = f"{deployment.name} share {colour} @{site.name}/{z}"
            count = f.model.new_int_var(0, most, name)
            f.copies.append(Copies(deployment.name, candidate, s, count, z, colour=colour))
            wanted[share].append(count)
    sizes = sorted(
        wanted, key=lambda u: (u.memory_mib, u.bandwidth_mbs, u.compute_ppm), reverse=True
    )
    f.pools.append(Pool(s, z, colour, tuple(modes), tuple((u, tuple(wanted[u])) for u in sizes)))


def _shared_direct(
    f: Formulation,
    at: CellKey,
    cell: Cell,
    by_colour: dict[str, list[tuple[Deployment, Candidate]]],
) -> None:
    s, z, c = at
    gpus = len(cell.gpus)
    sharing = [r for r, _ in cell.replicas if r.share is not None]
    reachable = set(by_colour) | {k for r in sharing for k in f.colours[r.deployment]}
    for colour in sorted(reachable):
        mode = f.model.new_int_var(0, gpus, f"shared {at} {colour}")
        f.fillings.append(Filling(at, Sharing.SHARED, colour, mode))
        for deployment, candidate in by_colour.get(colour, ()):
            share = candidate.shape.share or Use()
            per_gpu = _times(share, f.sites[s].gpu.room)
            most = _most(deployment, candidate, gpus * per_gpu)
            if most:
                name = f"{deployment.name} share {colour} {at}"
                count = f.model.new_int_var(0, most, name)
                f.copies.append(Copies(deployment.name, candidate, s, count, z, c, colour))
                f.model.add(count <= most * mode)


def _times(share: Use, room: Use) -> int:
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


# --- rules -------------------------------------------------------------------------------------


def slot_legality(f: Formulation) -> Iterator[Expr]:
    """A GPU is in one mode, and its instances form a legal layout that the replicas lie in."""
    uses = f._uses
    for at, _, _, cell in f.cells():
        if uses[at]:
            yield total(uses[at]) <= len(cell.gpus)
    supply: dict[tuple[int, int, str, str], list[Expr]] = defaultdict(list)
    stays: dict[str, list[Expr]] = defaultdict(list)
    for filling in f.fillings:
        if filling.mig is not None:
            s, z, _ = filling.at
            for profile, count in filling.mig.added:
                supply[s, z, filling.colour, profile].append(count * filling.count)
            for replica in filling.mig.stays:
                stays[replica].append(filling.count)
    wanted: dict[tuple[int, int, str, str], list[Expr]] = defaultdict(list)
    for c in f.copies:
        if c.candidate.shape.sharing is not Sharing.MIG:
            continue
        if c.stays is not None:
            yield total(stays[c.stays.id]) == c.count
        elif c.zone is not None and c.colour is not None:
            wanted[c.site, c.zone, c.colour, c.candidate.shape.profile or ""].append(c.count)
    for key, counts in wanted.items():
        yield total(counts) <= total(supply[key])


def device_shares(f: Formulation) -> Iterator[Expr]:
    """On a shared GPU memory, bandwidth and compute of all replicas fit.

    Rules ``device_memory``, ``device_bandwidth`` and ``device_compute``.
    """
    yield from _pooled_shares(f)
    yield from _open_shares(f)
    modes: dict[CellKey, list[Filling]] = defaultdict(list)
    for filling in f.fillings:
        if filling.mode is Sharing.SHARED and filling.shares is None:
            modes[filling.at].append(filling)
    inside: dict[CellKey, list[Copies]] = defaultdict(list)
    for c in f.copies:
        if c.candidate.shape.sharing is Sharing.SHARED and c.cell is not None:
            inside[c.site, c.zone or 0, c.cell].append(c)
    for at, held in inside.items():
        room = f.sites[at[0]].gpu.room
        on = total(m.count for m in modes[at])
        for part in ("memory_mib", "bandwidth_mbs", "compute_ppm"):
            used = total(getattr(c.candidate.shape.share, part) * c.count for c in held)
            yield used <= getattr(room, part) * on
        for c in held:
            if c.stays is not None:
                fitting = f.colours[c.deployment]
                yield c.count <= total(m.count for m in modes[at] if m.colour in fitting)


def _pooled_shares(f: Formulation) -> Iterator[Expr]:
    supply: dict[tuple[int, int, str, Use], list[Expr]] = defaultdict(list)
    for filling in f.fillings:
        for share, count in filling.shares or ():
            s, z, _ = filling.at
            supply[s, z, filling.colour, share].append(count * filling.count)
    wanted: dict[tuple[int, int, str, Use], list[Expr]] = defaultdict(list)
    generated = {(pool.site, pool.zone, pool.colour) for pool in f.pools}
    for c in f.copies:
        if c.candidate.shape.sharing is Sharing.SHARED and c.cell is None and c.stays is None:
            if (c.site, c.zone or 0, c.colour or "") in generated:
                continue
            share = c.candidate.shape.share or Use()
            wanted[c.site, c.zone or 0, c.colour or "", share].append(c.count)
    for key, counts in wanted.items():
        yield total(counts) <= total(supply[key])


def _open_shares(f: Formulation) -> Iterator[Expr]:
    """What every filling of a pool keeps: each of the three dimensions, summed over its GPUs."""
    for pool in f.pools:
        room = f.sites[pool.site].gpu.room
        for part in ("memory_mib", "bandwidth_mbs", "compute_ppm"):
            used = total(getattr(u, part) * count for u, counts in pool.wanted for count in counts)
            yield used <= getattr(room, part) * total(pool.gpus)


def interconnect(f: Formulation) -> Iterator[Expr]:
    """A group of whole GPUs lies in one node, and a group of two on a bridged pair.

    So does what a pipeline has in one node, block by block.
    """
    for s, site in enumerate(f.sites):
        if len(site.nodes) == 1 and site.nodes[0].nvlink_domain != "pair":
            continue
        groups = [
            (c.candidate.shape.block, gpus, count)
            for c in f.copies
            if c.stays is None and c.candidate.shape.sharing is Sharing.WHOLE
            for gpus, count in _groups_at(c, s)
        ]
        for size in sorted({n for block, gpus, _ in groups for n in (block, gpus)} - {1}):
            blocks = [
                gpus // size * count
                for block, gpus, count in groups
                if gpus % size == 0 and (size != 2 or block == 2 or not _paired(site))
            ]
            yield total(blocks) <= site.groups(size)


def _groups_at(c: Copies, s: int) -> list[tuple[int, Expr]]:
    """GPUs of one node that its replicas take in a site, each with how many times."""
    if c.parts:
        return [(part.gpus, part.count) for part in c.parts if part.site == s]
    return [(c.candidate.shape.gpus, c.count)] if c.site == s else []


def network_bandwidth(f: Formulation) -> Iterator[Expr]:
    """What pipelines that lie in several nodes hand over is at most each node's network."""
    load: dict[int, list[Expr]] = defaultdict(list)
    for c in f.copies:
        for part in c.parts if c.candidate.network_mbs else ():
            if part.of > 1:
                load[part.site].append(c.candidate.network_mbs * part.count)
    for s, handed in sorted(load.items()):
        room = f.sites[s].nodes[0].network_mbs
        if room is not None:
            yield total(handed) <= room * len(f.sites[s].nodes)


def _paired(site: Site) -> bool:
    return site.nodes[0].nvlink_domain == "pair"


def host_cpu(f: Formulation) -> Iterator[Expr]:
    """The replicas of a node ask for no more CPU cores than it has."""
    for s, site in enumerate(f.sites):
        room = site.nodes[0].cpu_millicores
        if room is not None:
            yield _host(f, s, lambda d: d.host_cpu_millicores) <= room * len(site.nodes)


def host_memory(f: Formulation) -> Iterator[Expr]:
    """The replicas of a node ask for no more host memory than it has."""
    for s, site in enumerate(f.sites):
        room = site.nodes[0].host_memory_mib
        if room is not None:
            yield _host(f, s, lambda d: d.host_memory_mib) <= room * len(site.nodes)


def _host(f: Formulation, s: int, need: Callable[[Deployment], int]) -> Expr:
    needs = {d.name: need(d) for d in f.problem.deployments}
    return total(needs[c.deployment] * count for c, count in f.at(s))


def demand_met(f: Formulation) -> Iterator[Expr]:
    """Replicas carry the rate asked, or what is missing is counted."""
    for d in f.problem.deployments:
        most = 0 if d.reserve else PPM  # a reserve is a rule: it does not give way
        f.missing[d.name] = f.model.new_int_var(0, most, f"missing {d.name}")
        asked = d.asked_mrps
        if asked:
            served = total(
                min(asked, capacity_mrps(d, c.candidate)) * c.count for c in f.of(d.name)
            )
            yield asked * f.missing[d.name] + PPM * served >= PPM * asked


def replica_bounds(f: Formulation) -> Iterator[Expr]:
    """No more replicas than ``max``; fewer than ``min`` is counted as missing."""
    for d in f.problem.deployments:
        running = f.replicas(d.name)
        if d.min_replicas:
            yield d.min_replicas * f.missing[d.name] + PPM * running >= PPM * d.min_replicas
        if d.replica_limit is not None:
            yield running <= d.replica_limit


def spread(f: Formulation) -> Iterator[Expr]:
    """A node, and a rack, holds at most so many replicas of a deployment."""
    by_place: dict[tuple[str, int], list[Expr]] = defaultdict(list)
    for c in f.copies:
        for s, count in c.lies:
            by_place[c.deployment, s].append(count)
    racks = _racks(f.sites)
    for d in f.problem.deployments:
        if d.spread_node is not None:
            for s, site in enumerate(f.sites):
                if by_place[d.name, s]:
                    yield total(by_place[d.name, s]) <= d.spread_node * len(site.nodes)
        if d.spread_rack is not None:
            for among, number in racks:
                held = [x for c in f.of(d.name) for x in inside(f, c, among, "rack")]
                if held:
                    yield total(held) <= d.spread_rack * number


def survive(f: Formulation) -> Iterator[Expr]:
    """After the loss of any one node, rack or zone the replicas left still carry the demand.

    Summed over domains that the view does not tell apart; there, one of them loses at least the
    largest replica.
    """
    for d in f.problem.deployments:
        asked = d.asked_mrps
        if d.survive is None or not asked:
            continue
        parts = [(c, min(asked, capacity_mrps(d, c.candidate))) for c in f.of(d.name)]
        served = total(rate * c.count for c, rate in parts)
        yield served >= asked
        apart = domains_apart(f.sites, d.survive)
        for among, number in apart:
            gone = total(rate * x for c, rate in parts for x in inside(f, c, among, d.survive))
            yield number * served - gone >= number * asked
        for c, rate in parts if any(number > 1 for _, number in apart) else ():
            used = f.model.new_bool_var(f"{d.name} uses {c.count}")
            f.model.add(c.count == 0).only_enforce_if(~used)
            f.model.add(served >= asked + rate).only_enforce_if(used)


def _racks(sites: tuple[Site, ...]) -> list[tuple[list[int], int]]:
    return domains_apart(sites, "rack")


def domains_apart(sites: tuple[Site, ...], kind: str) -> list[tuple[list[int], int]]:
    """Sets of sites that share domains with no other set, each with how many domains that is."""
    found: list[tuple[set[int], set[str]]] = []
    for s, site in enumerate(sites):
        members, names = {s}, {domain_of(node, kind) for node in site.nodes}
        for other in [item for item in found if item[1] & names]:
            found.remove(other)
            members |= other[0]
            names |= other[1]
        found.append((members, names))
    return [(sorted(members), len(names)) for members, names in found]


def isolation(f: Formulation) -> Iterator[Expr]:
    """A tenant that asks for whole nodes shares none with another tenant (fine view)."""
    tenants = {d.name: d.tenant for d in f.problem.deployments}
    alone = {d.name for d in f.problem.deployments if d.isolate == "node"}
    for s, site in enumerate(f.sites):
        if len(site.nodes) > 1:
            continue
        here = f.at(s)
        for tenant in sorted({tenants[c.deployment] for c, _ in here if c.deployment in alone}):
            own = f.model.new_bool_var(f"{site.name} belongs to {tenant}")
            for c, count in here:
                if tenants[c.deployment] != tenant:
                    f.model.add(count == 0).only_enforce_if(own)
                elif c.deployment in alone:
                    f.model.add(count == 0).only_enforce_if(~own)
    yield from ()


def affinity(f: Formulation) -> Iterator[Expr]:
    """A node of a replica holds at least one replica of each deployment it wants near."""
    for d in f.problem.deployments:
        for wanted in d.near:
            yield from staged_affinity(f, d, wanted)
            for s, site in enumerate(f.sites):
                here = [c.count for c in f.of(d.name) if c.site == s and not c.parts]
                near = [count for c, count in f.at(s) if c.deployment == wanted]
                most = sum(_highest(count) for count in here)
                if most and len(site.nodes) == 1:
                    yield total(here) <= most * total(near)
                elif most and not near:
                    yield total(here) <= 0


def _highest(count: Expr) -> int:
    return int(list(count.proto.domain)[-1])


def allowed(f: Formulation) -> Iterator[Expr]:
    """A way kept for replicas that run so today is not for new ones.

    Where the view does not know what runs, no more run so than may stay.
    """
    kept = {
        (name, way.key)
        for name, ways in f.problem.candidates.items()
        for way in ways
        if way.running_only
    }
    if not kept:
        return
    gpus = {gpu.id: gpu for gpu in f.problem.fleet.gpus()}
    staying: dict[tuple[str, object], int] = defaultdict(int)
    for replica in f.problem.current.replicas if f.problem.current else ():
        way = may_stay(f.problem, replica, gpus)
        if way is not None:
            staying[way.deployment, way.key] += 1
    for name, key in sorted(kept, key=str):
        mine = [c for c in f.of(name) if c.candidate.key == key]
        new = [c.count for c in mine if c.stays is None]
        seen = len(new) < len(mine)
        if new:
            yield total(new) <= (0 if seen else staying[name, key])


def price_limit(f: Formulation) -> Iterator[Expr]:
    """The price per hour stays within the fleet's ceiling."""
    limit = f.problem.fleet.limits.price_micros_per_hour
    if limit is not None:
        yield f.price_micros() <= limit


def power_limit(f: Formulation) -> Iterator[Expr]:
    """The TDP of a rack's used GPUs stays within the ceiling; an unknown TDP counts nothing."""
    limit = f.problem.fleet.limits.rack_power_w
    if limit is not None:
        yield from (used <= limit * number for used, number in rack_watts(f))


def rack_watts(f: Formulation) -> Iterator[tuple[Expr, int]]:
    """The TDP of used GPUs in racks that the view does not tell apart, and how many they are."""
    uses = f._uses
    watts: dict[int, list[Expr]] = defaultdict(list)
    for at, site, _, _ in f.cells():
        watts[at[0]] += [(site.gpu.tdp_w or 0) * use for use in uses[at]]
    for among, number in _racks(f.sites):
        used = [x for s in among for x in watts[s]]
        if used:
            yield total(used), number


def do_not_disturb(f: Formulation) -> Iterator[Expr]:
    """A replica of a deployment that says ``never`` stays where it runs, if it may."""
    never = {d.name for d in f.problem.deployments if d.disturb == "never"}
    for c in f.copies:
        if c.stays is not None and c.deployment in never:
            yield c.count >= 1


# `pin`, `cordon`, `fixed_layout` and most of `allowed` are filters: what they forbid has no
# variable (see _offered, the zones and columns.may_stay). `anti_affinity` is in the colours of GPUs
# (columns.colours).
RULES: tuple[Rule, ...] = (
    demand_met,
    replica_bounds,
    slot_legality,
    device_shares,
    interconnect,
    network_bandwidth,
    host_cpu,
    host_memory,
    spread,
    survive,
    isolation,
    affinity,
    allowed,
    price_limit,
    power_limit,
    do_not_disturb,
)
