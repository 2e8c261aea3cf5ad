"""From counts to exact GPUs and MIG starts, in the fine view."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import MigTable, PlacedProfile, Use
from optimizer.domain.placement import Instance, Placement, Replica, replica_order
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.solver.columns import all_layouts, fixed_layout
from optimizer.solver.formulation import CellKey, Copies, Filling, Formulation
from optimizer.solver.integer import value_of


@dataclass(frozen=True, slots=True)
class Seat:
    """A place for one new replica, before it has an id."""

    deployment: str
    candidate: Candidate
    gpus: tuple[str, ...]
    mig: PlacedProfile | None = None


def placement(f: Formulation, values: list[int]) -> Placement:
    """The placement that a solution of the fine view stands for.

    Replicas that stay keep id, GPUs and start; surplus new replicas are left out; moved ones keep
    their id; instances that nothing displaces stay standing.
    """
    decoder = _Decoder(f, values)
    stays = tuple(
        replace(c.stays, config=c.candidate.config)
        for c in f.copies
        if c.stays is not None and value_of(c.count, values)
    )
    kept_as = {c.stays.id: c.candidate for c in f.copies if c.stays is not None}
    seats = [seat for s in range(len(f.sites)) for seat in decoder.site(s)]
    seats += decoder.pipelines()
    stays, seats = _without_surplus(f.problem, stays, kept_as, seats)
    return _named(f.problem, stays, seats)


class _Decoder:
    def __init__(self, f: Formulation, values: list[int]) -> None:
        self.f, self.values = f, values
        self.kept_whole = {
            gpu
            for c in f.copies
            if c.stays is not None and value_of(c.count, values) and c.stays.mig is None
            for gpu in c.stays.gpus
        }
        self.parts: dict[int, tuple[Copies, list[str]]] = {}  # of pipelines, by identity

    def count(self, expr: object) -> int:
        return value_of(expr, self.values)

    def site(self, s: int) -> list[Seat]:
        """Seats of all new replicas of a site."""
        free = {
            at: [g for g in cell.gpus if g not in self.kept_whole]
            for at, _, _, cell in self.f.cells()
            if at[0] == s
        }
        return [*self._whole(s, free), *self._mig(s, free), *self._shared(s, free)]

    def _new(self, s: int, sharing: Sharing) -> list[tuple[Copies, int]]:
        return [
            (c, self.count(c.count))
            for c in self.f.copies
            if c.site == s
            and c.stays is None
            and not c.parts
            and c.candidate.shape.sharing is sharing
            and self.count(c.count)
        ]

    def _whole(self, s: int, free: dict[CellKey, list[str]]) -> list[Seat]:
        taken: dict[str | None, list[str]] = defaultdict(list)
        for at, gpus in free.items():
            for owner, take in self.f.taken_whole.get(at, ()):
                number = self.count(take)
                taken[owner].extend(gpus[:number])
                del gpus[:number]
        new = sorted(
            self._groups(s), key=lambda g: (-g[0].candidate.shape.block, -g[1], g[0].deployment)
        )
        seats = []
        for c, size, number in new:
            for _ in range(number):
                held: list[str] = []
                for _ in range(size // c.candidate.shape.block):
                    pool = self._pool(taken, c.deployment, c.candidate.shape.block)
                    pool.sort(key=_gpu_order)
                    held += pool[: c.candidate.shape.block]
                    del pool[: c.candidate.shape.block]
                if c.parts:
                    self.parts.setdefault(id(c), (c, []))[1].extend(held)
                else:
                    seats.append(Seat(c.deployment, c.candidate, tuple(held)))
        return seats

    def _groups(self, s: int) -> list[tuple[Copies, int, int]]:
        """Who takes whole GPUs in a site, how many of one node and how many times."""
        plain = [(c, c.candidate.shape.gpus, n) for c, n in self._new(s, Sharing.WHOLE)]
        parts = [
            (c, part.gpus, self.count(part.count))
            for c in self.f.copies
            if c.stays is None
            for part in c.parts
            if part.site == s and self.count(part.count)
        ]
        return plain + parts

    def pipelines(self) -> list[Seat]:
        """Seats of pipelines, from their parts in the sites decoded so far."""
        return [
            Seat(c.deployment, c.candidate, tuple(sorted(gpus, key=_gpu_order)))
            for c, gpus in self.parts.values()
        ]

    def _gpus(self, at: CellKey) -> tuple[str, ...]:
        s, z, c = at
        return self.f.sites[s].zones[z].cells[c].gpus

    @staticmethod
    def _pool(taken: dict[str | None, list[str]], deployment: str, size: int) -> list[str]:
        prefix = f"pair:{deployment}:"
        paired = [k for k in sorted(k for k in taken if k) if k.startswith(prefix) and taken[k]]
        if size == 2 and paired:
            return taken[paired[0]]
        return taken[deployment] if taken.get(deployment) else taken[None]

    def _mig(self, s: int, free: dict[CellKey, list[str]]) -> list[Seat]:
        slots: dict[tuple[int, str, str], list[tuple[str, Filling]]] = defaultdict(list)
        cut: list[tuple[str, Filling]] = []
        for filling in self.f.fillings:
            if filling.at[0] != s or filling.mig is None:
                continue
            for _ in range(self.count(filling.count)):
                gpu = free[filling.at].pop(0)
                cut.append((gpu, filling))
                for profile, number in filling.mig.added:
                    slots[filling.at[1], filling.colour, profile] += [(gpu, filling)] * number
        wanted: dict[str, list[tuple[Copies, str]]] = defaultdict(list)
        for c, number in self._new(s, Sharing.MIG):
            profile = c.candidate.shape.profile or ""
            room = slots[c.zone or 0, c.colour or "", profile]
            for _ in range(number):
                gpu, _ = room.pop(0)
                wanted[gpu].append((c, profile))
        seats = []
        for gpu, filling in cut:
            seats += self._cut(gpu, filling, wanted.get(gpu, []))
        return seats

    def _cut(self, gpu: str, filling: Filling, wanted: list[tuple[Copies, str]]) -> list[Seat]:
        site = self.f.sites[filling.at[0]]
        cell = site.zones[filling.at[1]].cells[filling.at[2]]
        assert site.gpu.mig is not None
        assert filling.mig is not None
        stays = [r.mig for r, _ in cell.replicas if r.id in filling.mig.stays and r.mig]
        standing = list(cell.standing)
        for placed in stays:
            standing.remove(placed)
        starts = layout(
            site.gpu.mig,
            tuple(sorted(stays)),
            tuple(standing),
            tuple(sorted(profile for _, profile in wanted)),
        )
        pool = defaultdict(list)
        for placed in starts:
            pool[placed.profile].append(placed)
        return [
            Seat(c.deployment, c.candidate, (gpu,), pool[profile].pop(0)) for c, profile in wanted
        ]

    def _shared(self, s: int, free: dict[CellKey, list[str]]) -> list[Seat]:
        slots: dict[tuple[int, str, Use], list[str]] = defaultdict(list)
        for filling in self.f.fillings:
            if filling.at[0] == s and filling.shares is not None:
                for _ in range(self.count(filling.count)):
                    gpu = free[filling.at].pop(0)
                    for share, number in filling.shares:
                        slots[filling.at[1], filling.colour, share] += [gpu] * number
        seats = []
        one_by_one: dict[CellKey, list[tuple[Copies, int]]] = defaultdict(list)
        for c, number in self._new(s, Sharing.SHARED):
            if c.cell is not None:
                one_by_one[s, c.zone or 0, c.cell].append((c, number))
                continue
            room = slots[c.zone or 0, c.colour or "", c.candidate.shape.share or Use()]
            seats += [Seat(c.deployment, c.candidate, (room.pop(0),)) for _ in range(number)]
        for at, packed in one_by_one.items():
            gpu = self._gpus(at)[0]
            for c, number in packed:
                seats += [Seat(c.deployment, c.candidate, (gpu,))] * number
        return seats


def _gpu_order(gpu: str) -> tuple[str, int]:
    node, _, index = gpu.rpartition("/")
    return (node, int(index))


@lru_cache(maxsize=65536)
def layout(
    table: MigTable,
    stays: tuple[PlacedProfile, ...],
    standing: tuple[PlacedProfile, ...],
    profiles: tuple[str, ...],
) -> tuple[PlacedProfile, ...]:
    """Where new instances of ``profiles`` start on a GPU beside instances that stay.

    The fewest instances are created or destroyed, then the least room is stranded, then the
    lowest starts. Raises ValueError where no legal layout exists.
    """
    want = sorted(profiles)
    best: tuple[tuple[int, int, tuple[PlacedProfile, ...]], tuple[PlacedProfile, ...]] | None = None
    for option in all_layouts(table, tuple(sorted(set(profiles)))):
        if sorted(p.profile for p in option) != want or table.faults((*stays, *option)):
            continue
        created = [p for p in option if p not in standing]
        rest = [p for p in standing if p not in option]
        destroyed = [p for p in rest if table.faults((*stays, *option, p))]
        cuts = len(created) + len(destroyed)
        key = (cuts, stranded_slices(table, (*stays, *option)), option)
        if best is None or key < best[0]:
            best = (key, option)
    if best is None:
        raise ValueError(f"no layout holds {stays} and {profiles}")
    return best[1]


def stranded_slices(table: MigTable, taken: Sequence[PlacedProfile]) -> int:
    """Free memory slices in pieces that hold no profile of half the GPU or more."""
    free = [True] * table.memory_slices
    for placed in taken:
        profile = table.profile(placed.profile)
        for cell in range(placed.start, placed.start + (profile.memory_slices if profile else 0)):
            free[cell] = False
    large = [p for p in table.profiles if 2 * p.memory_slices >= table.memory_slices]
    stranded, start = 0, 0
    while start < table.memory_slices:
        end = start
        while end < table.memory_slices and free[end]:
            end += 1
        if end > start and not any(
            start <= s and s + p.memory_slices <= end for p in large for s in p.starts
        ):
            stranded += end - start
        start = max(end, start + 1)
    return stranded


def _without_surplus(
    problem: PlacementProblem,
    stays: tuple[Replica, ...],
    kept_as: Mapping[str, Candidate],
    seats: list[Seat],
) -> tuple[tuple[Replica, ...], list[Seat]]:
    """Leave out replicas that the demand does not need: new ones first, smallest first."""
    gone: set[int] = set()
    wanted = {name for d in problem.deployments for name in d.near}
    wanted |= {d.name for d in problem.deployments if d.survive}
    seats_of, stays_of = _by_deployment(seats), _by_deployment(stays)
    for d in problem.deployments:
        if d.name in wanted:
            continue  # another may need each of its replicas near, or one of them a loss to outlive
        mine, old = seats_of.get(d.name, []), stays_of.get(d.name, [])
        served = sum(capacity_mrps(d, s.candidate) for s in mine)
        served += sum(capacity_mrps(d, kept_as[r.id]) for r in old)
        number = len(mine) + len(old)
        for seat in sorted(mine, key=lambda s: (capacity_mrps(d, s.candidate), s.gpus)):
            capacity = capacity_mrps(d, seat.candidate)
            if number > d.min_replicas and served - capacity >= (d.asked_mrps or 0):
                gone.add(id(seat))
                served, number = served - capacity, number - 1
        for r in sorted(old, key=lambda r: (capacity_mrps(d, kept_as[r.id]), -r.number)):
            if d.disturb == "never":
                break
            capacity = capacity_mrps(d, kept_as[r.id])
            if number > d.min_replicas and served - capacity >= (d.asked_mrps or 0):
                gone.add(id(r))
                served, number = served - capacity, number - 1
    return tuple(r for r in stays if id(r) not in gone), [s for s in seats if id(s) not in gone]


Held = TypeVar("Held", Seat, Replica)


def _by_deployment(held: Iterable[Held]) -> dict[str, list[Held]]:
    found: dict[str, list[Held]] = {}
    for one in held:
        found.setdefault(one.deployment, []).append(one)
    return found


def settled(
    problem: PlacementProblem,
    stays: tuple[Replica, ...],
    kept_as: Mapping[str, Candidate],
    seats: list[Seat],
) -> Placement:
    """The placement of replicas that stay, each with the candidate it runs as, and new ones."""
    return _named(problem, *_without_surplus(problem, stays, kept_as, seats))


def settle(problem: PlacementProblem, seats: list[Seat]) -> Placement:
    """The placement of new replicas only, surplus ones left out, with ids."""
    _, needed = _without_surplus(problem, (), {}, seats)
    return _named(problem, (), needed)


def _named(
    problem: PlacementProblem,
    stays: Sequence[Replica],
    seats: Sequence[Seat],
) -> Placement:
    """Ids: stayers keep theirs, movers take those of who left, new ones the lowest free."""
    before = problem.current.replicas if problem.current else ()
    replicas = list(stays)
    stays_of, seats_of, ran = _by_deployment(stays), _by_deployment(seats), _by_deployment(before)
    for d in problem.deployments:
        held = {r.id for r in stays_of.get(d.name, [])}
        here = sorted(
            seats_of.get(d.name, []),
            key=lambda s: (_gpu_order(s.gpus[0]), s.mig or PlacedProfile(-1, ""), s.candidate.key),
        )
        left = sorted(ran.get(d.name, []), key=lambda r: replica_order(r.id))
        leaving = [r for r in left if r.id not in held]
        named, rest = _same_place_first(here, leaving)
        ids = [r.id for r in leaving if r.id not in {i for i, _ in named}]
        known = held | {r.id for r in leaving}
        fresh = (f"{d.name}/{n}" for n in range(len(known) + len(here) + 1))
        ids += [i for i in fresh if i not in known]
        named += list(zip(ids, rest, strict=False))
        for replica_id, seat in named:
            replicas.append(
                Replica(
                    replica_id,
                    d.name,
                    seat.gpus,
                    seat.mig,
                    seat.candidate.shape.share,
                    seat.candidate.config,
                )
            )
    replicas.sort(key=lambda r: replica_order(r.id))
    return Placement(tuple(replicas), still_standing(problem, replicas))


def _same_place_first(
    seats: Sequence[Seat], leaving: Sequence[Replica]
) -> tuple[list[tuple[str, Seat]], list[Seat]]:
    """A replica that only changes its configuration keeps its id where it is."""
    named: list[tuple[str, Seat]] = []
    rest = list(seats)
    for replica in leaving:
        for seat in rest:
            share = seat.candidate.shape.share
            if (seat.gpus, seat.mig, share) == (replica.gpus, replica.mig, replica.share):
                named.append((replica.id, seat))
                rest.remove(seat)
                break
    return named, rest


def still_standing(problem: PlacementProblem, replicas: Sequence[Replica]) -> tuple[Instance, ...]:
    """MIG instances of today, or fixed ones, that are empty now and overlap nothing new."""
    fixed = fixed_layout(problem)
    if problem.current is None and not fixed:
        return ()
    current = problem.current or Placement()
    held: dict[str, list[PlacedProfile]] = defaultdict(list)
    other: set[str] = set()
    for replica in replicas:
        for gpu in replica.gpus:
            if replica.mig is not None:
                held[gpu].append(replica.mig)
            else:
                other.add(gpu)
    before = [Instance(r.gpus[0], r.mig) for r in current.replicas if r.mig is not None]
    before = [i for i in (*before, *current.instances) if i.gpu not in fixed]
    before += [Instance(gpu, placed) for gpu, layout in fixed.items() for placed in layout]
    tables = {gpu.id: gpu.gpu.mig for gpu in problem.fleet.gpus()}
    standing = []
    for instance in sorted(
        set(before),
        key=lambda i: (_gpu_order(i.gpu), i.placed.start, i.placed.profile),
    ):
        table = tables.get(instance.gpu)
        taken = held[instance.gpu]
        if table is None or instance.gpu in other or instance.placed in taken:
            continue
        if not table.faults((*taken, instance.placed)):
            standing.append(instance)
            taken.append(instance.placed)
    return tuple(standing)
