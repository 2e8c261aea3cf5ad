"""The proof of a price, done again from the documents: no solver, no trust in its numbers.

A certificate gives values: what a replica is worth on a kind of GPU in its instance, its share or
on each of its whole GPUs. Take any placement that serves everybody. Its replicas are worth at least
the cheapest mix of each deployment; a used GPU holds at most the best filling of its kind. So the
price is at least the sum of the cheapest mixes, less what all GPUs can hold above their price. This
holds for whatever values: wrong ones prove less, never too much.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from optimizer.domain.config import Candidate, Shape
from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.gpu import Gpu, PlacedProfile, Use
from optimizer.domain.problem import PlacementProblem, with_reserve
from optimizer.domain.workload import Deployment
from optimizer.verify.facts import Violation, fixed_layouts
from optimizer.verify.slots import layout_faults

TOLERANCE_MICROS = 2
MOST_STEPS = 200_000
UNITS = 4096


def check_certificate(
    problem: PlacementProblem, certificate: Mapping[str, Any]
) -> Iterator[Violation]:
    """A certificate that claims more than its values prove."""
    if "bound_micros" not in certificate:
        return
    claimed, proved = int(certificate["bound_micros"]), proved_micros(problem, certificate)
    if claimed > proved * (1 + 1e-9) + TOLERANCE_MICROS:
        said = f"claims at least {claimed} micros per hour, its values prove {proved:.0f}"
        yield Violation("certificate", str(certificate.get("objective")), said)


@dataclass(slots=True)
class _Kind:
    """GPUs of one product and price that may be used."""

    gpu: Gpu
    fixed: Mapping[str, list[PlacedProfile]]  # what GPUs with fixed layouts keep
    places: list[FleetGpu] = field(default_factory=list)

    def offers(self, pin: tuple[str, ...]) -> "_Offers":
        """What the GPUs that a pin leaves are given out as; a fixed layout is not changed."""
        named = set(pin)
        most: dict[Sharing, int] = {}
        on_node: Counter[tuple[str, Sharing]] = Counter()
        profiles: set[str] | None = set()
        for gpu in self.places:
            if pin and gpu.id not in named and gpu.node.name not in named:
                continue
            kept = self.fixed.get(gpu.id)
            if kept is None:
                profiles = None
            elif profiles is not None:
                profiles |= {placed.profile for placed in kept}
            for mode in gpu.node.sharing:
                if kept is None or (mode is Sharing.MIG) == bool(kept):
                    on_node[gpu.node.name, mode] += 1
                    most[mode] = max(most.get(mode, 0), on_node[gpu.node.name, mode])
        return _Offers(most, profiles)


@dataclass(frozen=True, slots=True)
class _Offers:
    """For each mode the most GPUs of one node; ``profiles``: what there is, None: any."""

    most: Mapping[Sharing, int]
    profiles: Collection[str] | None

    def hold(self, shape: Shape) -> bool:
        """Whether a stage of such a replica, or its instance, may lie there."""
        if shape.block > self.most.get(shape.sharing, 0):
            return False
        return shape.profile is None or self.profiles is None or shape.profile in self.profiles


def proved_micros(problem: PlacementProblem, certificate: Mapping[str, Any]) -> float:
    """The least price per hour, in micros, of any placement that serves everybody.

    Room kept free counts as somebody who asks for it.
    """
    problem = with_reserve(problem)
    values = {(row["gpu"], row["price_micros"]): row for row in certificate.get("values", ())}
    fixed = fixed_layouts(problem)
    kinds: dict[tuple[str, int], _Kind] = {}
    for gpu in problem.fleet.gpus():
        if not gpu.cordoned:
            key = (gpu.gpu.name, problem.fleet.price_micros(gpu.node))
            kinds.setdefault(key, _Kind(gpu.gpu, fixed)).places.append(gpu)
    shares = {key: _shares(values.get(key)) for key in kinds}
    anywhere = {key: kind.offers(()) for key, kind in kinds.items()}
    above = sum(
        len(kind.places) * max(0.0, _most_held(kind.gpu, values.get(key)) - key[1])
        for key, kind in kinds.items()
    )
    mixes = 0.0
    for d in problem.deployments:
        worths: list[tuple[float, int]] = []
        for key, kind in kinds.items():
            offers = kind.offers(d.pin) if d.pin else anywhere[key]
            for way in problem.candidates.get(d.name, ()):
                # Stages may lie on several kinds: their worth is between those of all on one.
                if way.gpu == kind.gpu.name and offers.hold(way.shape):
                    worths += _worth(way, kind.gpu, values.get(key), shares[key])
        mixes += _cheapest(d, worths)
    return max(0.0, mixes - above)


def _shares(row: Mapping[str, Any] | None) -> dict[tuple[int, int, int], float]:
    """What shares are worth, by memory, bandwidth and compute."""
    return {(m, b, c): float(v) for m, b, c, v in row["shares"]} if row else {}


def _worth(
    way: Candidate,
    gpu: Gpu,
    row: Mapping[str, Any] | None,
    shares: Mapping[tuple[int, int, int], float],
) -> Iterator[tuple[float, int]]:
    """The worth and the rate of a way to run on such a GPU, if it fits there."""
    shape, worth = way.shape, 0.0
    if shape.share is not None:
        u = shape.share
        if not u.fits_in(gpu.room):
            return
        worth = shares.get((u.memory_mib, u.bandwidth_mbs, u.compute_ppm), 0.0)
    elif row and shape.sharing is Sharing.WHOLE:
        worth = float(row["whole"]) * shape.gpus
    elif row and shape.profile is not None:
        worth = float(row["mig"].get(shape.profile, 0.0))
    yield max(0.0, worth), way.capacity_mrps or 0


def _cheapest(d: Deployment, worths: list[tuple[float, int]]) -> float:
    """The least worth of replicas that serve the demand and are enough; limits are not asked."""
    asked = d.asked_mrps or 0
    if not worths or (asked and not any(rate for _, rate in worths)):
        return 0.0
    least = min(worth for worth, _ in worths)
    if not asked:
        return least * d.min_replicas
    useful: list[tuple[float, int]] = []  # none serves less for as much
    for worth, rate in sorted(set(worths), key=lambda w: (w[0], -w[1])):
        if rate and (not useful or rate > useful[-1][1]):
            useful.append((worth, min(rate, asked)))
    useful.sort(key=lambda w: w[0] / w[1] if w[1] else inf)
    rates = [*(worth / rate for worth, rate in useful), inf]
    best = [inf]
    open_floor = [inf]
    steps = [0]

    def take(first: int, left: int, paid: float, count: int) -> None:
        if left <= 0:
            best[0] = min(best[0], paid + least * max(0, d.min_replicas - count))
            return
        for index in range(first, len(useful)):
            worth, rate = useful[index]
            floor = paid + worth * left / rate
            if floor >= best[0]:
                return
            steps[0] += 1
            if steps[0] > MOST_STEPS:
                open_floor[0] = min(open_floor[0], floor)
                return
            whole = -(-left // rate)
            for times in range(whole, 0, -1):
                rest = left - times * rate
                after = rates[index + 1]
                if rest > 0 and paid + times * worth + rest * after >= best[0]:
                    break
                take(index + 1, rest, paid + times * worth, count + times)

    take(0, asked, 0.0, 0)
    return min(best[0], open_floor[0])


def _most_held(gpu: Gpu, row: Mapping[str, Any] | None) -> float:
    """The most that one GPU of a kind can hold, over its modes."""
    if row is None:
        return 0.0
    by_parts = _by_parts(gpu, row)
    shared = by_parts if by_parts < inf else _most_shared(gpu, row["shares"])
    return max(float(row["whole"]), _most_sliced(gpu, row["mig"]), shared)


def _by_parts(gpu: Gpu, row: Mapping[str, Any]) -> float:
    """No set of shares is worth more: what a whole GPU is worth by the weights of its dimensions.

    The weights are the certificate's, taken up until no share is worth more than its parts.
    Infinite where it has none.
    """
    weights = [max(0.0, float(w)) for w in row.get("weights", ())]
    if len(weights) != 3:
        return inf
    scale = 1.0
    for m, b, c, value in row["shares"]:
        parts = Use(int(m), int(b), int(c)).parts_of(gpu.room)
        worth = sum(w * part for w, part in zip(weights, parts, strict=True))
        if value > scale * worth:
            scale = value / worth if worth > 0 else inf
    return scale * sum(weights)


def _most_sliced(gpu: Gpu, values: Mapping[str, float]) -> float:
    """The best legal layout, cell by cell from the left."""
    table = gpu.mig
    if table is None:
        return 0.0

    def extend(layout: list[PlacedProfile], cell: int, held: float) -> float:
        best = held
        for name in sorted(values):
            profile = table.profile(name)
            if profile is None:
                continue
            for start in profile.starts:
                longer = [*layout, PlacedProfile(start, name)]
                if start >= cell and not layout_faults(gpu, longer):
                    after = extend(longer, start + profile.memory_slices, held + values[name])
                    best = max(best, after)
        return best

    return extend([], 0, 0.0)


def _most_shared(gpu: Gpu, shares: list[list[float]]) -> float:
    """The best set of shares that fits in memory, bandwidth and compute together.

    Depth first, most value for its memory first; the memory left bounds what can still come.
    """
    room = gpu.room
    items = [
        (Use(int(m), int(b), int(c)), float(v))
        for m, b, c, v in shares
        if v > 0 and Use(int(m), int(b), int(c)).fits_in(room)
    ]
    if not items:
        return 0.0
    bounds = _memory_bounds(room.memory_mib, items)
    items.sort(key=lambda item: (-item[1], item[0].memory_mib))
    best = [max(v for _, v in items)]
    open_most = [0.0]
    steps = [0]

    def take(first: int, used: Use, held: float) -> None:
        for index in range(first, len(items)):
            use, value = items[index]
            more = used + use
            if not more.fits_in(room):
                continue
            got = held + value
            most = got + bounds[(room.memory_mib - more.memory_mib) * UNITS // room.memory_mib]
            best[0] = max(best[0], got)
            if most <= best[0] * (1 + 1e-12):
                continue
            steps[0] += 1
            if steps[0] > MOST_STEPS:
                open_most[0] = max(open_most[0], most)
                return
            take(index, more, got)

    take(0, Use(), 0.0)
    return max(best[0], open_most[0])


def _memory_bounds(room_mib: int, items: list[tuple[Use, float]]) -> list[float]:
    """By free memory in units: the most value, were memory all that counts (needs rounded down)."""
    dearest: dict[int, float] = {}
    for use, value in items:
        units = use.memory_mib * UNITS // room_mib
        dearest[units] = max(dearest.get(units, 0.0), value)
    if 0 in dearest:
        return [inf] * (UNITS + 1)
    sizes = sorted(dearest.items())
    best = [0.0] * (UNITS + 1)
    for free in range(1, UNITS + 1):
        most = best[free - 1]
        for units, value in sizes:
            if units > free:
                break
            most = max(most, best[free - units] + value)
        best[free] = most
    return best
