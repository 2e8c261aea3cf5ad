"""Scenarios beside the baseline as rows, families as heat maps and curves: for text and pages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from optimizer.domain import words
from optimizer.domain.placement import node_of
from optimizer.domain.plan import DeploymentPlan, Plan

Data = Mapping[str, Any]

ALL_SHOWN = 40  # of more scenarios, only the worst and the best are shown
ENDS_SHOWN = 15
WORDS = {
    "optimal": "optimal",
    "within_gap": "in gap",
    "infeasible": "infeasible",
    "nothing_found": "none found",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario in words; what is not known is empty."""

    name: str
    status: str
    price: float | None
    change: float | None  # of the price, as a part of the baseline's
    gpus: int | None
    unmet: tuple[str, ...]
    moves: int | None
    promise: str
    differences: tuple[str, ...]
    failed: str
    products: tuple[tuple[str, int], ...] = ()  # GPUs in use
    missing: float = 0.0  # requests per second and replicas, added up

    @property
    def change_told(self) -> str:
        """``+3.1 %``, ``same``, or nothing."""
        if self.change is None:
            return ""
        return "same" if abs(self.change) < 0.0005 else f"{100 * self.change:+.1f} %"

    @property
    def badness(self) -> tuple[bool, bool, int, float, float]:
        """To sort by: failed, without a plan, how many are short, of how much, the price."""
        known = (self.missing, self.price or 0.0)
        return bool(self.failed), self.price is None, len(self.unmet), *known


def row(scenario: Data, baseline: Data) -> Row:
    """A scenario of ``whatif -o json``."""
    price, was = scenario.get("price_per_hour"), baseline.get("price_per_hour")
    change = (price - was) / was if price is not None and was else None
    return Row(
        name=str(scenario["name"]),
        status="failed" if scenario.get("failed") else _known(scenario),
        price=price,
        change=change,
        gpus=scenario.get("gpus_used"),
        unmet=tuple(str(one["deployment"]) for one in scenario.get("unmet") or ()),
        moves=scenario.get("moves"),
        promise=_promise(scenario.get("tightest_slo")),
        differences=tuple(str(one) for one in scenario.get("differences") or ()),
        failed=str(scenario.get("failed") or ""),
        products=tuple((scenario.get("gpus_by_product") or {}).items()),
        missing=sum(
            one.get("missing_rps", 0.0) + one.get("missing_replicas", 0)
            for one in scenario.get("unmet") or ()
        ),
    )


def _known(scenario: Data) -> str:
    """The status in two words; of a search that its effort ended, how far the price may be off."""
    status = str(scenario.get("status") or "")
    if status != "limit":
        return WORDS.get(status, status)
    price, bound = scenario.get("price_per_hour"), scenario.get("bound")
    if not scenario.get("unmet_proved"):
        return "not proved"
    return "not proved" if not (price and bound) else f"in {100 * (price - bound) / price:.2g} %"


def rows(data: Data) -> tuple[Row, list[Row]]:
    """The baseline, whose moves say nothing, and every scenario."""
    before = data.get("baseline") or {}
    first = row({**before, "name": "baseline", "moves": None}, {})
    return first, [row(scenario, before) for scenario in data["scenarios"]]


def ends(found: Sequence[Row]) -> tuple[list[Row], int]:
    """All in their order; of many those that failed, the worst and the best, and how many not."""
    if len(found) <= ALL_SHOWN:
        return list(found), 0
    ranked = sorted(found, key=lambda r: r.badness, reverse=True)
    failed = sum(bool(r.failed) for r in ranked)
    worst, best = ranked[: failed + ENDS_SHOWN], ranked[failed + ENDS_SHOWN :][-ENDS_SHOWN:]
    return [*worst, *best], len(ranked) - len(worst) - len(best)


def short_names(found: Sequence[Row]) -> dict[str, str]:
    """Products by as few words of their names as tell them apart: ``h100``, ``a100-40gb``."""
    names = sorted({name for row in found for name, _ in row.products})
    short = {}
    for name in names:
        words_of = name.split("-")
        for length in range(1, len(words_of) + 1):
            short[name] = "-".join(words_of[:length])
            if sum(f"{other}-".startswith(f"{short[name]}-") for other in names) == 1:
                break
    return short


@dataclass(frozen=True, slots=True)
class Spread:
    """How the answers of some scenarios are distributed; prices of those with a plan."""

    name: str
    scenarios: int
    failed: int
    impossible: int  # hard rules clash, or no plan was found
    short: int  # somebody is unmet
    best: Row | None
    middle: float | None
    worst: Row | None


def spread(name: str, found: Sequence[Row]) -> Spread:
    """The distribution over scenarios; the best is the cheapest of those where least is unmet."""
    answered = [r for r in found if not r.failed]
    planned = sorted((r for r in answered if r.price is not None), key=lambda r: r.badness)
    prices = [r.price for r in planned if r.price is not None]
    return Spread(
        name,
        len(found),
        failed=len(found) - len(answered),
        impossible=len(answered) - len(planned),
        short=sum(bool(r.unmet) for r in planned),
        best=planned[0] if planned else None,
        middle=median(prices) if prices else None,
        worst=max(answered, key=lambda r: r.badness, default=None),
    )


def by_family(found: Sequence[Row]) -> list[Spread]:
    """The distribution of each family with several members, in order."""
    families: dict[str, list[Row]] = {}
    for one in found:
        family, slash, _ = one.name.partition("/")
        if slash:
            families.setdefault(family, []).append(one)
    return [spread(name, rows) for name, rows in families.items() if len(rows) > 1]


def _promise(close: Data | None) -> str:
    """``chat TPOT 48.6 of 50 ms``."""
    if not close:
        return ""
    what = str(close["what"]).removesuffix("_ms").upper()
    predicted, promised = (words.number(close[k], 1) for k in ("predicted_ms", "promised_ms"))
    return f"{close['deployment']} {what} {predicted} of {promised} ms"


# --- families -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """What is unserved when one thing is lost: parts of what is asked, by deployment."""

    item: str
    row: Row
    missing: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Survival:
    """A family that takes one node (or rack) after the other away, in heat-map order."""

    family: str
    deployments: tuple[str, ...]  # those that are short somewhere
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A family over numbers, such as growth, as far as there are plans: the price at each."""

    family: str
    points: tuple[tuple[float, Row], ...]


def _families(data: Data) -> Iterator[tuple[str, list[tuple[str, Data]]]]:
    """Scenarios whose names read ``family/item``, by family."""
    found: dict[str, list[tuple[str, Data]]] = {}
    for scenario in data["scenarios"]:
        family, slash, item = str(scenario["name"]).partition("/")
        if slash:
            found.setdefault(family, []).append((item, scenario))
    yield from ((family, members) for family, members in found.items() if len(members) > 1)


def survivals(data: Data, plan: Plan) -> list[Survival]:
    """The families whose items are all nodes, or all racks, of the plan."""
    nodes = {node_of(g.id) for g in plan.gpus}
    racks = {g.rack for g in plan.gpus if g.rack is not None}
    asked = {d.name: d for d in plan.deployments}
    found = []
    for family, members in _families(data):
        items = {item for item, _ in members}
        if not (items <= nodes or items <= racks):
            continue
        short = [{u["deployment"]: _part(u, asked) for u in s["unmet"]} for _, s in members]
        names = sorted({n for one in short for n in one}, key=lambda n: (-_worst(n, short), n))
        losses = [
            Loss(item, row(s, data["baseline"]), tuple(one.get(n, 0.0) for n in names))
            for (item, s), one in zip(members, short, strict=True)
        ]
        losses.sort(key=lambda loss: (-sum(loss.missing), loss.row.price is not None))
        found.append(Survival(family, tuple(names), tuple(losses)))
    return found


def _worst(name: str, short: Sequence[Mapping[str, float]]) -> float:
    return max(one.get(name, 0.0) for one in short)


def _part(unmet: Data, asked: Mapping[str, DeploymentPlan]) -> float:
    """Missing over asked, in requests where a rate is asked, else in replicas."""
    known = asked.get(str(unmet["deployment"]))
    if known is None:
        return 1.0
    if known.demand_mrps:
        return min(1.0, float(unmet["missing_rps"]) * 1000 / known.demand_mrps)
    return min(1.0, int(unmet["missing_replicas"]) / max(1, known.replicas))


def sweeps(data: Data) -> list[Sweep]:
    """The families whose items are all numbers."""
    found = []
    for family, members in _families(data):
        values = [_value(item) for item, _ in members]
        if any(v is None for v in values):
            continue
        pairs = ((v, row(s, data["baseline"])) for v, (_, s) in zip(values, members, strict=True))
        points = sorted(
            ((v, r) for v, r in pairs if v is not None and r.price is not None),
            key=lambda p: p[0],
        )
        if points:
            found.append(Sweep(family, tuple(points)))
    return found


def _value(item: str) -> float | None:
    try:
        return float(item)
    except ValueError:
        return None
