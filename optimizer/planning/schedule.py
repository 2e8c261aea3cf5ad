"""Schedule: moves played in simulated time, each as soon as nothing stands in its way."""

import heapq
from collections import defaultdict
from collections.abc import Iterable

from optimizer.domain.placement import Instance, Placement, Replica, replica_order
from optimizer.domain.plan import Move
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import ceil_div
from optimizer.planning.circles import tails
from optimizer.planning.drafts import Drafts
from optimizer.planning.layout import layouts_after, standing
from optimizer.planning.match import Matcher
from optimizer.planning.pace import (
    DEFAULT_PACE,
    HAND_OVER_S,
    LOAD_MIB_PER_S,
    SECONDS,
    START_S,
    Pace,
)
from optimizer.planning.parts import Parts
from optimizer.planning.rooms import Rooms
from optimizer.planning.tasks import Draft, Level, Task
from optimizer.planning.unstick import Unstick


class Schedule:
    """One attempt: the moves played in simulated time."""

    def __init__(
        self,
        problem: PlacementProblem,
        placement: Placement,
        moves: Iterable[Move],
        left: Iterable[str] = (),
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self.problem = problem
        self.placement = placement
        self.pace = pace
        self.matcher = Matcher(problem)
        now = standing(problem)
        last = layouts_after(problem, placement, now)
        rebuilt = last if pace.whole_gpus else None
        self.rooms = Rooms(problem, problem.current, now, rebuilt)
        self.ends = Rooms(problem, placement, last)
        self.drafts = Drafts(self.rooms, pace.whole_gpus)
        self.running = {r.id: r for r in self._current}
        self.tasks = [self._task(m) for m in moves]
        self.changing = {t.deployment for t in self.tasks}
        self.empties = placement.instances
        self.today = self._levels(self._current)
        self.serving = defaultdict(Level, self.today)
        self.floors = self.floors_with(left)
        self.now = 0
        self.events: list[tuple[int, int, str, Task]] = []
        self.begun = 0  # events so far, to keep their order
        self.ready: list[tuple[int, Task]] = []  # with a place, waiting to load; by rank
        self.parked: dict[str, list[Task]] = defaultdict(list)  # of those, by full node
        self.loading: dict[str, int] = defaultdict(int)  # by node; "" for the fleet
        self.waiting_on: dict[str, dict[int, Task]] = defaultdict(dict)  # node -> tasks by rank
        # By identity of the replica that must leave first: it is hashed often, and long.
        self.waiting_for: dict[int, list[Task]] = defaultdict(list)
        self.first_ahead: dict[Task, Replica] = {}  # at the start
        self.parts = Parts(problem, self.rooms, self.ends, self.matcher)
        self.unstick = Unstick(self)
        self.draining: dict[str, dict[int, Task]] = defaultdict(dict)  # deployment -> tasks
        self.leaving: dict[int, Task] = {}  # by identity of the replica
        self.raised: dict[str, list[Draft]] = defaultdict(list)  # shifts that add capacity
        self.left: dict[str, str] = {}
        self.spoiled = False

    # --- what is known at the start

    def _task(self, move: Move) -> Task:
        source = None if move.before is None else self.running.get(move.replica, move.before)
        if source is not None and not self.rooms.known(source):
            # Its node is gone and so is the replica; the step only takes it off the books.
            self.drafts.add("stop", source, 0, "its GPU is no longer in the fleet", [])
            source = None
        return Task(move, source, move.after, move.after)

    @property
    def _current(self) -> tuple[Replica, ...]:
        return self.problem.current.replicas if self.problem.current is not None else ()

    def _levels(self, replicas: Iterable[Replica]) -> dict[str, Level]:
        """What each deployment of which something changes serves by these replicas."""
        mrps: dict[str, int] = defaultdict(int)
        count: dict[str, int] = defaultdict(int)
        for replica in replicas:
            if replica.deployment in self.changing and self.rooms.known(replica):
                mrps[replica.deployment] += self.matcher.capacity_mrps(replica)
                count[replica.deployment] += 1
        return defaultdict(Level, {name: Level(mrps[name], n) for name, n in count.items()})

    def floors_with(self, left: Iterable[str]) -> dict[str, Level]:
        """The least each deployment must serve on the way: now, asked or at the end.

        The replicas ``left`` are at the end as they are now.
        """
        staying = frozenset(left)
        later = [r for r in self.placement.replicas if r.id not in staying]
        later += [r for r in self._current if r.id in staying]
        now, end = self.today, self._levels(later)
        return {
            d.name: Level(
                min(now[d.name].mrps, d.asked_mrps or 0, end[d.name].mrps),
                min(now[d.name].replicas, d.min_replicas, end[d.name].replicas),
            )
            for d in self.problem.deployments
            if d.name in self.changing
        }

    # --- the simulation

    def play(self) -> None:
        """Run until every task is done or left."""
        for task in self.tasks:
            if task.source is not None:
                self.leaving[id(task.source)] = task
        self._rank()
        for task in self.tasks:
            if task.source is None and task.target is None:
                task.state = "done"
            else:
                self._enqueue(task)
        self.parts.open(self.claim)
        for task in self.tasks:
            ahead = self.first_ahead.get(task)
            if ahead is not None and task.state == "waiting":
                self.waiting_for[id(ahead)].append(task)  # nobody has left yet
            else:
                self.attempt(task)
        while True:
            self._load_ready()
            while self.events:
                self._next_moment()
            if not self.unstick.act():
                self._stand(self.empties)
                return

    def _next_moment(self) -> None:
        """All that happens at one time, then new loads where there is room for them."""
        self.now = self.events[0][0]
        acts = {
            "placed": lambda t: heapq.heappush(self.ready, (t.rank, t)),
            "loaded": self._loaded,
            "serves": self._serves,
            "stopped": self._stopped,
        }
        while self.events and self.events[0][0] == self.now:
            _, _, kind, task = heapq.heappop(self.events)
            acts[kind](task)
        self._load_ready()

    def _stand(self, empties: Iterable[Instance]) -> None:
        """Cut the instances that shall stand empty and do not yet."""
        for instance in empties:
            if instance.gpu not in self.rooms.gpus:
                continue
            like = Replica("", "", (instance.gpu,), instance.placed)
            if not self.rooms.blocked(like):
                self.drafts.prepare(like, self.now)

    def _rank(self) -> None:
        """In a window what saves most first, then the longest way to the end."""
        waits: dict[Task, list[Task]] = {}
        for task in self.tasks:
            there = self.rooms.blocked(task.target).every if task.target is not None else ()
            waits[task] = self.leavers(there)
            if waits[task]:
                self.first_ahead[task] = next(r for r in there if id(r) in self.leaving)
        self.tasks.sort(key=lambda t: replica_order(t.name))
        self.parts.cut(self.tasks, waits)
        gone = {t for part in self.parts.closed for t in part.aside}
        straight = {t: [w for w in ahead if w not in gone] for t, ahead in waits.items()}
        tail = tails(self.tasks, straight, self._length_s)
        for task, ahead in waits.items():
            for other in (w for w in ahead if w in gone):  # goes aside first; all this follows
                follows = self._length_s(other) + tail[task]
                tail[other] = max(tail[other], follows)
        value = self._value() if self.pace.window_s is not None else {}
        self.tasks.sort(key=lambda t: (-value.get(t.name, 0.0), -tail[t], replica_order(t.name)))
        for rank, task in enumerate(self.tasks):
            task.rank = rank

    def _length_s(self, task: Task) -> float:
        """From the cutting of its place to the end of its old copy."""
        if task.target is None:
            return HAND_OVER_S
        return self._cut_s(task.target) + self._load_s(task.target) + HAND_OVER_S

    def _cut_s(self, target: Replica) -> int:
        """What cutting its place takes, where one instance gives way to it; none that stands."""
        if target.mig is None or not self.rooms.changes_layout(target):
            return 0
        return SECONDS["destroy_instance"] + SECONDS["create_instance"]

    def _load_s(self, target: Replica) -> int:
        return START_S + ceil_div(self.matcher.load_mib(target), LOAD_MIB_PER_S)

    def _value(self) -> dict[str, float]:
        """By replica, the price per hour that its GPUs save when freed, per MiB that this loads."""
        used = {g for r in self.placement.replicas for g in r.gpus}
        load: dict[str, int] = defaultdict(int)
        for task in self.tasks:
            for gpu in task.source.gpus if task.source is not None else ():
                load[gpu] += 1 + task.move.load_mib
        fleet, gpus = self.problem.fleet, self.rooms.gpus
        return {
            t.name: sum(
                fleet.price_micros(gpus[g].gpu.node) / load[g]
                for g in t.source.gpus
                if g not in used
            )
            for t in self.tasks
            if t.source is not None
        }

    def _enqueue(self, task: Task) -> None:
        """Wait for room, or, without a target, for the moment when its capacity can go."""
        if task.target is None:
            task.state = "draining"
            self.draining[task.deployment][task.rank] = task
        else:
            task.state = "waiting"

    def attempt(self, task: Task) -> None:
        """Take the next step if nothing stands in the way, else wait for who does."""
        if task.state == "waiting" and task.target is not None:
            blocked = self.rooms.blocked(task.target)
            if not blocked:
                self.claim(task, task.target)
                return
            ahead = next((r for r in blocked.every if id(r) in self.leaving), None)
            if ahead is not None:
                self.waiting_for[id(ahead)].append(task)
            elif not blocked.every:
                for node in self.rooms.watched(task.target):
                    self.waiting_on[node][task.rank] = task
        elif task.state == "draining" and task.source is not None:
            after = self.without(task.source)
            if after.carries(self.floor(task.source)):
                self.drain(task, task.source)

    def floor(self, replica: Replica) -> Level:
        return self.floors.get(replica.deployment, Level())

    def without(self, replica: Replica) -> Level:
        return self.serving[replica.deployment].shifted(-self.matcher.capacity_mrps(replica), -1)

    def claim(self, task: Task, target: Replica) -> None:
        """Take the place and make it ready; loading begins when node and fleet have a turn."""
        self.dequeue(task)
        task.target, task.state, task.begun = target, "running", True
        before = self.drafts.stops_before(target)
        ready, made = self.drafts.prepare(target, self.now)
        task.needs = [*before, *made]
        self.rooms.take(target)
        self._at(ready, "placed", task)

    def _load_ready(self) -> None:
        """Begin loads in order of rank, as many as node and fleet may at once."""
        most = self.pace.loads_at_once
        while self.ready and (most is None or self.loading[""] < most):
            _, task = heapq.heappop(self.ready)
            assert task.target is not None
            full = [n for n in task.target.nodes if self.loading[n] >= self.pace.loads_per_node]
            if full:
                self.parked[full[0]].append(task)
            else:
                self._start(task, task.target)

    def _start(self, task: Task, target: Replica) -> None:
        because = task.move.reason
        if target is not task.final:
            because = "a stop on its way: the moves wait for each other in a circle"
        seconds = self._load_s(target)
        start = self.drafts.add("start", target, self.now, because, task.needs, seconds)
        _follow(start, task.last)
        end = self.now + seconds
        task.last = self.drafts.add("shift_traffic", target, end, "it is up", [start])
        for node in ("", *target.nodes):
            self.loading[node] += 1
        self._at(end, "loaded", task)
        self._at(end + SECONDS["shift_traffic"], "serves", task)

    def _loaded(self, task: Task) -> None:
        """Its turn is over: others may load."""
        assert task.target is not None
        for node in ("", *task.target.nodes):
            self.loading[node] -= 1
            for other in self.parked.pop(node, ()):
                heapq.heappush(self.ready, (other.rank, other))

    def _serves(self, task: Task) -> None:
        """The new copy takes traffic; the old one may go when that loses nothing."""
        target = task.target
        if target is None or task.last is None:
            return
        name, gain = target.deployment, self.matcher.capacity_mrps(target)
        self.serving[name] = self.serving[name].shifted(gain, 1)
        if task.source is None:
            self.raised[name].append(task.last)
            self._arrived(task)
        elif gain >= self.matcher.capacity_mrps(task.source):
            if gain > self.matcher.capacity_mrps(task.source):
                self.raised[name].append(task.last)
            self.drain(task, task.source, paired=True)
        else:
            self.raised[name].append(task.last)
            task.state = "draining"
            self.draining[name][task.rank] = task
        for _, waiting in sorted(self.draining[name].items()):
            self.attempt(waiting)

    def drain(self, task: Task, source: Replica, paired: bool = False) -> None:
        self.draining[source.deployment].pop(task.rank, None)
        task.state, task.begun = "running", True
        self.serving[source.deployment] = self.without(source)
        because = "its new copy serves" if task.last is not None else task.move.reason
        if task.broke:
            because = "the other replicas carry the demand; no free place to start first"
        after = [] if paired else list(self.raised[source.deployment])
        drain = self.drafts.add("drain", source, self.now, because, after)
        _follow(drain, task.last)
        end = self.now + drain.seconds
        stop = self.drafts.add("stop", source, end, "drained", [drain])
        task.last = stop
        self._at(end + stop.seconds, "stopped", task)

    def _stopped(self, task: Task) -> None:
        source = task.source
        if source is None or task.last is None:
            return
        self.rooms.release(source)
        self.drafts.stopped(source, task.last)
        self.leaving.pop(id(source), None)
        if task.broke:
            task.source, task.broke = None, False
            self._enqueue(task)
            self.attempt(task)
        else:
            self._arrived(task)
        for waiting in sorted(self.waiting_for.pop(id(source), ()), key=lambda t: t.rank):
            self.attempt(waiting)
        for node in source.nodes:
            for _, waiting in sorted(self.waiting_on[node].items()):
                self.attempt(waiting)
        if source.gpus[0] in self.parts.quiet:
            self.parts.reopen(source.gpus[0])
            self.parts.open(self.claim)

    def _arrived(self, task: Task) -> None:
        """At its end, or at a stop on its way, from where it goes on."""
        if task.target is task.final:
            task.state = "done"
            return
        task.source, task.target = task.target, task.final
        if task.source is not None:
            self.leaving[id(task.source)] = task
        self._enqueue(task)
        self.attempt(task)

    def _at(self, time: int, kind: str, task: Task) -> None:
        self.begun += 1
        heapq.heappush(self.events, (time, self.begun, kind, task))

    def leavers(self, replicas: Iterable[Replica]) -> list[Task]:
        """The tasks of those that are to leave."""
        return [self.leaving[id(r)] for r in replicas if id(r) in self.leaving]

    def dequeue(self, task: Task) -> None:
        self.draining[task.deployment].pop(task.rank, None)
        if task.target is not None:
            for node in self.rooms.watched(task.target):
                self.waiting_on[node].pop(task.rank, None)

    def late(self) -> dict[str, str]:
        """The moves that do not end inside the window, and why that leaves them out."""
        window = self.pace.window_s
        if window is None:
            return {}
        ends = {t.name: t.last.start_s + t.last.seconds for t in self.tasks if t.last is not None}
        told = f"it would end after the window of {window} s"
        return {name: told for name, end in ends.items() if end > window}


def _follow(draft: Draft, last: Draft | None) -> None:
    if last is not None:
        draft.after.append(last)
