"""What differs between two plans, or a plan and a placement: as data, and as text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimizer.domain import words
from optimizer.domain.config import ReplicaConfig
from optimizer.domain.placement import Placement, Replica, replica_order
from optimizer.domain.plan import Plan
from optimizer.report.amounts import CENT, adding_up
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
    tenants: Mapping[str, str] = field(default_factory=dict)  # of deployments, as far as known
    tenant_prices: tuple[tuple[str, int, int], ...] = ()  # micros before and after, where changed

    def tenant_of(self, change: Change) -> str:
        """Whose replica it is; empty where neither side says."""
        replica = change.after or change.before
        return "" if replica is None else self.tenants.get(replica.deployment, "")

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
    plans = [side for side in (a, b) if isinstance(side, Plan)]
    whose = {d.name: d.tenant for plan in plans for d in plan.deployments}
    if isinstance(a, Plan) and isinstance(b, Plan):
        prices = (a.price_micros, b.price_micros)
        by_tenant = _changed(_paid(a), _paid(b))
        return Diff(tuple(found), on, off, b.unit, prices, _unmet(a, b), whose, by_tenant)
    return Diff(tuple(found), on, off, tenants=whose)


def _paid(plan: Plan) -> dict[str, int]:
    return {t.name: t.price_micros for t in plan.tenants}


def _changed(a: Mapping[str, int], b: Mapping[str, int]) -> tuple[tuple[str, int, int], ...]:
    """What differs by name, nothing counting as 0."""
    pairs = ((n, a.get(n, 0), b.get(n, 0)) for n in sorted({*a, *b}))
    return tuple(p for p in pairs if p[1] != p[2])


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
    return None if _agree(before.config, after.config) else "reconfigured"


def _agree(before: ReplicaConfig, after: ReplicaConfig) -> bool:
    """Whether nothing that both say differs; who says nothing else has its sizes from its GPUs."""
    for config in (before, after):
        if replace(config, tensor_parallel=1, pipeline_parallel=1) == ReplicaConfig():
            return True
    return before.agrees_with(after)


def _unmet(a: Plan, b: Plan) -> tuple[tuple[str, int, int], ...]:
    first = {u.deployment: u.missing_mrps for u in a.unmet}
    return _changed(first, {u.deployment: u.missing_mrps for u in b.unmet})


def sentences(found: Diff) -> tuple[str, ...]:
    """The difference in a few lines: replicas, GPUs, price, unmet demand."""
    if found.same:
        return ("no difference",)
    told = []
    counts = [(len(found.of_kind(k)), k) for k in ("added", "removed", "moved", "reconfigured")]
    listed = ", ".join(f"{n} {kind}" for n, kind in counts if n)
    told.append(f"replicas: {listed or 'none changed'}")
    if touched := _touched(found):
        told.append(f"touched: {touched}")
    if found.price_micros is not None:
        was, now = found.price_micros
        change = "unchanged" if now == was else _signed(now - was, found.unit)
        both = f"{words.price(was, found.unit)} to {words.price(now, found.unit)}"
        told.append(f"price: {both}, {change}")
    if found.tenant_prices:
        ranked = sorted(found.tenant_prices, key=lambda t: (-abs(t[2] - t[1]), t[0]))
        changes = [CENT * cents for cents in adding_up([now - was for _, was, now in ranked])]
        pairs = zip(ranked, changes, strict=True)
        each = ", ".join(f"{name} {_signed(change, found.unit)}" for (name, *_), change in pairs)
        told.append(f"by tenant: {each}")
    if found.gpus_on:
        told.append(f"GPUs newly used: {words.gpus(found.gpus_on)}")
    if found.gpus_off:
        told.append(f"GPUs freed: {words.gpus(found.gpus_off)}")
    for name, was, now in found.unmet:
        told.append(f"{name} misses {words.rate(now)} instead of {words.rate(was)}")
    return tuple(told)


def _touched(found: Diff) -> str:
    """``acme 3 replicas, globex 1``: whose replicas change, most first."""
    counts = Counter(name for c in found.changes if (name := found.tenant_of(c)))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(
        f"{name} {words.plural(count, 'replica') if i == 0 else f'{count:,}'}"
        for i, (name, count) in enumerate(ranked)
    )


def _signed(change: int, unit: str) -> str:
    return f"{'+' if change >= 0 else '-'}{words.price(abs(change), unit)}"


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
        table.add_row(change.replica, kind, side(change.before), side(change.after))
    return table


def side(replica: Replica | None) -> str:
    if replica is None:
        return "-"
    how = words.settings(replica.config)
    return f"{words.place(replica)} {how}".rstrip()
