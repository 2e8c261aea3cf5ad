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
from optimizer.solver.pricing import Mix
from optimizer.solver.selection import Selection

MOST_MIXES = 5_000
NEAREST = 2_000  # of more mixes, those of least reduced cost are tried
LESS = 0.8
TURNS = 4  # at finding shares that fit
SAFETY = 1e-7  # relative, on what is computed in floating point
LOOSE = 1e-6  # of a GPU, by which the row of a pool is loosened


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


def decide(master: Master, bound: Bound, price: float, seconds: float, nodes: int) -> Decided:
    """At the master's present ranges, whose ``bound`` is given; ``price`` in its units."""
    slack = price - bound.value + SAFETY * max(1.0, abs(price))
    if slack <= 0:
        return Decided(impossible=True)
    mixes, every = _mixes(master, bound, slack)
    if not all(mixes.values()):
        return Decided(impossible=every)
    margins = [-LOOSE] * len(master.pools)
    for turn in range(TURNS):
        selection = Selection(master, bound.duals, margins, _worths(master, bound.duals))
        selection.offer((name, mix) for name, some in mixes.items() for mix in some)
        selection.fill(slack)
        values = selection.solve(seconds, nodes, gap=1.0)  # any will do
        if values is None:
            return Decided(every and selection.impossible and not turn)
        choice, short = filled(master, bound, values)
        if max(short, default=0) <= 0:
            return Decided(choice=choice)
        margins = [m + ROOM_LEFT / 3 * (s > 0) for m, s in zip(margins, short, strict=True)]
    return Decided()


def _mixes(master: Master, bound: Bound, slack: float) -> tuple[dict[str, list[Mix]], bool]:
    """Those that may be chosen from, and whether these are all."""
    prices = master.prices(bound.duals)
    every = True
    while True:
        found: dict[str, list[Mix]] = {}
        left = MOST_MIXES if every else NEAREST
        for name, d in master.names.items():
            wanted = Wanted(bound.cheapest[name] + slack, None, left)
            some = every_mix(d, master.priced_items(d, prices), wanted)
            if some is None:
                break
            found[name] = [mix for mix in some if master.keeps_own(name, mix)]
            left -= len(found[name])
        else:
            return found, every
        every = False
        slack *= LESS


def _worths(master: Master, duals: Floats) -> list[float]:
    return [
        (1 + SAFETY) * max(float(duals[pool.gpu_row]), best.bound)
        for pool, best in zip(master.pools, master.packed(duals, exact=True), strict=True)
    ]
