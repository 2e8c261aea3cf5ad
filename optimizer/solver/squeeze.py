"""One GPU less: shares are exchanged between overfull GPUs and others until nothing is over.

The fillings of the emptiest GPU are dealt to the rest, past their room. Then the exchange (or move)
that lowers the excess most, or raises it least, is made again and again, and its shares rest a
while (tabu search: Glover, ORSA J. Computing 1, 1989). It is strongest where many small shares
share a GPU, which is where columns are too many.
"""

from collections import Counter

import numpy as np

from optimizer.solver.knapsack import Floats, Ints, compiled
from optimizer.solver.packing import Counts, Packer

MOST_SHARES = 4000
VAIN = 100  # exchanges for each share without less excess than ever, after which it ends
REST = 10  # exchanges that a share rests at least; at most twice as many
PER_EFFORT = 100_000  # exchanges weighed times dimensions, in one unit of effort


def squeezed(
    packer: Packer, packed: Counter[Counts], asked: Ints, enough: int, effort: int
) -> tuple[Counter[Counts], int]:
    """Fewer GPUs for what is ``asked``, down to ``enough``, and the effort it took.

    The effort is the most that one GPU less may take.
    """
    if packed.total() <= enough or asked.sum() > MOST_SHARES:
        return packed, 0
    shares, at = _dealt(packed, asked)
    needs = np.vstack([packer.needs[shares], np.zeros((1, len(packer.room)), np.int64)])
    scale = 1.0 / np.maximum(1, packer.room)
    gpus, most, spent = int(at.max()) + 1, effort * PER_EFFORT // len(packer.room), 0
    while gpus > enough:
        tried = _without_emptiest(needs, packer.room, scale, at, gpus)
        over, weighed = _exchange(needs, packer.room, scale, tried, gpus - 1, most)
        spent += weighed
        if over > 0:
            break
        at, gpus = tried, gpus - 1
    return _counted(shares, at, gpus), spent * len(packer.room) // PER_EFFORT + 1


def _dealt(packed: Counter[Counts], asked: Ints) -> tuple[Ints, Ints]:
    """Each share's size and GPU, without shares that nobody asked for."""
    left, shares, at, gpu = asked.copy(), [], [], 0
    for counts, times in sorted(packed.items()):
        for _ in range(times):
            for size, count in counts:
                taken = min(count, int(left[size]))
                left[size] -= taken
                shares += [size] * taken
                at += [gpu] * taken
            gpu += bool(at) and at[-1] == gpu
    return np.array(shares, dtype=np.int64), np.array(at, dtype=np.int64)


def _counted(shares: Ints, at: Ints, gpus: int) -> Counter[Counts]:
    held: list[Counter[int]] = [Counter() for _ in range(gpus)]
    for size, gpu in zip(shares.tolist(), at.tolist(), strict=True):
        held[gpu][size] += 1
    return Counter(tuple(sorted(sizes.items())) for sizes in held)


def _without_emptiest(needs: Ints, room: Ints, scale: Floats, at: Ints, gpus: int) -> Ints:
    """The emptiest GPU's shares go where they raise the excess least."""
    load = np.zeros((gpus, len(room)), dtype=np.int64)
    np.add.at(load, at, needs[:-1])
    emptiest = int((load @ scale).argmin())
    homeless = np.nonzero(at == emptiest)[0]
    dealt = at - (at > emptiest)
    load = np.delete(load, emptiest, axis=0)
    for share in homeless[np.argsort(-(needs[homeless] @ scale), kind="stable")]:
        over = np.maximum(0, load + needs[share] - room) - np.maximum(0, load - room)
        dealt[share] = gpu = int((over @ scale).argmin())
        load[gpu] += needs[share]
    return dealt


@compiled
def _excess(load: Ints, more: Ints, less: Ints, room: Ints, scale: Floats) -> float:
    """By how much a GPU is over its room after an exchange, in parts of it."""
    over = 0.0
    for axis in range(len(room)):
        left = load[axis] + more[axis] - less[axis] - room[axis]
        if left > 0:
            over += left * scale[axis]
    return over


@compiled
def _best_exchange(
    needs: Ints,
    room: Ints,
    scale: Floats,
    at: Ints,
    load: Ints,
    over: Floats,
    gpu: int,
    resting: Ints,
    turn: int,
    goal: float,
) -> tuple[int, int, int]:
    """A share of an overfull GPU, what it is exchanged for (the last: nothing), and where.

    Resting shares only where the change of the excess is below the ``goal``.
    """
    shares = len(at)
    best, found, ties = np.inf, (-1, -1, -1), 0
    for share in range(shares):
        if at[share] != gpu:
            continue
        for other in range(shares + len(load)):
            beside = at[other] if other < shares else other - shares
            if beside == gpu:
                continue
            comes = min(other, shares)
            change = _excess(load[gpu], needs[comes], needs[share], room, scale) - over[gpu]
            if change >= best + 1e-12:
                continue
            change += _excess(load[beside], needs[share], needs[comes], room, scale) - over[beside]
            rests = resting[share] > turn or (other < shares and resting[other] > turn)
            if change > best + 1e-12 or (rests and change >= goal):
                continue
            ties = ties + 1 if change > best - 1e-12 else 1
            if np.random.random() * ties < 1:
                best, found = change, (share, comes, beside)
    return found


@compiled
def _exchange(
    needs: Ints, room: Ints, scale: Floats, at: Ints, gpus: int, most: int
) -> tuple[float, int]:
    """Change ``at`` until nothing is over; the excess left, and how many exchanges were weighed."""
    np.random.seed(gpus)
    shares, nothing = len(at), len(at)
    load, over = np.zeros((gpus, len(room)), np.int64), np.zeros(gpus)
    for share in range(shares):
        load[at[share]] += needs[share]
    for gpu in range(gpus):
        over[gpu] = _excess(load[gpu], needs[nothing], needs[nothing], room, scale)
    least, resting = over.sum(), np.zeros(shares, np.int64)
    turn, last, weighed = 0, 0, 0
    while over.sum() > 0 and weighed < most and turn < last + VAIN * shares:
        turn += 1
        chance, gpu = np.random.random() * over.sum(), -1
        while chance >= 0 and gpu < gpus - 1:
            gpu += 1
            chance -= over[gpu]
        weighed += (at == gpu).sum() * (shares + gpus)
        share, other, beside = _best_exchange(
            needs, room, scale, at, load, over, gpu, resting, turn, least - over.sum() - 1e-9
        )
        if share < 0:
            weighed += shares
            continue
        at[share] = beside
        resting[share] = turn + REST + np.random.randint(REST)
        if other < nothing:
            at[other] = gpu
            resting[other] = turn + REST + np.random.randint(REST)
        load[gpu] += needs[other] - needs[share]
        load[beside] += needs[share] - needs[other]
        for changed in (gpu, beside):
            over[changed] = _excess(load[changed], needs[nothing], needs[nothing], room, scale)
        if over.sum() < least - 1e-9:
            least, last = over.sum(), turn
    return over.sum(), weighed
