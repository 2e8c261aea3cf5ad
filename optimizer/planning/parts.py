"""Parts: moves that wait for each other in circles, and the room aside that opens them.

A whole part is opened only when there is room for all whom it takes aside, and after the parts it
waits for: so no part holds room that another needs to go on (the banker's rule).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from optimizer.domain.fleet import FleetGpu
from optimizer.domain.placement import Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.planning.circles import aside, circular, components
from optimizer.planning.match import Matcher
from optimizer.planning.places import free_places
from optimizer.planning.rooms import Rooms
from optimizer.planning.tasks import Task


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Moves that wait in circles: whom to take aside, and the parts that must be opened before."""

    number: int
    aside: list[Task]
    behind: frozenset[int]


class Parts:
    """The parts closed yet, each after those it waits for, and the GPUs that no move touches."""

    def __init__(
        self, problem: PlacementProblem, rooms: Rooms, ends: Rooms, matcher: Matcher
    ) -> None:
        self.problem, self.rooms, self.ends, self.matcher = problem, rooms, ends, matcher
        self.closed: list[Part] = []
        self.quiet: dict[str, FleetGpu] = {}
        # Of those, by shape, where there may be room; and where there was none when last looked at.
        self.spare: dict[tuple[object, ...], dict[str, FleetGpu]] = {}
        self.shut: dict[str, list[tuple[tuple[object, ...], FleetGpu]]] = defaultdict(list)

    def cut(self, tasks: Sequence[Task], waits: dict[Task, list[Task]]) -> None:
        """The parts of moves that wait in circles, whom each takes aside, and whom it waits for."""
        touched = {g for t in tasks for r in (t.source, t.final) if r is not None for g in r.gpus}
        self.quiet = {
            g.id: g for g in self.problem.fleet.gpus() if g.id not in touched and not g.cordoned
        }
        behind: dict[Task, frozenset[int]] = {}
        for component in components(tasks, waits):
            inside = set(component)
            outside = {w for t in component for w in waits[t] if w not in inside}
            parts = frozenset().union(*(behind[w] for w in outside))
            if circular(component, waits):
                number = len(self.closed)
                chosen = aside(component, waits, lambda t: 1.0 + t.move.load_mib)
                self.closed.append(Part(number, chosen, parts))
                parts |= {number}
            behind |= dict.fromkeys(component, parts)
        for part in self.closed:
            for task in part.aside:
                self._quiet_place(task)  # while nothing moves: remembers who has room

    def open(self, claim: Callable[[Task, Replica], None]) -> None:
        """Take aside whom the next parts need aside, as long as there is room for all of a part."""
        numbers = {part.number for part in self.closed}
        while self.closed:
            part = next((p for p in self.closed if not p.behind & numbers), None)
            places = None if part is None else self.room_for(part.aside, self._quiet_place)
            if part is None or places is None:
                return
            self.closed.remove(part)
            numbers.discard(part.number)
            for task, place in places:
                if task.state == "waiting" and not task.begun:
                    claim(task, place)

    def room_for(
        self, tasks: Sequence[Task], place_of: Callable[[Task], Replica | None]
    ) -> list[tuple[Task, Replica]] | None:
        """Places for all of them, one beside the other; None when there are too few."""
        found: list[tuple[Task, Replica]] = []
        created: list[Replica] = []
        for task in tasks:
            place = place_of(task)
            if place is None:
                break
            if place.mig is not None and place.mig not in self.rooms.gpus[place.gpus[0]].instances:
                created.append(place)
            self.rooms.take(place)
            found.append((task, place))
        for _, place in found:
            self.rooms.release(place)
            self.reopen(place.gpus[0])
        for place in created:
            assert place.mig is not None
            del self.rooms.gpus[place.gpus[0]].instances[place.mig]
        return found if len(found) == len(tasks) else None

    def _quiet_place(self, task: Task) -> Replica | None:
        source = task.source
        product = None if source is None else self.matcher.product(source)
        if source is None or product is None or self.matcher.candidate(source) is None:
            return None
        key = self._like(source, product)
        if key not in self.spare:
            fits = free_places(self.quiet.values(), self.rooms, source, product)
            gpus = {gpu for place, _ in fits for gpu in place.gpus}
            self.spare[key] = {g.id: g for g in self.quiet.values() if g.id in gpus}
        open_gpus = self.spare[key]
        if len(source.gpus) > 1:
            return self._first_free(open_gpus.values(), source, product)
        for gpu in list(open_gpus.values()):
            place = self._first_free((gpu,), source, product)
            if place is not None:
                return place
            del open_gpus[gpu.id]
            self.shut[gpu.id].append((key, gpu))
        return None

    def _first_free(
        self, gpus: Iterable[FleetGpu], source: Replica, product: str
    ) -> Replica | None:
        free = free_places(gpus, self.rooms, source, product)
        return next((place for place, _ in free if not self.ends.blocked(place)), None)

    def reopen(self, gpu: str) -> None:
        """A GPU aside has room again: look at it anew."""
        for key, known in self.shut.pop(gpu, ()):
            self.spare[key][gpu] = known

    def _like(self, source: Replica, product: str) -> tuple[object, ...]:
        """Replicas of one key find the same GPUs free."""
        asked = self.matcher.deployments.get(source.deployment)
        if asked is None:
            return (product, source.shape.key)
        host = asked.host_cpu_millicores or asked.host_memory_mib
        picky = self.rooms.apart or host or asked.spread_node or asked.spread_rack or asked.pin
        return (product, source.shape.key, asked.name if picky else "")
