"""What differs between two plans, or a plan and a placement: as data, and as text."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimizer.domain import words
from optimizer.domain.placement import Placement, Replica, replica_order
from optimizer.domain.plan import Plan
from optimizer.report.ink import Ink

ROWS = 60


@dataclass(frozen=True, slots=True)
class Change:
    """A replica that is not as it was. Kinds: added, removed, moved, reconfigured."""

    replica: str
    kind: str
    before: Replica | None
    after: Replica | None


@dataclass(frozen=True, slots=True)
class Diff:
    """From a to b. Prices and unmet demand are None where one side is only a placement.

    ``unmet`` pairs a deployment with its missing rates (mrps) before and after, where they differ.
    """

    changes: tuple[Change, ...]
    gpus_on: tuple[str, ...]
    gpus_off: tuple[str, ...]
    unit: str = words.GPUS
    price_micros: tuple[int, int] | None = None
    unmet: tuple[tuple[str, int, int], ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        priced = self.price_micros is not None and self.price_micros[0] != self.price_micros[1]
        return not (self.changes or self.gpus_on or self.gpus_off or priced or self.unmet)

    def of_kind(self, kind: str) -> tuple[Change, ...]:
        """The changes of one kind."""
        return tuple(c for c in self.changes if c.kind == kind)


def diff(a: Plan | Placement, b: Plan | Placement) -> Diff:
    """What must change for a to become b, replicas by id."""
    first, second = _placement(a), _placement(b)
    before, after = {r.id: r for r in first.replicas}, {r.id: r for r in second.replicas}
    found = []
    for name in sorted({*before, *after}, key=replica_order):
        kind = _kind(before.get(name), after.get(name))
        if kind is not None:
            found.append(Change(name, kind, before.get(name), after.get(name)))
    used = {g for r in first.replicas for g in r.gpus}
    uses = {g for r in second.replicas for g in r.gpus}
    on = tuple(sorted(uses - used, key=replica_order))
    off = tuple(sorted(used - uses, key=replica_order))
    if isinstance(a, Plan) and isinstance(b, Plan):
        prices = (a.price_micros, b.price_micros)
        return Diff(tuple(found), on, off, b.unit, prices, _unmet(a, b))
    return Diff(tuple(found), on, off)


def _placement(side: Plan | Placement) -> Placement:
    return side.placement if isinstance(side, Plan) else side


def _kind(before: Replica | None, after: Replica | None) -> str | None:
    if before is None:
        return "added"
    if after is None:
        return "removed"
    if (sorted(before.gpus), before.mig, before.share) != (
        sorted(after.gpus),
        after.mig,
        after.share,
    ):
        return "moved"
    return None if before.config.agrees_with(after.config) else "reconfigured"


def _unmet(a: Plan, b: Plan) -> tuple[tuple[str, int, int], ...]:
    first = {u.deployment: u.missing_mrps for u in a.unmet}
    second = {u.deployment: u.missing_mrps for u in b.unmet}
    names = sorted({*first, *second})
    pairs = ((n, first.get(n, 0), second.get(n, 0)) for n in names)
    return tuple(p for p in pairs if p[1] != p[2])


def sentences(found: Diff) -> tuple[str, ...]:
    """The difference in a few lines: replicas, GPUs, price, unmet demand."""
    if found.same:
        return ("no difference",)
    told = []
    counts = [(len(found.of_kind(k)), k) for k in ("added", "removed", "moved", "reconfigured")]
    listed = ", ".join(f"{n} {kind}" for n, kind in counts if n)
    told.append(f"replicas: {listed or 'none changed'}")
    if found.price_micros is not None:
        was, now = found.price_micros
        sign = "+" if now >= was else "-"
        change = f"{sign}{words.price(abs(now - was), found.unit)}"
        if now == was:
            change = "unchanged"
        both = f"{words.price(was, found.unit)} to {words.price(now, found.unit)}"
        told.append(f"price: {both}, {change}")
    if found.gpus_on:
        told.append(f"GPUs newly used: {words.gpus(found.gpus_on)}")
    if found.gpus_off:
        told.append(f"GPUs freed: {words.gpus(found.gpus_off)}")
    for name, was, now in found.unmet:
        told.append(f"{name} misses {words.rate(now)} instead of {words.rate(was)}")
    return tuple(told)


def render_diff(found: Diff, console: Console, *, ascii: bool = False) -> None:
    """The difference as a few sentences and a table of replicas."""
    ink = Ink.of(console, ascii)
    for line in sentences(found):
        console.print(Text(ink.plain(line)))
    if found.changes:
        console.print()
        console.print(_table(found.changes, ink))
        if len(found.changes) > ROWS:
            console.print(Text(f"and {len(found.changes) - ROWS} more in the JSON", "dim"))


def _table(changes: Sequence[Change], ink: Ink) -> Table:
    styles = {"added": "green", "removed": "red", "moved": "yellow", "reconfigured": "cyan"}
    table = ink.table()
    table.add_column("replica", no_wrap=True, max_width=28)
    table.add_column("change", no_wrap=True)
    table.add_column("from")
    table.add_column("to")
    for change in changes[:ROWS]:
        kind = Text(change.kind, styles[change.kind])
        table.add_row(change.replica, kind, _side(change.before), _side(change.after))
    return table


def _side(replica: Replica | None) -> str:
    if replica is None:
        return "-"
    how = words.settings(replica.config)
    return f"{words.place(replica)} {how}".rstrip()
