"""How far apart a mix must lie, as rows of the program that chooses mixes.

Rules ``spread`` and ``survive`` say how many replicas of a deployment one node may hold, so a mix
needs so many nodes. Each of those is a GPU cut for it, and a node with one block less for large
groups. Summed over alike nodes nothing says so: without these rows the counts would put all that a
loss may take on one GPU, or take whole nodes for groups and leave too few for everybody else.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ortools.math_opt.python import mathopt

from optimizer.domain.fleet import Sharing
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.formulation import Copies, Filling
from optimizer.solver.master import Master
from optimizer.solver.outlive import Rates, domains_needed
from optimizer.solver.selection import Selection


@dataclass(frozen=True, slots=True)
class Room:
    """What a node gives to a replica: GPUs of one kind of use, or a block of whole GPUs."""

    site: int
    zone: int = 0
    colour: str = ""
    part: str = ""  # a MIG profile, or the mode of sharing
    block: int = 0  # GPUs of a block that something smaller takes


def spare_mrps(d: Deployment, served: int) -> int | None:
    """What a loss may take; None where none need be outlived."""
    return served - d.asked_mrps if d.survive and d.asked_mrps else None


def nodes_needed(d: Deployment, spare: int | None, replicas: Rates) -> int:
    """At least so many nodes hold these replicas, of which a loss may take ``spare``."""
    number = sum(n for _, n in replicas)
    if not number:
        return 0
    least = [1]
    least += [ceil_div(number, most) for most in (d.spread_node, d.spread_rack) if most]
    if spare:
        least.append(domains_needed(spare, replicas))
    return max(least)


@dataclass(slots=True)
class Apart:
    """The rows of one program, by deployment and the room that its replicas must find apart."""

    master: Master
    rows: dict[tuple[str, Room], mathopt.LinearConstraint] = field(default_factory=dict)
    copies: dict[int, Copies] = field(init=False)
    rate_of: dict[int, int] = field(init=False)  # of a place, no more than is asked
    blocks: dict[int, list[tuple[int, int]]] = field(init=False)  # size and number by site

    def __post_init__(self) -> None:
        self.copies = {c.count.index: c for c in self.master.f.copies}
        self.rate_of = {v: rate for some in self.master.items.values() for v, rate in some}
        self.blocks = _blocks(self.master)

    def rooms(self, c: Copies) -> Iterator[Room]:
        """What a replica there needs on its node."""
        shape = c.candidate.shape
        if c.colour is not None:
            at = (c.site, c.zone or 0, c.colour)
            yield Room(*at, part=shape.sharing.value)
            if shape.profile is not None:
                yield Room(*at, part=shape.profile)
        for size, _ in self.blocks.get(c.site, ()) if not c.parts else ():
            if shape.gpus < size:
                yield Room(c.site, block=size)

    def groups(self, c: Copies) -> Iterator[tuple[Room, int]]:
        """The blocks that a group of whole GPUs takes there."""
        shape = c.candidate.shape
        if shape.sharing is Sharing.WHOLE and not c.parts:
            for size, _ in self.blocks.get(c.site, ()):
                if shape.gpus % size == 0:
                    yield Room(c.site, block=size), shape.gpus // size

    def needs(self, counts: Sequence[tuple[int, int]]) -> Iterator[tuple[str, Room, int]]:
        """Nodes that a mix needs, by room."""
        d = self.master.names[self.copies[counts[0][0]].deployment]
        served = sum(self.rate_of[v] * n for v, n in counts)
        spare = spare_mrps(d, served)
        if spare is None and not d.spread_node and not d.spread_rack:
            return
        held: dict[Room, Rates] = defaultdict(list)
        for v, n in counts:
            for room in self.rooms(self.copies[v]):
                held[room].append((self.rate_of[v], n))
        for room, replicas in held.items():
            yield d.name, room, nodes_needed(d, spare, replicas)

    def bind(self, selection: Selection) -> None:
        """All rows that may say something."""
        wanted: dict[tuple[str, Room], list[tuple[mathopt.Variable, int]]] = defaultdict(list)
        groups: dict[Room, dict[mathopt.Variable, int]] = defaultdict(dict)
        for mix, x in selection.mixes:
            for name, room, number in self.needs(mix.counts) if mix.counts else ():
                wanted[name, room].append((x, number))
            for v, n in mix.counts:
                for room, number in self.groups(self.copies[v]):
                    groups[room][x] = groups[room].get(x, 0) + n * number
        supply = self._supply(selection)
        sums: dict[Room, mathopt.Variable | None] = {}
        for (name, room), terms in wanted.items():
            if max(n for _, n in terms) < 2:
                continue
            if room not in sums:
                some = groups.get(room) if room.block else supply.get(room)
                sums[room] = _sum(selection.model, some) if some else None
            of_all = sums[room]
            if of_all is None:
                continue
            row = selection.model.add_linear_constraint(ub=self.most(room))
            self.rows[name, room] = row
            row.set_coefficient(of_all, 1.0 if room.block else -1.0)
            for x, number in terms:
                row.set_coefficient(x, number)

    def most(self, room: Room) -> int:
        """Nodes needed and blocks that groups take, or less the GPUs in use, are at most this."""
        return dict(self.blocks[room.site])[room.block] if room.block else 0

    def gives(self, filling: Filling) -> Iterator[Room]:
        """The rooms that a GPU used that way gives."""
        at = (filling.at[0], filling.at[1], filling.colour)
        yield Room(*at, part=filling.mode.value)
        for profile, _ in filling.mig.added if filling.mig is not None else ():
            yield Room(*at, part=profile)

    def _supply(self, selection: Selection) -> dict[Room, dict[mathopt.Variable, int]]:
        found: dict[Room, dict[mathopt.Variable, int]] = defaultdict(dict)
        for filling in self.master.f.fillings:
            y = selection.fillings.get(filling.count.index)
            for room in self.gives(filling) if y is not None else ():
                found[room][y] = 1
        return found


def _sum(model: mathopt.Model, terms: dict[mathopt.Variable, int]) -> mathopt.Variable:
    """A variable that is their sum."""
    found = model.add_variable(lb=0.0)
    row = model.add_linear_constraint(lb=0.0, ub=0.0)
    row.set_coefficient(found, -1.0)
    for x, number in terms.items():
        row.set_coefficient(x, number)
    return found


def _blocks(master: Master) -> dict[int, list[tuple[int, int]]]:
    """By site: sizes of groups of whole GPUs that fill its nodes, and room for how many."""
    sizes: dict[int, set[int]] = defaultdict(set)
    for c in master.f.copies:
        shape = c.candidate.shape
        if shape.sharing is Sharing.WHOLE and shape.gpus > 1 and not c.parts:
            sizes[c.site].add(shape.gpus)
    found: dict[int, list[tuple[int, int]]] = {}
    for s, some in sorted(sizes.items()):
        site = master.f.sites[s]
        each = site.gpus // len(site.nodes)
        if site.gpus == each * len(site.nodes):
            found[s] = [(size, site.groups(size)) for size in sorted(some) if each % size == 0]
    return found
