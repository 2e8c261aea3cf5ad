"""The map: a line per GPU, its slices to scale; large fleets folded by what their GPUs hold."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.style import Style
from rich.text import Text

from optimizer.domain import words
from optimizer.domain.placement import Replica, node_of
from optimizer.domain.plan import GpuPlan, PlacedInstance, Plan
from optimizer.report.ink import Ink, shorten

LINES = 64  # a fleet of more GPUs is folded by class
CLASSES = 48  # of those the most frequent are drawn
INDEX = 6  # columns before the bar: index and bracket
RIGHT = 8  # columns after the bar: how full the memory is


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a GPU from ``start`` to ``end`` (fractions): held, free, or free and stranded."""

    start: float
    end: float
    kind: str  # held | free | stranded
    label: str = ""
    tenant: str = ""


class FleetMap:
    """The GPUs of a plan as lines of text."""

    def __init__(self, plan: Plan, ink: Ink) -> None:
        self.plan = plan
        self.ink = ink
        self.replicas: dict[str, Replica] = {r.id: r for r in plan.placement.replicas}
        self.tenants = {d.name: d.tenant for d in plan.deployments}
        self.bar = max(24, (ink.width - INDEX - RIGHT) // 8 * 8)

    def lines(self) -> Iterator[Text]:
        """The whole map, a line each: node by node, or folded by class."""
        if len(self.plan.gpus) > LINES:
            yield from self._folded()
        else:
            yield from self._by_node()

    def _by_node(self) -> Iterator[Text]:
        nodes = [(n, list(g)) for n, g in groupby(self.plan.gpus, lambda g: node_of(g.id))]
        for _, run in groupby(nodes, lambda n: _idle_class(n[1]) or n[0]):
            members = list(run)
            if _idle_class(members[0][1]) is None:
                for name, gpus in members:
                    yield from self._node(name, gpus)
            else:
                yield self._idle(members)

    def _idle(self, members: Sequence[tuple[str, list[GpuPlan]]]) -> Text:
        """Nodes in a row on which nothing runs, in one line."""
        first, last = members[0][0], members[-1][0]
        name = first if len(members) == 1 else f"{first} to {last}"
        count = sum(len(gpus) for _, gpus in members)
        text = self._heading(name, members[0][1])
        text.append(f", {words.plural(count, 'GPU')} empty", "dim")
        return text

    def _heading(self, name: str, gpus: Sequence[GpuPlan]) -> Text:
        text = Text(name, "bold")
        first = gpus[0]
        rack = f"rack {first.rack}, " if first.rack else ""
        price = "" if self.plan.unit == words.GPUS else f", {self._price(first)} per GPU"
        text.append(f"  {rack}{first.gpu}{price}", Style(bold=False))
        if all(g.cordoned for g in gpus):
            text.append("  cordoned", "bold yellow")
        return text

    def _price(self, gpu: GpuPlan) -> str:
        return words.price(gpu.price_micros, self.plan.unit)

    def _node(self, name: str, gpus: Sequence[GpuPlan]) -> Iterator[Text]:
        used = sum(g.mode != "empty" for g in gpus)
        yield self._heading(name, gpus).append(f", {used} of {len(gpus)} used", "dim")
        for _, run in groupby(gpus, lambda g: g.id if _used(g) else (g.cordoned, _standing(g))):
            members = list(run)
            if _used(members[0]):
                yield self._line(members[0])
            else:
                yield self._empty(members)

    def _empty(self, members: Sequence[GpuPlan]) -> Text:
        spans = words.runs(int(_index(g)) for g in members)
        what = "cordoned, empty" if members[0].cordoned else "empty"
        standing = _standing(members[0])
        if standing:
            what += f", with instances {' '.join(standing)}"
        return Text(f" {spans:>3}   {what}", "yellow" if members[0].cordoned else "dim")

    def _line(self, gpu: GpuPlan) -> Text:
        text = Text(f" {_index(gpu):>3} ").append(self._bracket(gpu))
        text.append_text(self._drawn(self._pieces(gpu)))
        return text.append(f" {_memory_percent(gpu):>3} %")

    def _bracket(self, gpu: GpuPlan) -> str:
        """Marks the GPUs of one group: first, middle and last."""
        replica = self.replicas.get(gpu.replicas[0]) if gpu.replicas else None
        if replica is None or len(replica.gpus) < 2:
            return " "
        where = replica.gpus.index(gpu.id)
        glyphs = self.ink.glyphs
        if where == 0:
            return glyphs.first
        return glyphs.last if where == len(replica.gpus) - 1 else glyphs.middle

    def _pieces(self, gpu: GpuPlan, generic: bool = False) -> list[Piece]:
        """The GPU from left to right; ``generic`` names deployments instead of replicas."""
        if gpu.mode == "shared":
            return self._shares(gpu, generic)
        if gpu.mode == "whole":
            return [self._whole(gpu, generic)]
        return self._slices(gpu, generic)

    def _label(self, replica_id: str, generic: bool) -> tuple[str, str]:
        deployment = replica_id.rpartition("/")[0]
        tenant = self.tenants.get(deployment, "default")
        return (deployment if generic else replica_id), tenant

    def _whole(self, gpu: GpuPlan, generic: bool) -> Piece:
        label, tenant = self._label(gpu.replicas[0], generic)
        replica = self.replicas.get(gpu.replicas[0])
        if replica is not None and len(replica.gpus) > 1:
            part = replica.gpus.index(gpu.id) + 1
            of = len(replica.gpus)
            label += f"  group of {of}" if generic else f"  GPU {part} of {of}"
        return Piece(0, 1, "held", label, tenant)

    def _shares(self, gpu: GpuPlan, generic: bool) -> list[Piece]:
        pieces, at = [], 0.0
        for name in gpu.replicas:
            replica = self.replicas.get(name)
            mib = replica.share.memory_mib if replica is not None and replica.share else 0
            end = at + mib / max(1, gpu.room.memory_mib)
            label, tenant = self._label(name, generic)
            pieces.append(Piece(at, end, "held", label, tenant))
            at = end
        if at < 1:
            pieces.append(Piece(at, 1, "stranded" if 1 - at < 0.5 else "free"))
        return pieces

    def _slices(self, gpu: GpuPlan, generic: bool) -> list[Piece]:
        """Held instances, and the room between them; an empty instance is room with a name."""
        total = gpu.memory_slices or 8
        pieces: list[Piece] = []
        taken: set[int] = set()
        empties: dict[int, PlacedInstance] = {}
        for instance in gpu.instances:
            start, end = _span(instance)
            if instance.replica is None:
                empties[start] = instance
                continue
            taken.update(range(start, end))
            label, tenant = self._label(instance.replica, generic)
            pieces.append(Piece(start / total, end / total, "held", label, tenant))
        for start, end in _runs(c for c in range(total) if c not in taken):
            kind = "free" if _holds_half(start, end, total) else "stranded"
            pieces.extend(_room(start, end, total, kind, empties))
        return sorted(pieces, key=lambda p: p.start)

    def _drawn(self, pieces: Sequence[Piece]) -> Text:
        glyphs = self.ink.glyphs
        text = Text(glyphs.edge)
        for piece in pieces:
            width = max(1, round(piece.end * self.bar) - round(piece.start * self.bar)) - 1
            if piece.kind == "held":
                label = shorten(piece.label, width, glyphs.more)
                text.append(label.ljust(width)[:width], self.ink.block(piece.tenant))
            else:
                glyph = glyphs.free if piece.kind == "free" else glyphs.stranded
                text.append(shorten(piece.label, width, glyphs.more).ljust(width, glyph), "dim")
            text.append(glyphs.edge)
        return text

    def legend(self) -> Text:
        """What colours and glyphs mean."""
        glyphs, text = self.ink.glyphs, Text()
        shown = {self.tenants[r.deployment] for r in self.replicas.values()} & {*self.ink.colours}
        for tenant in sorted(shown):
            if self.ink.console.color_system is not None and not self.ink.console.no_color:
                text.append(f"{glyphs.tenant} ", self.ink.name(tenant)).append(f"{tenant}  ")
        text.append(f"{glyphs.free * 3} free  {glyphs.stranded * 3} stranded ", "dim")
        text.append("(under half a GPU)  (2g.20gb) empty instance  % memory", "dim")
        return text

    def _folded(self) -> Iterator[Text]:
        """GPUs that hold the same deployments in the same places, drawn once with their number."""
        order: dict[tuple[object, ...], list[GpuPlan]] = {}
        for gpu in self.plan.gpus:
            order.setdefault(self._class(gpu), []).append(gpu)
        drawn = [m for m in order.values() if _used(m[0])]
        idle = [m for m in order.values() if not _used(m[0])]
        drawn.sort(key=lambda m: (m[0].gpu, -len(m), m[0].id))
        shown = sorted(drawn, key=lambda m: -len(m))[:CLASSES]
        kept = [m for m in drawn if m in shown]
        for product, run in groupby(kept, lambda m: m[0].gpu):
            count = sum(g.gpu == product for g in self.plan.gpus)
            used = sum(g.gpu == product and g.mode != "empty" for g in self.plan.gpus)
            text = Text(product, "bold")
            yield text.append(f"  {used:,} of {words.plural(count, 'GPU')} used", Style(bold=False))
            for members in run:
                yield self._folded_line(members)
        if len(drawn) > len(kept):
            rest = sum(len(m) for m in drawn) - sum(len(m) for m in kept)
            kinds = words.plural(len(drawn) - len(kept), "more kind")
            yield Text(f" and {kinds} of filling on {words.plural(rest, 'GPU')}", "dim")
        empty = Counter[str]()
        for members in idle:
            empty[members[0].gpu] += len(members)
        for product, count in sorted(empty.items()):
            yield Text(f" {words.plural(count, 'GPU')} of {product} empty", "dim")

    def _folded_line(self, members: Sequence[GpuPlan]) -> Text:
        count = f"{len(members)}{self.ink.glyphs.times}"
        first = members[0]
        text = Text(f"{count:>5}", "bold").append(" ", Style(bold=False))
        pieces = self._pieces(first, generic=True)
        return text.append_text(self._drawn(pieces)).append(f" {_memory_percent(first):>3} %")

    def _class(self, gpu: GpuPlan) -> tuple[object, ...]:
        pieces = tuple(self._pieces(gpu, generic=True)) if _used(gpu) else ()
        return (gpu.gpu, gpu.mode, gpu.cordoned, pieces)


def _used(gpu: GpuPlan) -> bool:
    return gpu.mode != "empty"


def _standing(gpu: GpuPlan) -> tuple[str, ...]:
    """Instances on a GPU on which nothing runs."""
    return tuple(words.slot(i.placed) for i in gpu.instances)


def _idle_class(gpus: Sequence[GpuPlan]) -> tuple[object, ...] | None:
    """What nodes on which nothing runs have in common; None when something does."""
    if any(_used(g) or g.instances for g in gpus) or len({g.cordoned for g in gpus}) > 1:
        return None
    first = gpus[0]
    return (first.gpu, first.rack, first.price_micros, first.cordoned, len(gpus))


def _index(gpu: GpuPlan) -> str:
    return gpu.id.rpartition("/")[2]


def _memory_percent(gpu: GpuPlan) -> int:
    return round(100 * gpu.use.memory_mib / max(1, gpu.room.memory_mib))


def _runs(cells: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbouring cells joined, as (first, one past the last)."""
    found: list[tuple[int, int]] = []
    for cell in cells:
        if found and found[-1][1] == cell:
            found[-1] = (found[-1][0], cell + 1)
        else:
            found.append((cell, cell + 1))
    return found


def _span(instance: PlacedInstance) -> tuple[int, int]:
    """The memory slices of an instance, as (first, one past the last)."""
    start = instance.placed.start
    return start, start + max(1, instance.memory_slices)


def _room(
    start: int, end: int, total: int, kind: str, empties: Mapping[int, PlacedInstance]
) -> Iterator[Piece]:
    """A free run, cut where empty instances stand in it."""
    at = start
    for first in sorted(s for s in empties if start <= s < end):
        if first > at:
            yield Piece(at / total, first / total, kind)
        last = _span(empties[first])[1]
        yield Piece(first / total, last / total, kind, f"({empties[first].placed.profile})")
        at = last
    if at < end:
        yield Piece(at / total, end / total, kind)


def _holds_half(start: int, end: int, total: int) -> bool:
    """Whether a free piece holds a half: every product's half starts at 0 or in the middle."""
    half = total // 2
    return any(start <= at and at + half <= end for at in (0, half))
