"""Order: moves become steps that keep every customer served on the way.

A list schedule over a simulated fleet. A replica starts once its place is free, its old copy
drains once the new one serves, an instance is cut or destroyed only while nobody is in it, and a
deployment never serves less than it does now or asks, whichever is less. Those with the longest
way behind them go first; a node loads so many replicas at once, the fleet so many in all.

Where moves wait for each other in a circle, some are taken aside to free places first. A whole
part of moves that hang together is opened only when there is room for all whom it takes aside, and
after the parts it waits for: so no part holds room that another needs to go on (the banker's
rule). Where no room is enough, one at a time makes a stop at any free place; without one, a replica
is drained first if the rest carry the demand; else the circle is left as it is, and named.
"""

import gc
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from optimizer.domain import words
from optimizer.domain.fleet import FleetGpu
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Instance, Placement, Replica, replica_order
from optimizer.domain.plan import Move, Step
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import ceil_div
from optimizer.planning.circles import aside, circular, components, tails
from optimizer.planning.layout import layouts_after, standing
from optimizer.planning.match import Matcher
from optimizer.planning.places import free_places, places
from optimizer.planning.rooms import Act, Rooms

LOAD_MIB_PER_S = 2048  # of one load from storage; assumed, not measured
START_S = 30  # process, CUDA context and graph capture beside the loading; assumed
SECONDS = {
    "create_instance": 2,
    "destroy_instance": 2,
    "set_mig_mode": 10,
    "shift_traffic": 5,
    "drain": 30,
    "stop": 5,
}


# A new copy takes traffic and the old one goes: what follows every load.
HAND_OVER_S = SECONDS["shift_traffic"] + SECONDS["drain"] + SECONDS["stop"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How much may be done at once: loads on one node and in the fleet; and for how long.

    ``whole_gpus``: the tool at hand cuts a GPU anew only as a whole, once nobody is on it, as
    mig-parted and the MIG manager do; else instance by instance, as NVML can.
    """

    loads_per_node: int = 2
    loads_at_once: int | None = None
    window_s: int | None = None
    whole_gpus: bool = False


DEFAULT_PACE = Pace()


@dataclass(frozen=True, slots=True)
class Ordered:
    """Steps in an order that works, and the replicas whose moves found none (``left``)."""

    steps: tuple[Step, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    why: tuple[tuple[str, str], ...] = ()  # of each left, why it stays


def order(
    problem: PlacementProblem,
    placement: Placement,
    moves: tuple[Move, ...],
    pace: Pace = DEFAULT_PACE,
) -> Ordered:
    """Steps that carry out the moves, make-before-break, with start times and dependencies.

    Any order of execution that respects ``after`` keeps rooms and floors; played one by one as
    listed they do too. What does not end inside the window is left, as if it had not been asked.
    """
    with _without_cycle_search():
        return _ordered(problem, placement, moves, pace)


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """Python looks for garbage in cycles, a third of the time here, where there is none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _ordered(
    problem: PlacementProblem, placement: Placement, moves: tuple[Move, ...], pace: Pace
) -> Ordered:
    left: dict[str, str] = {}
    while True:
        todo = [m for m in moves if m.replica not in left]
        run = _Schedule(problem, placement, todo, left, pace)
        run.play()
        late = run.late()
        left |= {**run.left, **late}
        if late:
            continue
        # Who stays may serve more than planned for the end: a floor is then higher than was kept.
        if not run.left or not (run.spoiled or run.floors != run.floors_with(left)):
            break
    notes = tuple(f"{name} stays as it is: {why}" for name, why in sorted(left.items()))
    names = tuple(sorted(left, key=replica_order))
    return Ordered(run.steps(), names, notes, tuple((name, left[name]) for name in names))


@dataclass(slots=True, eq=False)
class _Draft:
    """A step before it has its number."""

    action: str
    gpus: tuple[str, ...]
    replica: str | None
    start_s: int
    seconds: int
    because: str
    after: list["_Draft"] = field(default_factory=list)
    placed: PlacedProfile | None = None
    enable: bool | None = None
    id: str = ""

    def step(self) -> Step:
        """The step, once all have their number."""
        after = [self.after[0].id] if len(self.after) == 1 else sorted({d.id for d in self.after})
        return Step(
            self.id,
            self.action,
            self.gpus,
            self.replica,
            tuple(after),
            self.start_s,
            self.seconds,
            self.because,
            self.placed,
            self.enable,
        )


@dataclass(slots=True, eq=False)
class _Task:
    """A replica on its way: from ``source`` (None: it does not run) to ``target`` (None: stop)."""

    move: Move
    source: Replica | None
    target: Replica | None
    final: Replica | None  # where it ends; differs from target while it makes a stop elsewhere
    rank: int = 0
    state: str = "waiting"  # waiting | draining (for the floor) | running | done
    needs: list[_Draft] = field(default_factory=list)  # what its start must follow
    begun: bool = False
    broke: bool = False  # drained before its new copy runs
    last: _Draft | None = None  # what its next step must follow

    @property
    def name(self) -> str:
        return self.move.replica

    @property
    def deployment(self) -> str:
        return self.move.replica.rpartition("/")[0]

    @property
    def move_gpus(self) -> int:
        return len(self.source.gpus) if self.source is not None else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Moves that wait in circles: whom to take aside, and the parts that must be opened before."""

    number: int
    aside: list[_Task]
    behind: frozenset[int]


@dataclass(slots=True)
class _Level:
    """What a deployment serves: a rate in mrps and a number of replicas."""

    mrps: int = 0
    replicas: int = 0

    def shifted(self, mrps: int, replicas: int) -> "_Level":
        return _Level(self.mrps + mrps, self.replicas + replicas)

    def carries(self, floor: "_Level") -> bool:
        return self.mrps >= floor.mrps and self.replicas >= floor.replicas


class _Schedule:
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
        self.drafts: list[_Draft] = []
        self.running = {r.id: r for r in self._current}
        self.tasks = [self._task(m) for m in moves]
        self.changing = {t.deployment for t in self.tasks}
        self.empties = placement.instances
        self.today = self._levels(self._current)
        self.serving = defaultdict(_Level, self.today)
        self.floors = self.floors_with(left)
        self.now = 0
        self.events: list[tuple[int, int, str, _Task]] = []
        self.begun = 0  # events so far, to keep their order
        self.ready: list[tuple[int, _Task]] = []  # with a place, waiting to load; by rank
        self.parked: dict[str, list[_Task]] = defaultdict(list)  # of those, by full node
        self.loading: dict[str, int] = defaultdict(int)  # by node; "" for the fleet
        self.waiting_on: dict[str, dict[int, _Task]] = defaultdict(dict)  # node -> tasks by rank
        # By identity of the replica that must leave first: it is hashed often, and long.
        self.waiting_for: dict[int, list[_Task]] = defaultdict(list)
        self.first_ahead: dict[_Task, Replica] = {}  # at the start
        self.parts: list[_Part] = []  # closed yet, each after those it waits for
        self.draining: dict[str, dict[int, _Task]] = defaultdict(dict)  # deployment -> tasks
        self.leaving: dict[int, _Task] = {}  # by identity of the replica
        self.busy_until: dict[str, int] = defaultdict(int)  # GPU being cut or cleared
        self.history: dict[str, list[tuple[Replica | None, _Draft]]] = defaultdict(list)  # by GPU
        self.stopped_on: dict[str, list[tuple[Replica, _Draft]]] = defaultdict(list)  # by node
        self.raised: dict[str, list[_Draft]] = defaultdict(list)  # shifts that add capacity
        self.left: dict[str, str] = {}
        self.spoiled = False
        self.cleared: set[_Task] = set()  # for whom others were taken out of the way
        self.quiet: dict[str, FleetGpu] = {}  # GPUs that no move touches
        # Of those, by shape, where there may be room; and where there was none when last looked at.
        self.spare: dict[tuple[object, ...], dict[str, FleetGpu]] = {}
        self.shut: dict[str, list[tuple[tuple[object, ...], FleetGpu]]] = defaultdict(list)

    # --- what is known at the start

    def _task(self, move: Move) -> _Task:
        source = None if move.before is None else self.running.get(move.replica, move.before)
        if source is not None and not self.rooms.known(source):
            # Its node is gone and so is the replica; the step only takes it off the books.
            self._draft("stop", source, 0, "its GPU is no longer in the fleet", [])
            source = None
        return _Task(move, source, move.after, move.after)

    @property
    def _current(self) -> tuple[Replica, ...]:
        return self.problem.current.replicas if self.problem.current is not None else ()

    def _levels(self, replicas: Iterable[Replica]) -> dict[str, _Level]:
        """What each deployment of which something changes serves by these replicas."""
        mrps: dict[str, int] = defaultdict(int)
        count: dict[str, int] = defaultdict(int)
        for replica in replicas:
            if replica.deployment in self.changing and self.rooms.known(replica):
                mrps[replica.deployment] += self.matcher.capacity_mrps(replica)
                count[replica.deployment] += 1
        return defaultdict(_Level, {name: _Level(mrps[name], n) for name, n in count.items()})

    def floors_with(self, left: Iterable[str]) -> dict[str, _Level]:
        """The least each deployment must serve on the way: now, asked or at the end.

        The replicas ``left`` are at the end as they are now.
        """
        staying = frozenset(left)
        later = [r for r in self.placement.replicas if r.id not in staying]
        later += [r for r in self._current if r.id in staying]
        now, end = self.today, self._levels(later)
        return {
            d.name: _Level(
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
        self._open_parts()
        for task in self.tasks:
            ahead = self.first_ahead.get(task)
            if ahead is not None and task.state == "waiting":
                self.waiting_for[id(ahead)].append(task)  # nobody has left yet
            else:
                self._try(task)
        while True:
            self._load_ready()
            while self.events:
                self._next_moment()
            if not self._unstick():
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
                self._prepare(like)

    def _rank(self) -> None:
        """In a window what saves most first, then the longest way to the end."""
        waits: dict[_Task, list[_Task]] = {}
        for task in self.tasks:
            there = self.rooms.blocked(task.target).every if task.target is not None else ()
            waits[task] = self._leavers(there)
            if waits[task]:
                self.first_ahead[task] = next(r for r in there if id(r) in self.leaving)
        self.tasks.sort(key=lambda t: replica_order(t.name))
        self._cut_parts(waits)
        gone = {t for part in self.parts for t in part.aside}
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

    def _length_s(self, task: _Task) -> float:
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

    def _enqueue(self, task: _Task) -> None:
        """Wait for room, or, without a target, for the moment when its capacity can go."""
        if task.target is None:
            task.state = "draining"
            self.draining[task.deployment][task.rank] = task
        else:
            task.state = "waiting"

    def _watched(self, target: Replica) -> list[str]:
        """Nodes on which a stop may make room for the target."""
        deployment = self.matcher.deployments.get(target.deployment)
        if deployment is None or deployment.spread_rack is None:
            return list(target.nodes)
        racks = {self.rooms.nodes[n].rack_domain for n in target.nodes if n in self.rooms.nodes}
        return [n.name for n in self.problem.fleet.nodes if n.rack_domain in racks]

    def _try(self, task: _Task) -> None:
        """Take the next step if nothing stands in the way, else wait for who does."""
        if task.state == "waiting" and task.target is not None:
            blocked = self.rooms.blocked(task.target)
            if not blocked:
                self._claim(task, task.target)
                return
            ahead = next((r for r in blocked.every if id(r) in self.leaving), None)
            if ahead is not None:
                self.waiting_for[id(ahead)].append(task)
            elif not blocked.every:
                for node in self._watched(task.target):
                    self.waiting_on[node][task.rank] = task
        elif task.state == "draining" and task.source is not None:
            after = self._without(task.source)
            if after.carries(self._floor(task.source)):
                self._drain(task, task.source)

    def _floor(self, replica: Replica) -> _Level:
        return self.floors.get(replica.deployment, _Level())

    def _without(self, replica: Replica) -> _Level:
        return self.serving[replica.deployment].shifted(-self.matcher.capacity_mrps(replica), -1)

    def _claim(self, task: _Task, target: Replica) -> None:
        """Take the place and make it ready; loading begins when node and fleet have a turn."""
        self._dequeue(task)
        task.target, task.state, task.begun = target, "running", True
        before = self._stops_before(target)
        ready, made = self._prepare(target)
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

    def _start(self, task: _Task, target: Replica) -> None:
        because = task.move.reason
        if target is not task.final:
            because = "a stop on its way: the moves wait for each other in a circle"
        seconds = self._load_s(target)
        start = self._draft("start", target, self.now, because, task.needs, seconds)
        _follow(start, task.last)
        end = self.now + seconds
        task.last = self._draft("shift_traffic", target, end, "it is up", [start])
        for node in ("", *target.nodes):
            self.loading[node] += 1
        self._at(end, "loaded", task)
        self._at(end + SECONDS["shift_traffic"], "serves", task)

    def _loaded(self, task: _Task) -> None:
        """Its turn is over: others may load."""
        assert task.target is not None
        for node in ("", *task.target.nodes):
            self.loading[node] -= 1
            for other in self.parked.pop(node, ()):
                heapq.heappush(self.ready, (other.rank, other))

    def _prepare(self, target: Replica) -> tuple[int, list[_Draft]]:
        """Cut or clear the place; when it is ready, and the steps a start must wait for."""
        for act in self.rooms.prepare(target):
            begin = max(self.now, self.busy_until[act.gpu])
            draft = _Draft(
                act.action,
                (act.gpu,),
                None,
                begin,
                SECONDS[act.action],
                _why(act, target),
                self._before_act(act, target),
                act.placed,
                act.enable,
            )
            self.drafts.append(draft)
            self.history[act.gpu].append((None, draft))
            self.busy_until[act.gpu] = begin + draft.seconds
        made = []
        for gpu in target.gpus:
            acts = [d for r, d in self.history[gpu] if r is None]
            if target.mig is not None:
                acts = [d for d in acts if d.placed == target.mig]
            made.extend(acts[-1:])
        return max([self.now, *(self.busy_until[g] for g in target.gpus)]), made

    def _before_act(self, act: Act, target: Replica) -> list[_Draft]:
        """The act before it on that GPU, and the stops of those who were in its way."""
        past = self.history[act.gpu]
        acts = [d for r, d in past if r is None][-1:]
        if self.pace.whole_gpus:
            return acts + [d for r, d in past if r is not None]
        if act.action == "destroy_instance":
            return acts + [d for r, d in past if r is not None and r.mig == act.placed]
        if act.action == "create_instance":
            return acts + [d for r, d in past if r is not None and self._met(r, target)]
        return acts + [d for r, d in past if r is not None]

    def _stops_before(self, target: Replica) -> list[_Draft]:
        """The stops that made room for the target, on its GPUs and on its nodes."""
        found: dict[int, _Draft] = {}
        for gpu in target.gpus:
            for replica, draft in self.history[gpu]:
                if replica is not None and self._met(replica, target):
                    found[id(draft)] = draft
        for node in self._watched(target):
            if self._tight(node, target):
                found |= {id(d): d for _, d in self.stopped_on[node]}
        return list(found.values())

    def _met(self, gone: Replica, target: Replica) -> bool:
        """Whether the two could not have been on their GPU together."""
        if gone.mig is None or target.mig is None:
            return True
        if self.rooms.strangers(gone, target):
            return True
        return self.rooms.clash(target.gpus[0], gone.mig, target.mig)

    def _tight(self, node: str, target: Replica) -> bool:
        """Whether room on that node's host, or closeness, may have kept the target waiting."""
        asked = self.matcher.deployments.get(target.deployment)
        if asked is None or not self.stopped_on[node]:
            return False
        machine = self.rooms.nodes[node]
        host = machine.cpu_millicores is not None or machine.host_memory_mib is not None
        needs = asked.host_cpu_millicores or asked.host_memory_mib
        close = asked.spread_node is not None or asked.spread_rack is not None
        if bool(host and needs) or close:
            return True
        if not self.rooms.apart:
            return False
        return any(self.rooms.node_strangers(r, target) for r, _ in self.stopped_on[node])

    def _serves(self, task: _Task) -> None:
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
            self._drain(task, task.source, paired=True)
        else:
            self.raised[name].append(task.last)
            task.state = "draining"
            self.draining[name][task.rank] = task
        for _, waiting in sorted(self.draining[name].items()):
            self._try(waiting)

    def _drain(self, task: _Task, source: Replica, paired: bool = False) -> None:
        self.draining[source.deployment].pop(task.rank, None)
        task.state, task.begun = "running", True
        self.serving[source.deployment] = self._without(source)
        because = "its new copy serves" if task.last is not None else task.move.reason
        if task.broke:
            because = "the other replicas carry the demand; no free place to start first"
        after = [] if paired else list(self.raised[source.deployment])
        drain = self._draft("drain", source, self.now, because, after)
        _follow(drain, task.last)
        end = self.now + drain.seconds
        stop = self._draft("stop", source, end, "drained", [drain])
        task.last = stop
        self._at(end + stop.seconds, "stopped", task)

    def _stopped(self, task: _Task) -> None:
        source = task.source
        if source is None or task.last is None:
            return
        self.rooms.release(source)
        for gpu in source.gpus:
            self.history[gpu].append((source, task.last))
        for node in source.nodes:
            self.stopped_on[node].append((source, task.last))
        self.leaving.pop(id(source), None)
        if task.broke:
            task.source, task.broke = None, False
            self._enqueue(task)
            self._try(task)
        else:
            self._arrived(task)
        for waiting in sorted(self.waiting_for.pop(id(source), ()), key=lambda t: t.rank):
            self._try(waiting)
        for node in source.nodes:
            for _, waiting in sorted(self.waiting_on[node].items()):
                self._try(waiting)
        if source.gpus[0] in self.quiet:
            self._reopen(source.gpus[0])
            self._open_parts()

    def _arrived(self, task: _Task) -> None:
        """At its end, or at a stop on its way, from where it goes on."""
        if task.target is task.final:
            task.state = "done"
            return
        task.source, task.target = task.target, task.final
        if task.source is not None:
            self.leaving[id(task.source)] = task
        self._enqueue(task)
        self._try(task)

    def _at(self, time: int, kind: str, task: _Task) -> None:
        self.begun += 1
        heapq.heappush(self.events, (time, self.begun, kind, task))

    def _draft(
        self,
        action: str,
        replica: Replica,
        start_s: int,
        because: str,
        after: list[_Draft],
        seconds: int | None = None,
    ) -> _Draft:
        took = SECONDS[action] if seconds is None else seconds
        draft = _Draft(action, replica.gpus, replica.id, start_s, took, because, after, replica.mig)
        self.drafts.append(draft)
        return draft

    # --- circles

    def _cut_parts(self, waits: dict[_Task, list[_Task]]) -> None:
        """The parts of moves that wait in circles, whom each takes aside, and whom it waits for."""
        touched = {
            g for t in self.tasks for r in (t.source, t.final) if r is not None for g in r.gpus
        }
        self.quiet = {
            g.id: g for g in self.problem.fleet.gpus() if g.id not in touched and not g.cordoned
        }
        behind: dict[_Task, frozenset[int]] = {}
        for component in components(self.tasks, waits):
            inside = set(component)
            outside = {w for t in component for w in waits[t] if w not in inside}
            parts = frozenset().union(*(behind[w] for w in outside))
            if circular(component, waits):
                number = len(self.parts)
                chosen = aside(component, waits, lambda t: 1.0 + t.move.load_mib)
                self.parts.append(_Part(number, chosen, parts))
                parts |= {number}
            behind |= dict.fromkeys(component, parts)
        for part in self.parts:
            for task in part.aside:
                self._quiet_place(task)  # while nothing moves: remembers who has room

    def _open_parts(self) -> None:
        """Take aside whom the next parts need aside, as long as there is room for all of a part."""
        closed = {part.number for part in self.parts}
        while self.parts:
            part = next((p for p in self.parts if not p.behind & closed), None)
            places = None if part is None else self._room_for(part.aside, self._quiet_place)
            if part is None or places is None:
                return
            self.parts.remove(part)
            closed.discard(part.number)
            for task, place in places:
                if task.state == "waiting" and not task.begun:
                    self._claim(task, place)

    def _room_for(
        self, tasks: Sequence[_Task], place_of: Callable[[_Task], Replica | None]
    ) -> list[tuple[_Task, Replica]] | None:
        """Places for all of them, one beside the other; None when there are too few."""
        found: list[tuple[_Task, Replica]] = []
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
            self._reopen(place.gpus[0])
        for place in created:
            assert place.mig is not None
            del self.rooms.gpus[place.gpus[0]].instances[place.mig]
        return found if len(found) == len(tasks) else None

    def _quiet_place(self, task: _Task) -> Replica | None:
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

    def _reopen(self, gpu: str) -> None:
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

    def _unstick(self) -> bool:
        """When nothing moves: break a circle or leave a move out; false when all is done."""
        pending = [t for t in self.tasks if t.state in ("waiting", "draining")]
        for task in pending:
            if self._hopeless(task):
                self._leave(task, self._why_hopeless(task))
                return True
        if not pending:
            return False
        free = [t for t in pending if not self._ahead(t)]
        if free:  # what it waited for went another way than it was told
            for task in free:
                self._try(task)
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

    def _exchange(self, pending: Sequence[_Task]) -> bool:
        """Clear the place of the largest group that waits, to wherever there is room.

        It then leaves a place of its own size. Taken from the largest down, one free place of the
        largest size is enough for whole GPUs: who was cleared away is of that size at most.
        """
        groups = [t for t in pending if t.target is not None and t.target.shape.sharing == "whole"]
        groups = [t for t in groups if t.target is t.final and t not in self.cleared]
        for task in sorted(groups, key=lambda t: (-t.move_gpus, t.rank)):
            assert task.target is not None
            blocked = self.rooms.blocked(task.target)
            away = self._leavers(blocked.every)
            waiting = all(t.state == "waiting" and t is not task for t in away)
            if blocked.some or not waiting or len(away) < len(blocked.every):
                continue
            away.sort(key=lambda t: (-t.move_gpus, t.rank))
            elsewhere = [g for g in self.problem.fleet.gpus() if g.id not in task.target.gpus]
            free = partial(self._free_place, elsewhere)
            for other, place in self._room_for(away, free) or ():
                self._claim(other, place)
            if away and away[0].state == "running":
                self.cleared.add(task)
                return True
        return False

    def _free_place(self, gpus: Sequence[FleetGpu], task: _Task) -> Replica | None:
        """The first free place on these GPUs, be it on somebody's way or not."""
        source = task.source
        product = None if source is None else self.matcher.product(source)
        if source is None or product is None or self.matcher.candidate(source) is None:
            return None
        free = free_places(gpus, self.rooms, source, product)
        return next((place for place, _ in free if _aside(place, task.final)), None)

    def _leave_circle(self, circle: list[_Task]) -> None:
        why = "no free place to start its new copy first, and no capacity to spare"
        if len(circle) > 1:
            names = " and ".join(sorted((t.name for t in circle), key=replica_order))
            why = f"{names} wait for each other's place, and no free place can break the circle"
        for task in circle:
            self._leave(task, why)

    def _ahead(self, task: _Task) -> list[list[_Task]]:
        """Whom it waits for: of each group one must go; an empty group never will."""
        if task.state == "draining":
            waiting = [t for t in self.tasks if t.state == "waiting"]
            return [[t for t in waiting if t.deployment == task.deployment]]
        if task.target is None:
            return []
        blocked = self.rooms.blocked(task.target)
        groups = [(r,) for r in blocked.every] + list(blocked.some)
        return [self._leavers(group) for group in groups]

    def _leavers(self, replicas: Iterable[Replica]) -> list[_Task]:
        """The tasks of those that are to leave."""
        return [self.leaving[id(r)] for r in replicas if id(r) in self.leaving]

    def _hopeless(self, task: _Task) -> bool:
        return any(not group for group in self._ahead(task))

    def _why_hopeless(self, task: _Task) -> str:
        if task.state == "draining":
            return "without it less would be served than now, and nothing more will start"
        assert task.target is not None
        return f"its place on {words.place(task.target)} does not become free"

    def _circles(self, pending: list[_Task]) -> list[list[_Task]]:
        """Who waits for whom, followed until someone comes up again; lightest loads first."""
        circles: list[list[_Task]] = []
        seen: set[_Task] = set()
        for task in pending:
            path: list[_Task] = []
            while task not in seen:
                seen.add(task)
                path.append(task)
                groups = self._ahead(task)
                task = min((t for group in groups[:1] for t in group), key=lambda t: t.rank)
            if task in path:
                circle = path[path.index(task) :]
                circles.append(sorted(circle, key=lambda t: (t.move.load_mib, t.rank)))
        return circles

    def _leave(self, task: _Task, why: str) -> None:
        """Give the move up. Once begun it cannot be undone, so all is played again without it."""
        self.left[task.name] = why
        self.spoiled = self.spoiled or task.begun
        task.state = "done"
        self._dequeue(task)
        if task.source is not None:
            self.leaving.pop(id(task.source), None)

    def _detour(self, task: _Task) -> bool:
        """Start it at a free place first, where it is in nobody's way."""
        source = task.source
        if source is None or task.begun or task.target is not task.final:
            return False
        product = self.matcher.product(source)
        candidate = self.matcher.candidate(source)
        if product is None or candidate is None:
            return False
        for place in places(self.problem.fleet.gpus(), self.rooms, source, product):
            if not self.ends.blocked(place) and _aside(place, task.final):
                self._claim(task, place)
                return True
        return False

    def _dequeue(self, task: _Task) -> None:
        self.draining[task.deployment].pop(task.rank, None)
        if task.target is not None:
            for node in self._watched(task.target):
                self.waiting_on[node].pop(task.rank, None)

    def _break(self, task: _Task) -> bool:
        """Drain it before its new copy runs, if the others carry the floor."""
        source = task.source
        if source is None or task.state != "waiting":
            return False
        if not self._without(source).carries(self._floor(source)):
            return False
        self._dequeue(task)
        task.broke = True
        self._drain(task, source)
        return True

    # --- the result

    def late(self) -> dict[str, str]:
        """The moves that do not end inside the window, and why that leaves them out."""
        window = self.pace.window_s
        if window is None:
            return {}
        ends = {t.name: t.last.start_s + t.last.seconds for t in self.tasks if t.last is not None}
        told = f"it would end after the window of {window} s"
        return {name: told for name, end in ends.items() if end > window}

    def steps(self) -> tuple[Step, ...]:
        """The drafts by start time, numbered."""
        self.drafts.sort(key=lambda d: d.start_s)
        for number, draft in enumerate(self.drafts, 1):
            draft.id = f"s{number:04d}"
        return tuple(d.step() for d in self.drafts)


def _aside(place: Replica, final: Replica | None) -> bool:
    """Whether a start there is told from one at the end: on other GPUs, or in another instance."""
    if final is None or sorted(place.gpus) != sorted(final.gpus):
        return True
    return place.mig is not None and place.mig != final.mig


def _follow(draft: _Draft, last: _Draft | None) -> None:
    if last is not None:
        draft.after.append(last)


def _why(act: Act, target: Replica) -> str:
    if act.action == "create_instance":
        return f"room for {target.id}" if target.id else "kept empty on purpose"
    if act.action == "destroy_instance":
        what = words.slot(target.mig) if target.mig is not None else f"{target.id} outside MIG"
        return f"stands empty in the way of {what}"
    return f"{target.id} needs MIG {'on' if act.enable else 'off'}"
