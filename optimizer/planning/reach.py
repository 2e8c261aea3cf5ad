"""Reach: a plan ends where its steps lead.

The search knows what is cheapest, not whether anybody gets there without losing a customer. Where
changes find no safe order, or do not end inside the window, the end is changed: one by one they go
to another place that is free now and later, as long as that is worth it; the rest is taken back.
The plan's end is then a state that the steps do reach, and what waits for another night is named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from optimizer.domain import words
from optimizer.domain.config import Candidate
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.outcome import Outcome
from optimizer.domain.placement import Placement, Replica, replica_order
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.planning.layout import layouts_after
from optimizer.planning.match import Matcher
from optimizer.planning.moves import moves, same_place
from optimizer.planning.order import Ordered, order
from optimizer.planning.pace import DEFAULT_PACE, Pace
from optimizer.planning.places import free_places
from optimizer.planning.rooms import Rooms
from optimizer.planning.undo import recounted, taken_back, undo, with_empties
from optimizer.verify import objectives, verify

NAMED = 12  # replicas in one note
MOST_LOOKS = 30_000  # GPUs of all targets tried
MOST_LEFT = 80  # changes without an order for which other places are looked for
WAYS_TRIED = 3  # of one replica, the least price first
ROUNDS = 3  # of sending one more replica elsewhere
BEAM = 3  # targets that are followed in each


def reached(
    problem: PlacementProblem, outcome: Outcome, pace: Pace = DEFAULT_PACE, gap: float = 0.0
) -> tuple[Outcome, Ordered]:
    """The outcome whose placement the steps reach, and the steps.

    Where every such state would break a rule or serve less than the outcome does, the outcome
    stays, and the changes without an order are named in ``left``.
    """
    if outcome.incumbent is None:
        return outcome, Ordered()
    wanted = outcome.incumbent.in_order()
    first = _Way.of(problem, wanted, pace)
    if not first.ordered.left:
        return outcome, first.ordered
    asked = objectives(problem, wanted)
    found = _elsewhere(first)
    unmet = found.levels[: len(asked.unmet_ppm)]
    if not found.stands or unmet > tuple(ppm for _, ppm in asked.unmet_ppm):
        return outcome, first.ordered
    found = _useful(found)
    told = (*outcome.notes, *_told(problem, wanted, found, first.ordered))
    return replace(recounted(problem, outcome, found.end, gap), notes=told), found.ordered


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A target, the steps towards it, and the state in which they end."""

    problem: PlacementProblem
    pace: Pace
    target: Placement
    ordered: Ordered
    end: Placement
    levels: tuple[int, ...]

    @classmethod
    def of(cls, problem: PlacementProblem, target: Placement, pace: Pace) -> "_Way":
        """Order the moves to a target."""
        ordered = order(problem, target, moves(problem, target), pace)
        end = taken_back(problem, target, ordered.left) if ordered.left else target
        return cls(problem, pace, target, ordered, end, objectives(problem, end).levels)

    @property
    def load_mib(self) -> int:
        """Weights that are loaded on the way to its end."""
        return sum(move.load_mib for move in moves(self.problem, self.end))

    @property
    def stands(self) -> bool:
        """Whether one may stop there."""
        return not verify(self.problem, self.end)


def _useful(way: _Way) -> _Way:
    """Without the moves that only served what is not done."""
    while True:
        way = _Way.of(way.problem, undo(way.problem, way.end), way.pace)
        if not way.ordered.left:
            return way


def _elsewhere(way: _Way) -> _Way:
    """The best end found by sending those that are left to other places, one after another."""
    best, standing = way, way.stands
    most = sum(move.load_mib for move in moves(way.problem, way.target))  # as limits may ask
    size = sum(node.gpus for node in way.problem.fleet.nodes)
    looks = MOST_LOOKS // max(1, size) if len(way.ordered.left) <= MOST_LEFT else 0
    beam = [way]
    for _ in range(ROUNDS):
        targets = list(islice((t for one in beam for t in _targets(one)), looks)) if looks else []
        looks -= len(targets)
        tried = [_Way.of(way.problem, target, way.pace) for target in targets]
        tried.sort(key=lambda one: one.levels)
        for one in tried:
            if standing and one.levels >= best.levels:
                break
            if one.stands and one.load_mib <= most:
                best, standing = one, True
                break
        # Of equal ends one is enough: with fewest left it is the farthest on the way.
        ends = {one.levels: one for one in sorted(tried, key=lambda w: -len(w.ordered.left))}
        beam = [one for _, one in sorted(ends.items()) if one.ordered.left][:BEAM]
    return best


def _targets(way: _Way) -> Iterator[Placement]:
    """The target with one of those that are left in another place, free at the end and now."""
    problem, elsewhere = way.problem, _Elsewhere(way)
    for mine in way.target.replicas:
        if mine.id not in way.ordered.left:
            continue
        rest = [r for r in way.target.replicas if r is not mine]
        for place in elsewhere.places(mine)[:WAYS_TRIED]:
            replicas = sorted([*rest, place], key=lambda r: replica_order(r.id))
            yield with_empties(problem, way.target, replicas)


class _Elsewhere:
    """Places that are free at the end of a target, and where its steps end."""

    def __init__(self, way: _Way) -> None:
        self.problem = way.problem
        self.matcher = Matcher(way.problem)
        self.now = Rooms(way.problem, way.end, layouts_after(way.problem, way.end))
        self.later = Rooms(way.problem, way.target, layouts_after(way.problem, way.target))
        fleet = way.problem.fleet
        self.price = {g.id: fleet.price_micros(g.node) for g in fleet.gpus()}
        self.used = {gpu for r in way.target.replicas for gpu in r.gpus}
        every = list(fleet.gpus())
        self.gpus_in_use = [g for g in every if g.id in self.used]
        self.cheapest_first = sorted(every, key=lambda g: self.price[g.id])

    def places(self, mine: Replica) -> list[Replica]:
        """One for each way to run it that serves as much, by added price and load."""
        deployment = self.matcher.deployments.get(mine.deployment)
        if deployment is None:
            return []
        least = self.matcher.capacity_mrps(mine)
        self.later.release(mine)
        found = []
        for way in self.problem.candidates.get(mine.deployment, ()):
            place = None
            if not way.running_only and capacity_mrps(deployment, way) >= least:
                place = self._place(mine, way)
            if place is not None:
                added = sum(self.price[gpu] for gpu in place.gpus if gpu not in self.used)
                found.append((added, way.load_mib, place))
        self.later.take(mine)
        return [place for _, _, place in sorted(found, key=lambda one: one[:2])]

    def _place(self, mine: Replica, way: Candidate) -> Replica | None:
        """Beside others if it can be, else on the cheapest GPUs."""
        like = _like(mine, way)
        for gpus in (self.gpus_in_use, self.cheapest_first):
            for place, _ in free_places(gpus, self.later, like, way.gpu):
                if not same_place(place, mine) and not self.now.blocked(place):
                    return place
        return None


def _like(mine: Replica, way: Candidate) -> Replica:
    """The replica as that way runs it, without a place."""
    shape = way.shape
    mig = None if shape.profile is None else PlacedProfile(0, shape.profile)
    return replace(mine, gpus=("?",) * shape.gpus, mig=mig, share=shape.share, config=way.config)


# --- what is said of it


def _told(
    problem: PlacementProblem, wanted: Placement, found: _Way, first: Ordered
) -> Iterator[str]:
    """What differs from the cheapest end found, what that would save, and why it is not reached."""
    saved = objectives(problem, found.end).price_micros - objectives(problem, wanted).price_micros
    end = {r.id: r for r in found.end.replicas}
    waiting, sent = [], []
    for move in moves(problem, wanted):
        got = end.get(move.replica)
        if got == move.before and got != move.after:
            waiting.append(move.replica)
        elif got != move.after:
            sent.append(move.replica)
    worth = f"; all of it would save {words.price(saved, problem.fleet.unit)}" if saved > 0 else ""
    yield f"{words.NOT_ALL_TONIGHT}{worth}"
    if sent:
        yield f"otherwise than in that plan: {_named(sent)}"
    if waiting:
        yield f"as now, for another night: {_named(waiting)}"
    by_why: dict[str, list[str]] = {}
    for name, why in first.why:
        by_why.setdefault(why, []).append(name)
    for why, names in sorted(by_why.items()):
        yield f"why not {_named(names)}: {why}"


def _named(names: Sequence[str]) -> str:
    told = sorted(names, key=replica_order)
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return ", ".join(told[:NAMED]) + more
