"""Unstick: when nothing moves any more, a circle is broken or a move is left out."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from optimizer.domain import words
from optimizer.domain.fleet import FleetGpu
from optimizer.domain.placement import Replica, replica_order
from optimizer.planning.places import free_places, places
from optimizer.planning.tasks import Task

if TYPE_CHECKING:
    from optimizer.planning.schedule import Schedule


class Unstick:
    """Ways on: a stop elsewhere, a drain before the new copy runs, or one left out."""

    def __init__(self, schedule: "Schedule") -> None:
        self.schedule = schedule
        self.cleared: set[Task] = set()  # for whom others were taken out of the way

    def act(self) -> bool:
        """When nothing moves: break a circle or leave a move out; false when all is done."""
        pending = [t for t in self.schedule.tasks if t.state in ("waiting", "draining")]
        for task in pending:
            if self._hopeless(task):
                self._leave(task, self._why_hopeless(task))
                return True
        if not pending:
            return False
        free = [t for t in pending if not self._ahead(t)]
        if free:  # what it waited for went another way than it was told
            for task in free:
                self.schedule.attempt(task)
            return True
        if self._exchange(pending):
            return True
        circles = self._circles(pending)
        for circle in circles:
            if any(self._detour(t) for t in circle):
                return True
        for circle in circles:
            if any(self._break(t) for t in circle):
                return True
        self._leave_circle(circles[0])
        return True

    def _exchange(self, pending: Sequence[Task]) -> bool:
        """Clear the place of the largest group that waits, to wherever there is room.

        It then leaves a place of its own size. Taken from the largest down, one free place of the
        largest size is enough for whole GPUs: who was cleared away is of that size at most.
        """
        groups = [t for t in pending if t.target is not None and t.target.shape.sharing == "whole"]
        groups = [t for t in groups if t.target is t.final and t not in self.cleared]
        for task in sorted(groups, key=lambda t: (-t.move_gpus, t.rank)):
            assert task.target is not None
            blocked = self.schedule.rooms.blocked(task.target)
            away = self.schedule.leavers(blocked.every)
            waiting = all(t.state == "waiting" and t is not task for t in away)
            if blocked.some or not waiting or len(away) < len(blocked.every):
                continue
            away.sort(key=lambda t: (-t.move_gpus, t.rank))
            elsewhere = [
                g for g in self.schedule.problem.fleet.gpus() if g.id not in task.target.gpus
            ]
            free = partial(self._free_place, elsewhere)
            for other, place in self.schedule.parts.room_for(away, free) or ():
                self.schedule.claim(other, place)
            if away and away[0].state == "running":
                self.cleared.add(task)
                return True
        return False

    def _free_place(self, gpus: Sequence[FleetGpu], task: Task) -> Replica | None:
        """The first free place on these GPUs, be it on somebody's way or not."""
        source = task.source
        product = None if source is None else self.schedule.matcher.product(source)
        if source is None or product is None or self.schedule.matcher.candidate(source) is None:
            return None
        free = free_places(gpus, self.schedule.rooms, source, product)
        return next((place for place, _ in free if _aside(place, task.final)), None)

    def _leave_circle(self, circle: list[Task]) -> None:
        why = "no free place to start its new copy first, and no capacity to spare"
        if len(circle) > 1:
            names = " and ".join(sorted((t.name for t in circle), key=replica_order))
            why = f"{names} wait for each other's place, and no free place can break the circle"
        for task in circle:
            self._leave(task, why)

    def _ahead(self, task: Task) -> list[list[Task]]:
        """Whom it waits for: of each group one must go; an empty group never will."""
        if task.state == "draining":
            waiting = [t for t in self.schedule.tasks if t.state == "waiting"]
            return [[t for t in waiting if t.deployment == task.deployment]]
        if task.target is None:
            return []
        blocked = self.schedule.rooms.blocked(task.target)
        groups = [(r,) for r in blocked.every] + list(blocked.some)
        return [self.schedule.leavers(group) for group in groups]

    def _hopeless(self, task: Task) -> bool:
        return any(not group for group in self._ahead(task))

    def _why_hopeless(self, task: Task) -> str:
        if task.state == "draining":
            return "without it less would be served than now, and nothing more will start"
        assert task.target is not None
        return f"its place on {words.place(task.target)} does not become free"

    def _circles(self, pending: list[Task]) -> list[list[Task]]:
        """Who waits for whom, followed until someone comes up again; lightest loads first."""
        circles: list[list[Task]] = []
        seen: set[Task] = set()
        for task in pending:
            path: list[Task] = []
            while task not in seen:
                seen.add(task)
                path.append(task)
                groups = self._ahead(task)
                task = min((t for group in groups[:1] for t in group), key=lambda t: t.rank)
            if task in path:
                circle = path[path.index(task) :]
                circles.append(sorted(circle, key=lambda t: (t.move.load_mib, t.rank)))
        return circles

    def _leave(self, task: Task, why: str) -> None:
        """Give the move up. Once begun it cannot be undone, so all is played again without it."""
        self.schedule.left[task.name] = why
        self.schedule.spoiled = self.schedule.spoiled or task.begun
        task.state = "done"
        self.schedule.dequeue(task)
        if task.source is not None:
            self.schedule.leaving.pop(id(task.source), None)

    def _detour(self, task: Task) -> bool:
        """Start it at a free place first, where it is in nobody's way."""
        source = task.source
        if source is None or task.begun or task.target is not task.final:
            return False
        product = self.schedule.matcher.product(source)
        candidate = self.schedule.matcher.candidate(source)
        if product is None or candidate is None:
            return False
        for place in places(
            self.schedule.problem.fleet.gpus(), self.schedule.rooms, source, product
        ):
            if not self.schedule.ends.blocked(place) and _aside(place, task.final):
                self.schedule.claim(task, place)
                return True
        return False

    def _break(self, task: Task) -> bool:
        """Drain it before its new copy runs, if the others carry the floor."""
        source = task.source
        if source is None or task.state != "waiting":
            return False
        if not self.schedule.without(source).carries(self.schedule.floor(source)):
            return False
        self.schedule.dequeue(task)
        task.broke = True
        self.schedule.drain(task, source)
        return True


def _aside(place: Replica, final: Replica | None) -> bool:
    """Whether a start there is told from one at the end: on other GPUs, or in another instance."""
    if final is None or sorted(place.gpus) != sorted(final.gpus):
        return True
    return place.mig is not None and place.mig != final.mig
