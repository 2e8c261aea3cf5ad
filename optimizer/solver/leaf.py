"""Whether deployments can be served by given numbers of GPUs: a proof that they cannot, or a way.

At the duals of these numbers, a way that costs at most what they cost consists of mixes whose
reduced cost is at most the distance to the bound. Near the bound they are few enough to list them
all; then a mixed integer program decides (its relaxation knows mixes, so its tree is small).
"""

from dataclasses import dataclass
from math import isinf

from optimizer.solver.bulk import ROOM_LEFT, Choice, filled
from optimizer.solver.master import Bound, Floats, Master
from optimizer.solver.mixes import Wanted, every_mix
from optimizer.solver.pricing import Item, Mix
from optimizer.solver.selection import Selection

MOST_MIXES = 400  # of one deployment: of more, places are counted in their stead
MANY_MIXES = 5_000  # of all; then those of least reduced cost are tried first
NEAREST = 2_000
LESS = 0.8
MOST_TURNS = 20
MOST_HALVINGS = 12
FEW_LOOKS = 4_000  # at mixes of one deployment, where only the nearest are listed
MOST_OPEN = 25  # deployments of too many mixes
TURNS = 4  # at finding shares that fit
SAFETY = 1e-7  # relative, on what is computed in floating point
LOOSE = 1e-6  # of a GPU, by which the row of a pool is loosened


Mixes = dict[str, list[Mix] | None]


@dataclass(frozen=True, slots=True)
class Effort:
    """What a tree may take: ``seconds`` are the safety stop."""

    seconds: float
    nodes: int


@dataclass(frozen=True, slots=True)
class Decided:
    """``impossible``: proved. A ``choice`` serves everybody. Neither: not known."""

    impossible: bool = False
    choice: Choice | None = None


def fewer_is_easier(master: Master) -> bool:
    """Whether no rule asks for replicas beside others, so that an idle one may always go.

    A row may count the GPUs that replicas take, if all other rows would let that count shrink.
    """
    counters: set[tuple[int, int]] = set()
    for number, row in enumerate(master.rows):
        for v, times in row.coefficients:
            if v not in master.owner or v in master.missing_indices:
                continue
            if not isinf(row.low if times > 0 else row.high):
                if times > 0:
                    return False
                counters |= {
                    (w, number) for w, n in row.coefficients if master.filling[w] and n > 0
                }
    defining = {number for _, number in counters}
    return all(
        r in defining or isinf(master.rows[r].low if times > 0 else master.rows[r].high)
        for w, _ in counters
        for r, times in master.by_variable[w]
    ) and all(master.costs[w] >= 0 and master.lows[w] <= 0 for w, _ in counters)


def decide(master: Master, bound: Bound, price: float, effort: Effort, *, prove: bool) -> Decided:
    """At the master's present ranges, whose ``bound`` is given; ``price`` in its units.

    Without ``prove`` only a choice is looked for where mixes are many.
    """
    slack = price - bound.value + SAFETY * max(1.0, abs(price))
    if slack <= 0:
        return Decided(impossible=True)
    mixes = _mixes(master, bound, slack, MOST_MIXES)
    listed = sum(len(some or ()) for some in mixes.values())
    left_open = sum(some is None for some in mixes.values())
    if any(some is not None and not some for some in mixes.values()):
        return Decided(impossible=True)
    if left_open or listed > MANY_MIXES:
        near = _nearest(master, bound, slack)
        found = _chosen(master, bound, near, slack, effort)
        if found.choice is not None or left_open > MOST_OPEN or not prove:
            return Decided(choice=found.choice)
    return _chosen(master, bound, mixes, slack, effort)


def _chosen(master: Master, bound: Bound, mixes: Mixes, slack: float, effort: Effort) -> Decided:
    """A choice among these mixes whose shares fit, or that there is none of any kind."""
    if any(some is not None and not some for some in mixes.values()):
        return Decided()
    margins = [-LOOSE] * len(master.pools)
    for turn in range(TURNS):
        selection = Selection(master, bound.duals, margins, _worths(master, bound.duals))
        selection.offer((name, mix) for name, some in mixes.items() for mix in some or ())
        for name in (name for name, some in mixes.items() if some is None):
            selection.leave_open(name, bound.least[name], bound.least[name] + slack)
        selection.fill(slack)
        values = selection.solve(effort.seconds, effort.nodes, gap=1.0)  # any will do
        if values is None:
            return Decided(selection.impossible and not turn)
        choice, short = filled(master, bound, values)
        if max(short, default=0) <= 0:
            return Decided(choice=choice)
        margins = [m + ROOM_LEFT / 3 * (s > 0) for m, s in zip(margins, short, strict=True)]
    return Decided()


def _mixes(master: Master, bound: Bound, slack: float, most: int) -> Mixes:
    """All that may be chosen; None where they are too many to be listed."""
    prices = master.prices(bound.duals)
    found: Mixes = {}
    for name, d in master.names.items():
        wanted = Wanted(bound.least[name] + slack, None, most)
        some = every_mix(d, master.priced_items(d, prices), wanted)
        found[name] = None if some is None else [m for m in some if master.keeps_own(name, m)]
    return found


def _nearest(master: Master, bound: Bound, slack: float) -> Mixes:
    """Those of least reduced cost; where too many cost alike, about as many of each deployment."""
    prices = master.prices(bound.duals)
    items = {name: master.priced_items(d, prices) for name, d in master.names.items()}
    within = slack
    for _ in range(MOST_TURNS):
        within *= LESS
        found = _in_all(master, bound, items, within)
        if found is not None:
            return found
    each = NEAREST // len(master.names) + 1
    return {name: _of_one(master, bound, name, items[name], slack, each) for name in master.names}


def _in_all(
    master: Master, bound: Bound, items: dict[str, list[Item]], within: float
) -> Mixes | None:
    """All of a reduced cost ``within`` that; None where they are too many."""
    found: Mixes = {}
    left = NEAREST
    for name, d in master.names.items():
        wanted = Wanted(bound.least[name] + within, None, left)
        some = every_mix(d, items[name], wanted)
        if some is None:
            return None
        found[name] = [mix for mix in some if master.keeps_own(name, mix)]
        left -= len(some)
    return found


def _of_one(
    master: Master, bound: Bound, name: str, items: list[Item], slack: float, most: int
) -> list[Mix]:
    for _ in range(MOST_HALVINGS):
        slack /= 2
        wanted = Wanted(bound.least[name] + slack, None, most, FEW_LOOKS)
        some = every_mix(master.names[name], items, wanted)
        if some is not None:
            return [mix for mix in some if master.keeps_own(name, mix)]
    return []


def _worths(master: Master, duals: Floats) -> list[float]:
    return [
        (1 + SAFETY) * max(float(duals[pool.gpu_row]), best.bound)
        for pool, best in zip(master.pools, master.packed(duals, exact=True), strict=True)
    ]
