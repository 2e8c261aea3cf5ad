"""The map: a line per GPU, its slices to scale; large fleets folded by what their GPUs hold."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.style import Style
from rich.text import Text

from optimizer.domain import words
from optimizer.domain.placement import node_of
from optimizer.domain.plan import GpuPlan, Plan
from optimizer.report.ink import Ink, shorten
from optimizer.report.pieces import Layout, Piece

LINES = 64  # a fleet of more GPUs is folded by class
CLASSES = 48  # of those the most frequent are drawn
INDEX = 6  # columns before the bar: index and bracket
ROOMY = 100  # columns from which on a folded map names the GPUs that are like no other
RIGHT = 8  # columns after the bar: how full the memory is


class FleetMap:
    """The GPUs of a plan as lines of text."""

    def __init__(self, plan: Plan, ink: Ink) -> None:
        self.plan = plan
        self.ink = ink
        self.layout = Layout(plan)
        folded = len(plan.gpus) > LINES and ink.width >= ROOMY
        ids = max((len(g.id) + 2 for g in plan.gpus), default=0) if folded else 0
        self.bar = max(24, (ink.width - INDEX - RIGHT - ids) // 8 * 8)

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
        text.append_text(self._drawn(self.layout.pieces(gpu)))
        return text.append(f" {_memory_percent(gpu):>3} %")

    def _bracket(self, gpu: GpuPlan) -> str:
        """Marks the GPUs of one group: first, middle and last."""
        replica = self.layout.replicas.get(gpu.replicas[0]) if gpu.replicas else None
        if replica is None or len(replica.gpus) < 2:
            return " "
        where = replica.gpus.index(gpu.id)
        glyphs = self.ink.glyphs
        if where == 0:
            return glyphs.first
        return glyphs.last if where == len(replica.gpus) - 1 else glyphs.middle

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
        pieces = {(p.kind, bool(p.label)) for g in self.plan.gpus for p in self._shown(g)}
        shown = {self.layout.tenants[r.deployment] for r in self.layout.replicas.values()} & {
            *self.ink.colours
        }
        for tenant in sorted(shown):
            if self.ink.console.color_system is not None and not self.ink.console.no_color:
                text.append(f"{glyphs.tenant} ", self.ink.name(tenant)).append(f"{tenant}  ")
        if ("free", False) in pieces:
            text.append(f"{glyphs.free * 3} free  ", "dim")
        if ("stranded", False) in pieces:
            text.append(f"{glyphs.stranded * 3} stranded (under half a GPU)  ", "dim")
        if pieces & {("free", True), ("stranded", True)}:
            text.append("(2g.20gb) empty instance  ", "dim")
        return text.append("% memory", "dim") if pieces else text

    def _shown(self, gpu: GpuPlan) -> list[Piece]:
        return self.layout.pieces(gpu) if _used(gpu) else []

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
        pieces = self.layout.pieces(first, generic=True)
        text.append_text(self._drawn(pieces)).append(f" {_memory_percent(first):>3} %")
        if len(members) == 1 and text.cell_len + len(first.id) + 2 <= self.ink.width:
            text.append(f"  {first.id}", "dim")  # an outlier; where there is room, say which
        return text

    def _class(self, gpu: GpuPlan) -> tuple[object, ...]:
        pieces = tuple(self.layout.pieces(gpu, generic=True)) if _used(gpu) else ()
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
