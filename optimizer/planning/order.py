"""Order: moves become steps that keep every customer served on the way.

A list schedule over a simulated fleet. A replica starts once its place is free, its old copy
drains once the new one serves, an instance is cut or destroyed only while nobody is in it, and a
deployment never serves less than it does now or asks, whichever is less. Where moves wait for
each other in a circle, one of them makes a stop at a free place; without one, a replica is
drained first if the rest carry the demand; else the circle is left as it is, and named.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from optimizer.domain import words
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Instance, Placement, Replica, replica_order
from optimizer.domain.plan import Move, Step
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import ceil_div
from optimizer.planning.layout import layouts_after, standing
from optimizer.planning.match import Matcher
from optimizer.planning.places import places
from optimizer.planning.rooms import Act, Rooms

LOAD_MIB_PER_S = 2048  # of one load from storage; assumed, not measured
LOADS_PER_NODE = 2
START_S = 30  # process, CUDA context and graph capture beside the loading; assumed
SECONDS = {
    "create_instance": 2,
    "destroy_instance": 2,
    "set_mig_mode": 10,
    "shift_traffic": 5,
    "drain": 30,
    "stop": 5,
}


@dataclass(frozen=True, slots=True)
class Ordered:
    """Steps in an order that works, and the replicas whose moves found none (``left``)."""

    steps: tuple[Step, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def order(problem: PlacementProblem, placement: Placement, moves: tuple[Move, ...]) -> Ordered:
    """Steps that carry out the moves, make-before-break, with start times and dependencies.

    Any order of execution that respects ``after`` keeps rooms and floors; played one by one as
    listed they do too.
    """
    left: dict[str, str] = {}
    while True:
        run = _Schedule(problem, placement, [m for m in moves if m.replica not in left], left)
        run.play()
        left |= run.left
        # Who stays may serve more than planned for the end: a floor is then higher than was kept.
        if not run.left or not (run.spoiled or run.floors != run.floors_with(left)):
            break
    notes = tuple(f"{name} stays as it is: {why}" for name, why in sorted(left.items()))
    return Ordered(run.steps(), tuple(sorted(left, key=replica_order)), notes)


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


@dataclass(slots=True, eq=False)
class _Task:
    """A replica on its way: from ``source`` (None: it does not run) to ``target`` (None: stop)."""

    move: Move
    source: Replica | None
    target: Replica | None
    final: Replica | None  # where it ends; differs from target while it makes a stop elsewhere
    rank: int = 0
    state: str = "waiting"  # waiting | draining (for the floor) | running | done
    begun: bool = False
    broke: bool = False  # drained before its new copy runs
    last: _Draft | None = None  # what its next step must follow

    @property
    def name(self) -> str:
        return self.move.replica

    @property
    def deployment(self) -> str:
        return self.move.replica.rpartition("/")[0]


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
    ) -> None:
        self.problem = problem
        self.placement = placement
        self.matcher = Matcher(problem)
        self.rooms = Rooms(problem, problem.current, standing(problem))
        self.ends = Rooms(problem, placement, layouts_after(problem, placement))
        self.drafts: list[_Draft] = []
        self.tasks = [self._task(m) for m in moves]
        self.empties = placement.instances
        self.serving = self._levels(self._current)
        self.floors = self.floors_with(left)
        self.now = 0
        self.events: list[tuple[int, int, str, _Task]] = []
        self.loads: dict[str, list[int]] = defaultdict(lambda: [0] * LOADS_PER_NODE)
        self.waiting_on: dict[str, dict[int, _Task]] = defaultdict(dict)  # node -> tasks by rank
        self.draining: dict[str, dict[int, _Task]] = defaultdict(dict)  # deployment -> tasks
        self.leaving: dict[Replica, _Task] = {}
        self.busy_until: dict[str, int] = defaultdict(int)  # GPU being cut or cleared
        self.history: dict[str, list[tuple[Replica | None, _Draft]]] = defaultdict(list)  # by GPU
        self.stopped_on: dict[str, list[tuple[Replica, _Draft]]] = defaultdict(list)  # by node
        self.raised: dict[str, list[_Draft]] = defaultdict(list)  # shifts that add capacity
        self.left: dict[str, str] = {}
        self.spoiled = False

    # --- what is known at the start

    def _task(self, move: Move) -> _Task:
        source = move.before
        if source is not None and not self.rooms.known(source):
            # Its node is gone and so is the replica; the step only takes it off the books.
            self._draft("stop", source, 0, "its GPU is no longer in the fleet", [])
            source = None
        return _Task(move, source, move.after, move.after)

    @property
    def _current(self) -> tuple[Replica, ...]:
        return self.problem.current.replicas if self.problem.current is not None else ()

    def _levels(self, replicas: Iterable[Replica]) -> dict[str, _Level]:
        """What each deployment serves by these replicas."""
        levels: dict[str, _Level] = defaultdict(_Level)
        for replica in replicas:
            if self.rooms.known(replica):
                gain = self.matcher.capacity_mrps(replica)
                levels[replica.deployment] = levels[replica.deployment].shifted(gain, 1)
        return levels

    def floors_with(self, left: Iterable[str]) -> dict[str, _Level]:
        """The least each deployment must serve on the way: now, asked or at the end.

        The replicas ``left`` are at the end as they are now.
        """
        staying = frozenset(left)
        later = [r for r in self.placement.replicas if r.id not in staying]
        later += [r for r in self._current if r.id in staying]
        now, end = self._levels(self._current), self._levels(later)
        return {
            d.name: _Level(
                min(now[d.name].mrps, d.asked_mrps or 0, end[d.name].mrps),
                min(now[d.name].replicas, d.min_replicas, end[d.name].replicas),
            )
            for d in self.problem.deployments
        }

    # --- the simulation

    def play(self) -> None:
        """Run until every task is done or left."""
        self._rank()
        for task in self.tasks:
            if task.source is not None:
                self.leaving[task.source] = task
            if task.source is None and task.target is None:
                task.state = "done"
            else:
                self._enqueue(task)
        for task in self.tasks:
            self._try(task)
        while True:
            while self.events:
                self.now, _, kind, task = heapq.heappop(self.events)
                if kind == "serves":
                    self._serves(task)
                else:
                    self._stopped(task)
            if not self._unstick():
                self._stand(self.empties)
                return

    def _stand(self, empties: Iterable[Instance]) -> None:
        """Cut the instances that shall stand empty and do not yet."""
        for instance in empties:
            if instance.gpu not in self.rooms.gpus:
                continue
            like = Replica("", "", (instance.gpu,), instance.placed)
            if not self.rooms.blocked(like):
                self._prepare(like)

    def _rank(self) -> None:
        """Those whose place others want go first, then the longest loads."""
        wanted: set[Replica] = set()
        for task in self.tasks:
            if task.target is not None:
                blocked = self.rooms.blocked(task.target)
                wanted.update(blocked.every, *blocked.some)
        self.tasks.sort(
            key=lambda t: (t.source not in wanted, -t.move.load_mib, replica_order(t.name))
        )
        for rank, task in enumerate(self.tasks):
            task.rank = rank

    def _enqueue(self, task: _Task) -> None:
        """Wait for room, or, without a target, for the moment when its capacity can go."""
        if task.target is None:
            task.state = "draining"
            self.draining[task.deployment][task.rank] = task
            return
        task.state = "waiting"
        for node in self._watched(task.target):
            self.waiting_on[node][task.rank] = task

    def _watched(self, target: Replica) -> list[str]:
        """Nodes on which a stop may make room for the target."""
        deployment = self.matcher.deployments.get(target.deployment)
        if deployment is None or deployment.spread_rack is None:
            return list(target.nodes)
        racks = {self.rooms.nodes[n].rack_domain for n in target.nodes if n in self.rooms.nodes}
        return [n.name for n in self.problem.fleet.nodes if n.rack_domain in racks]

    def _try(self, task: _Task) -> None:
        """Take the next step if nothing stands in the way."""
        if task.state == "waiting" and task.target is not None:
            if not self.rooms.blocked(task.target):
                self._start(task, task.target)
        elif task.state == "draining" and task.source is not None:
            after = self._without(task.source)
            if after.carries(self._floor(task.source)):
                self._drain(task, task.source)

    def _floor(self, replica: Replica) -> _Level:
        return self.floors.get(replica.deployment, _Level())

    def _without(self, replica: Replica) -> _Level:
        return self.serving[replica.deployment].shifted(-self.matcher.capacity_mrps(replica), -1)

    def _start(self, task: _Task, target: Replica) -> None:
        for node in self._watched(target):
            self.waiting_on[node].pop(task.rank, None)
        task.state, task.begun = "running", True
        before = self._stops_before(target)
        ready, made = self._prepare(target)
        load_mib = self.matcher.load_mib(target)
        nodes = target.nodes
        begin = max([ready, *(min(self.loads[n]) for n in nodes)])
        seconds = START_S + ceil_div(load_mib, LOAD_MIB_PER_S)
        for node in nodes:
            slots = self.loads[node]
            slots[slots.index(min(slots))] = begin + seconds
        because = task.move.reason
        if target is not task.final:
            because = "a stop on its way: the moves wait for each other in a circle"
        start = self._draft("start", target, begin, because, [*before, *made], seconds)
        _follow(start, task.last)
        end = begin + seconds
        shift = self._draft("shift_traffic", target, end, "it is up", [start])
        task.last = shift
        self.rooms.take(target)
        self._at(end + SECONDS["shift_traffic"], "serves", task)

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
        table = self.rooms.gpus[target.gpus[0]].gpu.gpu.mig
        return table is None or bool(table.faults((gone.mig, target.mig)))

    def _tight(self, node: str, target: Replica) -> bool:
        """Whether room on that node's host, or closeness, may have kept the target waiting."""
        asked = self.matcher.deployments.get(target.deployment)
        if asked is None or not self.stopped_on[node]:
            return False
        machine = self.rooms.nodes[node]
        host = machine.cpu_millicores is not None or machine.host_memory_mib is not None
        needs = asked.host_cpu_millicores or asked.host_memory_mib
        close = asked.spread_node is not None or asked.spread_rack is not None
        apart = any(self.rooms.node_strangers(r, target) for r, _ in self.stopped_on[node])
        return bool(host and needs) or close or apart

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
        self.leaving.pop(source, None)
        if task.broke:
            task.source, task.broke = None, False
            self._enqueue(task)
            self._try(task)
        else:
            self._arrived(task)
        for node in source.nodes:
            for _, waiting in sorted(self.waiting_on[node].items()):
                self._try(waiting)

    def _arrived(self, task: _Task) -> None:
        """At its end, or at a stop on its way, from where it goes on."""
        if task.target is task.final:
            task.state = "done"
            return
        task.source, task.target = task.target, task.final
        if task.source is not None:
            self.leaving[task.source] = task
        self._enqueue(task)
        self._try(task)

    def _at(self, time: int, kind: str, task: _Task) -> None:
        heapq.heappush(self.events, (time, len(self.drafts), kind, task))

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

    def _unstick(self) -> bool:
        """When nothing moves: break a circle or leave a move out; false when all is done."""
        pending = [t for t in self.tasks if t.state in ("waiting", "draining")]
        for task in pending:
            if self._hopeless(task):
                self._leave(task, self._why_hopeless(task))
                return True
        if not pending:
            return False
        circles = self._circles(pending)
        for circle in circles:
            if any(self._detour(t) for t in circle):
                return True
        for circle in circles:
            if any(self._break(t) for t in circle):
                return True
        self._leave_circle(circles[0])
        return True

    def _leave_circle(self, circle: list[_Task]) -> None:
        why = "no free place to start its new copy first, and no capacity to spare"
        if len(circle) > 1:
            names = " and ".join(t.name for t in sorted(circle, key=lambda t: t.rank))
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
        return [[self.leaving[r] for r in group if r in self.leaving] for group in groups]

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
        self.draining[task.deployment].pop(task.rank, None)
        if task.target is not None:
            for node in self._watched(task.target):
                self.waiting_on[node].pop(task.rank, None)
        if task.source is not None:
            self.leaving.pop(task.source, None)

    def _detour(self, task: _Task) -> bool:
        """Start it at a free place first, where it is in nobody's way."""
        source = task.source
        if source is None or task.begun or task.target is not task.final:
            return False
        product = self.matcher.product(source)
        candidate = self.matcher.candidate(source)
        if product is None or candidate is None:
            return False
        for place in places(self.problem.fleet, self.rooms, source, product):
            if not self.ends.blocked(place):
                self._dequeue(task)
                task.target = place
                self._start(task, place)
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

    def steps(self) -> tuple[Step, ...]:
        """The drafts by start time, numbered."""
        listed = sorted(enumerate(self.drafts), key=lambda item: (item[1].start_s, item[0]))
        ids = {id(d): f"s{n:04d}" for n, (_, d) in enumerate(listed, 1)}
        return tuple(
            Step(
                ids[id(d)],
                d.action,
                d.gpus,
                d.replica,
                tuple(sorted({ids[id(a)] for a in d.after})),
                d.start_s,
                d.seconds,
                d.because,
                d.placed,
                d.enable,
            )
            for _, d in listed
        )


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
