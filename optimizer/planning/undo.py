"""Undo: moves that gain nothing are taken back before anybody is disturbed.

Where the search for the least disruption was cut short, some replicas change places for the same
price. Who moves is sent back to where it runs now, with all whom that drives off again, as long as
no demand is lost and no price is added.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.placement import Placement, Replica, replica_order
from optimizer.domain.plan import Move
from optimizer.domain.problem import PlacementProblem
from optimizer.planning.layout import keep_beside, layouts_after
from optimizer.planning.moves import moves
from optimizer.planning.rooms import Rooms
from optimizer.verify import Score, objectives, verify

MOST_MOVES = 200  # beyond, looking at them one by one takes too long
MOST_GPUS = 512
MOST_LOOKS = 40_000  # GPUs of all placements tried


def spared(problem: PlacementProblem, outcome: Outcome, gap: float = 0.0) -> Outcome:
    """The outcome without the moves that gain nothing; the bounds are what they were."""
    if outcome.incumbent is None:
        return outcome
    found = undo(problem, outcome.incumbent)
    if found == outcome.incumbent:
        return outcome
    return recounted(problem, outcome, found, gap)


def recounted(
    problem: PlacementProblem, outcome: Outcome, found: Placement, gap: float = 0.0
) -> Outcome:
    """The outcome with another placement: its own values; the bounds are what they were."""
    score = objectives(problem, found)
    counted: dict[tuple[str, int | None], int] = {
        **{("unmet", priority): ppm for priority, ppm in score.unmet_ppm},
        ("price_per_hour", None): score.price_micros,
        ("disruption", None): score.disruption_mib or 0,
        ("stranded", None): score.stranded_mib,
    }
    told = tuple(
        replace(o, value=value, bound=min(o.bound, value))
        for o in outcome.objectives
        for value in [counted.get((o.name, o.priority), o.value)]
    )
    spoken_for = [o for o in told if o.name != "stranded"]
    termination = _unproved(outcome.termination)
    if all(o.proved for o in spoken_for):
        termination = Termination.OPTIMAL
    elif gap > 0 and all(o.gap <= gap for o in spoken_for):
        termination = Termination.WITHIN_GAP
    return replace(outcome, incumbent=found, objectives=told, termination=termination)


def _unproved(termination: Termination) -> Termination:
    """What is known of values that nobody has held against their bounds yet."""
    proofs = (Termination.OPTIMAL, Termination.WITHIN_GAP)
    return Termination.LIMIT if termination in proofs else termination


def undo(problem: PlacementProblem, placement: Placement) -> Placement:
    """A placement as good with fewer moves; the same one where every move has its use.

    Never worse at any level, never on more GPUs, under all rules; the order in which moves are
    looked at is fixed, the heaviest loads first.
    """
    size = sum(node.gpus for node in problem.fleet.nodes)
    if problem.current is None or size > MOST_GPUS:
        return placement
    looks = 0
    best = _Tried(problem, placement)
    if not 0 < len(best.moves) <= MOST_MOVES:
        return placement
    improved = True
    while improved:
        improved = False
        for names in best.seeds():
            found = best.without(names)
            looks += size
            if found is not None and found.betters(best):
                best, improved = found, True
                break
            if looks >= MOST_LOOKS:
                return best.placement
    return best.placement


def taken_back(problem: PlacementProblem, placement: Placement, names: Iterable[str]) -> Placement:
    """The placement with these replicas as they are now; nobody else may be in their places."""
    now = {r.id: r for r in problem.current.replicas} if problem.current is not None else {}
    back = frozenset(names)
    replicas = [r for r in placement.replicas if r.id not in back]
    replicas += [now[name] for name in back if name in now]
    return with_empties(problem, placement, sorted(replicas, key=lambda r: replica_order(r.id)))


def with_empties(
    problem: PlacementProblem, placement: Placement, replicas: Iterable[Replica]
) -> Placement:
    """These replicas, and of the instances kept empty those that may stand beside them."""
    found = tuple(replicas)
    gpus = {g.id: g.gpu for g in problem.fleet.gpus()}
    held: dict[str, list[PlacedProfile]] = {}
    plain = {g for r in found if r.mig is None for g in r.gpus}
    for one in found:
        if one.mig is not None:
            held.setdefault(one.gpus[0], []).append(one.mig)
    kept = []
    for instance in placement.instances:
        table = gpus[instance.gpu].mig
        taken = held.setdefault(instance.gpu, [])
        if table is None or instance.gpu in plain:
            continue
        if keep_beside(table, taken, (instance.placed,)):
            taken.append(instance.placed)
            kept.append(instance)
    return replace(placement, replicas=found, instances=tuple(kept))


class _Tried:
    """A placement with its moves and its worth."""

    def __init__(self, problem: PlacementProblem, placement: Placement) -> None:
        self.problem = problem
        self.placement = placement
        self.moves: dict[str, Move] = {m.replica: m for m in moves(problem, placement)}
        self.after = {r.id: r for r in placement.replicas}
        self.score: Score = objectives(problem, placement)

    @property
    def gpus(self) -> int:
        """How many GPUs are in use."""
        return len({g for r in self.placement.replicas for g in r.gpus})

    def betters(self, other: "_Tried") -> bool:
        """Whether this disturbs less, is no worse in anything else, and keeps the rules."""
        if self.gpus > other.gpus or self.score.levels >= other.score.levels:
            return False
        return not verify(self.problem, self.placement)

    def seeds(self) -> Iterator[frozenset[str]]:
        """Moves to take back together: a deployment's, one alone; heaviest first."""
        by_deployment: dict[str, list[str]] = {}
        for name in self.moves:
            by_deployment.setdefault(name.rpartition("/")[0], []).append(name)
        groups = {frozenset(names) for names in by_deployment.values()}
        groups |= {frozenset((name,)) for name in self.moves}

        def weight(names: frozenset[str]) -> tuple[int, list[tuple[str, int]]]:
            load = sum(self.moves[n].load_mib for n in names)
            return (-load, sorted(map(replica_order, names)))

        for names in sorted(groups, key=weight):
            yield names
            yield self._whole_deployments(names)

    def _whole_deployments(self, names: Iterable[str]) -> frozenset[str]:
        """These moves, whom their undoing drives off, and all others of their deployments."""
        found = frozenset(names)
        while True:
            driven = self._driven_off(found)
            if driven is None:
                return found
            touched = {n.rpartition("/")[0] for n in driven}
            wider = frozenset(n for n in self.moves if n.rpartition("/")[0] in touched)
            if wider == found:
                return found
            found = wider

    def without(self, names: Iterable[str]) -> "_Tried | None":
        """The placement with these moves taken back, and those that stand in their way."""
        back = self._driven_off(frozenset(names))
        if back is None:
            return None
        staying = [r for id, r in self.after.items() if id not in back]
        returned = [m.before for id, m in self.moves.items() if id in back and m.before is not None]
        replicas = tuple(sorted([*staying, *returned], key=lambda r: replica_order(r.id)))
        return _Tried(self.problem, with_empties(self.problem, self.placement, replicas))

    def _driven_off(self, names: frozenset[str]) -> frozenset[str] | None:
        """With them all who must go back too; None where one stands in the way who did not move."""
        back: set[str] = set()
        rooms = Rooms(self.problem, self.placement, layouts_after(self.problem, self.placement))
        waiting = sorted(names, key=replica_order)
        while waiting:
            name = waiting.pop(0)
            if name in back:
                continue
            back.add(name)
            move = self.moves[name]
            if move.after is not None:
                rooms.release(self.after[name])
            if move.before is not None:
                waiting = sorted({*waiting, *self._blockers(rooms, move.before)}, key=replica_order)
                if any(n not in self.moves for n in waiting):
                    return None
        for name in sorted(back, key=replica_order):
            before = self.moves[name].before
            if before is not None:
                if rooms.blocked(before):
                    return None
                rooms.prepare(before)
                rooms.take(before)
        return frozenset(back)

    def _blockers(self, rooms: Rooms, before: Replica) -> Iterator[str]:
        blocked = rooms.blocked(before)
        for group in (blocked.every, *blocked.some):
            for other in group:
                if group is blocked.every or other.id in self.moves:
                    yield other.id
