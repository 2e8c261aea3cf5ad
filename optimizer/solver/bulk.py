"""Large fleets: the counts from column generation and one mixed integer program, then places.

The program keeps what couples deployments: GPUs, profiles, groups, hosts. Shared GPUs enter it by
one row a pool; they are filled afterwards, and the row is tightened where that takes more GPUs
than it said.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from optimizer.domain.problem import missing_ppm
from optimizer.solver.bins import Filled as Filled
from optimizer.solver.bins import pack
from optimizer.solver.master import MANY, Bound, Floats, Master
from optimizer.solver.mixes import Wanted, every_mix
from optimizer.solver.pricing import Mix
from optimizer.solver.selection import MIP_GAP, Selection

NODES = 20_000
FEW_NODES = 200
FEW_MIXES = 40  # of a deployment
WIDEST = 0.1  # of the bound: reduced costs where all mixes are asked for
MOST_HALVINGS = 14
TRIES = 6
FEW_TRIES = 4
ROOM_LEFT = 0.3  # of a GPU, by shares that did not fit
MOST_MIXES = 3_000
SLACKS = (0.02, 0.1, 0.5, 2.0)  # reduced costs that the program may use, in parts of ``scale``
FILL_EFFORT = 100_000  # of packing a pool's GPUs

Binding = Callable[[Selection], None]


@dataclass(slots=True)
class Choice:
    """An integer answer: values of the formulation's variables, fillings of each pool."""

    values: list[int]
    fillings: list[Filled] = field(default_factory=list)


def choose(
    master: Master,
    bound: Bound,
    seconds: float,
    scale: float = 1.0,
    nodes: int = NODES,
    bind: Binding | None = None,
    gap: float = MIP_GAP,
) -> Choice | None:
    """The best integer choice among the known mixes whose reduced cost is small, or among all.

    ``bind`` adds rows to the program, which ends within ``gap``.
    """
    prices = master.prices(bound.duals)
    near = [(s, sum(1 for _ in _near(master, bound, prices, s * scale))) for s in SLACKS]
    first = max([0, *(i for i, (_, mixes) in enumerate(near) if mixes <= MOST_MIXES)])
    for slack in (*(part * scale for part in SLACKS[first:]), inf):
        found = _fitting(master, bound, slack, seconds, nodes, bind, gap)
        if found is not None:
            return found
    return None


def _fitting(
    master: Master,
    bound: Bound,
    slack: float,
    seconds: float,
    nodes: int,
    bind: Binding | None = None,
    gap: float = MIP_GAP,
) -> Choice | None:
    """A choice whose shares fit in as few GPUs as it says, or else the cheapest with more GPUs.

    Where they do not fit, shares are asked to leave some room.
    """
    many = len(master.names) >= MANY
    margins = [0.0] * len(master.pools)
    tried: list[Choice] = []
    for _ in range(TRIES if many else FEW_TRIES):
        values = _integer(master, bound, slack, margins, seconds, nodes, bind, gap)
        if values is None:
            break
        choice, short = filled(master, bound, values)
        fits = max(short, default=0) <= 0
        if _give(master, values, short):
            tried.append(choice)
            if many or fits:
                break
        margins = [
            m + (max(0, s) if many else ROOM_LEFT * (s > 0))
            for m, s in zip(margins, short, strict=True)
        ]
    return min(tried, key=lambda c: float(master.costs @ np.array(c.values)), default=None)


def filled(master: Master, bound: Bound, values: list[int]) -> tuple[Choice, list[int]]:
    """The values with their shares in GPUs, and how many GPUs of each pool more than they say."""
    fillings = [_fill(master, number, bound, values) for number in range(len(master.pools))]
    short = [
        sum(times for _, times in filled) - sum(values[g] for g in _gpus(master, number))
        for number, filled in enumerate(fillings)
    ]
    return Choice(values, fillings), short


def closer(
    master: Master,
    bound: Bound,
    seconds: float,
    known: Choice | None = None,
    widest: float = 0.0,
) -> Choice | None:
    """The best choice among mixes, known or not, of which each deployment has about as many.

    For few deployments, whose relaxation meets too few mixes to choose from. None where these
    few mixes do not go together; those of a choice that is ``known`` do. ``widest``: how far their
    reduced costs go; 0: by the bound.
    """
    prices = master.prices(bound.duals)
    most = widest or WIDEST * max(1.0, bound.value)
    mixes = {name: _cheapest_few(master, bound, prices, name, most) for name in master.names}
    for name, some in mixes.items():
        used, counts = bound.used.get(name, set()), {mix.counts for mix in some}
        some += [m for m in bound.mixes[name] if m in used and m.counts not in counts]
    used_too = {name: set(some) for name, some in bound.used.items()}
    for name, mix in master.mixes_of(known.values if known is not None else ()):
        mixes[name].append(mix)
        used_too.setdefault(name, set()).add(mix)
    among = replace(bound, mixes=mixes, used=used_too)
    return _fitting(master, among, most, seconds, FEW_NODES)


def _cheapest_few(
    master: Master, bound: Bound, prices: Floats, name: str, most: float
) -> list[Mix]:
    """Not too many mixes within the widest slack, of halves of ``most``, where they are so."""
    d = master.names[name]
    items, skip = master.priced_items(d, prices), master.asked(d, prices).missing_price
    found: list[Mix] = []
    for halved in range(MOST_HALVINGS, -1, -1):
        wanted = Wanted(bound.cheapest[name] + most / 2**halved, skip, FEW_MIXES)
        some = every_mix(d, items, wanted)
        if some is None:
            break
        found = [mix for mix in some if master.keeps_own(name, mix)]
    return found


def _gpus(master: Master, number: int) -> list[int]:
    """The variables that count a pool's GPUs in use."""
    return [v for v, _ in master.rows[master.pools[number].gpu_row].coefficients]


def _give(master: Master, values: list[int], short: list[int]) -> bool:
    """Use more or fewer GPUs of a pool, where the fleet has them; False where it has not."""
    for number, more in enumerate(short):
        for g in _gpus(master, number):
            change = max(-values[g], min(more, master.ranges[g][1] - values[g]))
            values[g] += change
            more -= change
        if more > 0:
            return False
    used = np.array(values, dtype=float)
    for row in master.rows:
        total = sum(c * used[v] for v, c in row.coefficients)
        own = any(v in master.owner for v, _ in row.coefficients)
        if not own and not row.low - 0.5 <= total <= row.high + 0.5:
            return False
    return True


def _integer(
    master: Master,
    bound: Bound,
    slack: float,
    margins: list[float],
    seconds: float,
    nodes: int,
    bind: Binding | None = None,
    gap: float = MIP_GAP,
) -> list[int] | None:
    """The cheapest choice of mixes and fillings within ``slack``, as if the shares fitted."""
    selection = Selection(master, bound.duals, margins)
    selection.offer(_near(master, bound, master.prices(bound.duals), slack))
    selection.fill(slack)
    if bind is not None:
        bind(selection)
    return selection.solve(seconds, nodes, gap)


def _near(master: Master, bound: Bound, prices: Floats, slack: float) -> Iterator[tuple[str, Mix]]:
    """Known mixes that cost little more than the cheapest at the bound's prices.

    Where demand may be left unmet, those with one replica less too.
    """
    for name, known in bound.mixes.items():
        used = bound.used.get(name, set())
        mixes = dict.fromkeys(known)
        if not master.in_full(master.names[name]):
            mixes |= dict.fromkeys(less for mix in known for less in _one_less(master, name, mix))
        for mix in mixes:
            cost = sum(count * max(0.0, prices[v]) for v, count in mix.counts)
            cost += mix.missing_ppm * max(0.0, prices[master.missing[name]])
            if cost - bound.cheapest[name] <= slack or mix in used:
                yield name, mix


def _one_less(master: Master, name: str, mix: Mix) -> Iterator[Mix]:
    """The mix without one replica of each of its kinds."""
    d, capacity = master.names[name], dict(master.items[name])
    for variable, _ in mix.counts:
        counts = dict(mix.counts)
        counts[variable] -= 1
        left = tuple((v, n) for v, n in counts.items() if n)
        served = sum(capacity[v] * n for v, n in left)
        missing = missing_ppm(d, served, sum(n for _, n in left))
        yield Mix(0.0, 0.0, left, float(missing))


def _fill(master: Master, number: int, bound: Bound, values: list[int]) -> Filled:
    """Fillings that hold all the shares which the values ask of a pool."""
    pool = master.pools[number]
    wanted = Counter[int]()
    for size, row in enumerate(pool.size_rows):
        asked = sum(values[v] for v, _ in master.rows[row].coefficients)
        if asked:
            wanted[size] = asked
    room = sum(values[g] for g in _gpus(master, number))
    packing = pack(pool.packer, wanted, bound.fillings[number], enough=room, effort=FILL_EFFORT)
    return packing.filled
