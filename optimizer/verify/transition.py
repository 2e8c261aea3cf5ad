"""Replay: the steps of a plan played one by one, every state in between looked at."""

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.plan import Step
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.verify.facts import Facts, Ground, Violation
from optimizer.verify.recount import standing_today
from optimizer.verify.rules import Rule, anti_affinity, host_cpu, host_memory, isolation
from optimizer.verify.slots import layout_faults

# Rules that the copies running at one moment must keep, the old and the new one of a move alike,
# and the deployments that have a say in them.
NEIGHBOURS: tuple[tuple[Rule, Callable[[Deployment], object]], ...] = (
    (isolation, lambda d: d.isolate != "none"),
    (anti_affinity, lambda d: d.avoid),
    (host_cpu, lambda d: d.host_cpu_millicores),
    (host_memory, lambda d: d.host_memory_mib),
)


def replay(
    problem: PlacementProblem,
    before: Placement,
    steps: Sequence[Step],
    after: Placement,
    *,
    left: Sequence[str] = (),
) -> tuple[Violation, ...]:
    """Every fault of a transition from ``before`` to ``after``, sorted.

    Steps begin in order of start, then id, and end ``seconds`` later. What a step takes is taken
    when it begins, what it frees is free when it ends. Instances are created in free legal room
    and destroyed empty; replicas start on an instance that is ready, on free GPUs or in free
    shares, beside nobody they must not meet and on hosts with room for them; no deployment serves
    less than it does before, asks, or does after, whichever is least; a step begins when those it
    comes after have ended; at the end everything is as ``after`` says, but for the replicas
    ``left`` as they were.
    """
    return tuple(sorted(set(_Stage(problem, before, after, left).play(steps))))


@dataclass(slots=True)
class _Copy:
    """One running copy of a replica; on the way an old and a new one may run side by side."""

    replica: Replica
    capacity: int
    serving: bool = True


class _Stage:
    """The fleet while steps are carried out."""

    def __init__(
        self,
        problem: PlacementProblem,
        before: Placement,
        after: Placement,
        left: Sequence[str],
    ) -> None:
        self.ground = Ground.of(problem)
        self.before = {r.id: r for r in before.replicas}
        self.after = {r.id: r for r in after.replicas}
        self.kept_empty = after.instances
        self.left = frozenset(left)
        asked = problem.deployments
        self.neighbour_rules = [rule for rule, has_say in NEIGHBOURS if any(map(has_say, asked))]
        self.standing = standing_today(self.ground, before)
        self.ready = {gpu: set(placed) for gpu, placed in self.standing.items()}
        self.mig_mode = {g.id: g.device.mig_enabled for g in self.ground.gpus.values()}
        self.copies: dict[str, list[_Copy]] = {}
        self.on_gpu: dict[str, list[_Copy]] = {}
        self.serving: Counter[str] = Counter()
        for replica in before.replicas:
            self._add(_Copy(replica, self._capacity(replica)))
        self.floors = self._floors()
        self.ending: list[tuple[int, int, Step, Callable[[], None]]] = []
        self.ended: set[str] = set()
        self.begun = 0

    def play(self, steps: Sequence[Step]) -> Iterator[Violation]:
        """Begin the steps in order; yield what is wrong with each, and with the end."""
        in_order = sorted(steps, key=lambda s: (s.start_s, _natural(s.id)))
        for now, group in groupby(in_order, key=lambda s: s.start_s):
            waiting = list(group)
            while waiting:
                self._end_until(now)
                # Steps that take no time may follow each other within one second.
                free = (i for i, s in enumerate(waiting) if self.ended.issuperset(s.after))
                step = waiting.pop(next(free, 0))
                yield from self._order_faults(step)
                yield from self._begin(step)
        self._end_until(None)
        yield from self._arrival()

    def _order_faults(self, step: Step) -> Iterator[Violation]:
        for name in step.after:
            if name not in self.ended:
                said = f"begins at {step.start_s} s, {name} has not ended"
                yield Violation("step_order", step.id, said)

    def _end_until(self, now: int | None) -> None:
        while self.ending and (now is None or self.ending[0][0] <= now):
            _, _, step, end = heapq.heappop(self.ending)
            end()
            self.ended.add(step.id)

    def _begin(self, step: Step) -> Iterator[Violation]:
        acts = {
            "create_instance": self._create,
            "destroy_instance": self._destroy,
            "set_mig_mode": self._switch,
            "start": self._start,
            "shift_traffic": self._shift,
            "drain": self._drain,
            "stop": self._stop,
        }
        end: list[Callable[[], None]] = []
        act = acts.get(step.action)
        unknown = [gpu for gpu in step.gpus if gpu not in self.ground.gpus]
        if act is None:
            yield Violation("step_order", step.id, f"nobody knows the action {step.action}")
        elif unknown and step.action not in ("stop", "drain", "shift_traffic"):
            yield Violation("identity", step.id, f"no GPU {unknown[0]}")
        else:
            yield from act(step, end)
        done = end[0] if end else _nothing
        self.begun += 1
        heapq.heappush(self.ending, (step.start_s + step.seconds, self.begun, step, done))

    def _create(self, step: Step, end: list[Callable[[], None]]) -> Iterator[Violation]:
        if step.placed is None or len(step.gpus) != 1:
            yield Violation("slot_legality", step.id, "names no place for the instance")
            return
        id, placed = step.gpus[0], step.placed
        for copy in self.on_gpu.get(id, []):
            if copy.replica.mig is None:
                said = f"{step.id}: {_say(placed)} is created while {copy.replica.id} uses the GPU"
                yield Violation("slot_legality", id, said)
        if self.mig_mode.get(id) is False:
            yield Violation("slot_legality", id, f"{step.id}: MIG mode is off")
        standing = self.standing.setdefault(id, set())
        for fault in layout_faults(self.ground.gpus[id].gpu, sorted([*standing, placed])):
            yield Violation("slot_legality", id, f"{step.id}: {_say(placed)} is created: {fault}")
        if placed in standing:
            yield Violation("slot_legality", id, f"{step.id}: {_say(placed)} stands already")
        standing.add(placed)
        end.append(lambda: self.ready.setdefault(id, set()).add(placed))

    def _destroy(self, step: Step, end: list[Callable[[], None]]) -> Iterator[Violation]:
        if step.placed is None or len(step.gpus) != 1:
            yield Violation("slot_legality", step.id, "names no instance")
            return
        id, placed = step.gpus[0], step.placed
        if placed not in self.ready.get(id, set()):
            said = f"{step.id}: {_say(placed)} is destroyed and does not stand"
            yield Violation("slot_legality", id, said)
        for copy in self.on_gpu.get(id, []):
            if copy.replica.mig == placed:
                said = f"{step.id}: {_say(placed)} is destroyed under {copy.replica.id}"
                yield Violation("slot_legality", id, said)
        self.ready.get(id, set()).discard(placed)
        end.append(lambda: self.standing.get(id, set()).discard(placed))

    def _switch(self, step: Step, end: list[Callable[[], None]]) -> Iterator[Violation]:
        for id in step.gpus:
            names = [copy.replica.id for copy in self.on_gpu.get(id, [])]
            if names:
                said = f"{step.id}: MIG mode is switched under {', '.join(names)}"
                yield Violation("slot_legality", id, said)
            if not step.enable and self.standing.get(id):
                said = (
                    f"{step.id}: MIG mode is switched off with {len(self.standing[id])} instances"
                )
                yield Violation("slot_legality", id, said)

        def switched() -> None:
            self.mig_mode.update(dict.fromkeys(step.gpus, step.enable))

        end.append(switched)

    def _start(self, step: Step, end: list[Callable[[], None]]) -> Iterator[Violation]:
        replica = self._started(step)
        if replica is None:
            yield Violation("identity", step.id, f"starts {step.replica}, which nobody knows")
            return
        for id in replica.gpus:
            gpu = self.ground.gpus[id]
            if gpu.cordoned:
                yield Violation("cordon", replica.id, f"{step.id}: starts on {id}, cordoned")
            for fault in self._no_room(gpu, replica):
                rule = "device_memory" if replica.share and "shares" in fault else "slot_legality"
                yield Violation(rule, id, f"{step.id}: {replica.id} starts, {fault}")
        yield from self._new_neighbours(step, replica)
        copy = _Copy(replica, self._capacity(replica), serving=False)
        self._add(copy)
        end.append(lambda: self._serve(copy))

    def _new_neighbours(self, step: Step, replica: Replica) -> Iterator[Violation]:
        """Rules about who runs beside whom that the new copy breaks and were not broken before."""
        if not self.neighbour_rules:
            return
        nodes = self.ground.run(replica).nodes
        gpus = [f"{node.name}/{index}" for node in nodes for index in range(node.gpus)]
        copies = {id(c): c.replica for gpu in gpus for c in self.on_gpu.get(gpu, [])}
        before = Facts.on(self.ground, Placement(tuple(copies.values())))
        after = Facts.on(self.ground, Placement((*copies.values(), replica)))
        for rule in self.neighbour_rules:
            for fault in sorted({*rule(after)} - {*rule(before)}):
                yield replace(fault, message=f"{step.id}: {fault.message}")

    def _started(self, step: Step) -> Replica | None:
        """The copy that the step starts: as it will run, or for a while elsewhere as it ran."""
        target, old = self.after.get(step.replica or ""), self.before.get(step.replica or "")
        here = target is not None and sorted(target.gpus) == sorted(step.gpus)
        if target is not None and here and step.placed in (None, target.mig):
            return target
        origin = old or target
        return None if origin is None else replace(origin, gpus=step.gpus, mig=step.placed)

    def _no_room(self, gpu: FleetGpu, replica: Replica) -> Iterator[str]:
        here = self.on_gpu.get(gpu.id, [])
        if replica.mig is not None:
            if replica.mig not in self.ready.get(gpu.id, set()):
                yield f"{_say(replica.mig)} is not ready"
            for copy in here:
                if copy.replica.mig == replica.mig or copy.replica.mig is None:
                    yield f"{copy.replica.id} is there"
            return
        if self.standing.get(gpu.id):
            yield f"{len(self.standing[gpu.id])} MIG instances stand there"
        if self.mig_mode.get(gpu.id):
            yield "MIG mode is on"
        if replica.share is None:
            yield from (f"{copy.replica.id} is there" for copy in here)
            return
        yield from (f"{c.replica.id} is there" for c in here if c.replica.share is None)
        shares = [copy.replica.share for copy in here if copy.replica.share]
        taken = sum(shares, replica.share)
        if not taken.fits_in(gpu.gpu.room):
            yield f"the shares then take {_figures(taken)} of {_figures(gpu.gpu.room)}"

    def _shift(self, step: Step, end: list[Callable[[], None]]) -> Iterator[Violation]:
        copies = self.copies.get(step.replica or "", [])
        if not any(copy.serving for copy in copies):
            yield Violation("step_order", step.id, f"no copy of {step.replica} serves")

    def _drain(self, step: Step, end: list[Callable[[], None]]) -> Iterator[Violation]:
        copy = self._found(step)
        if copy is None:
            said = f"{step.replica} does not run on {', '.join(step.gpus)}"
            yield Violation("step_order", step.id, said)
        else:
            yield from self._cease(step, copy)

    def _stop(self, step: Step, end: list[Callable[[], None]]) -> Iterator[Violation]:
        copy = self._found(step)
        if copy is None:
            said = f"{step.replica} does not run on {', '.join(step.gpus)}"
            yield Violation("step_order", step.id, said)
            return
        yield from self._cease(step, copy)
        end.append(lambda: self._remove(copy))

    def _found(self, step: Step) -> _Copy | None:
        """The copy that a drain or stop names; the one that drained before one that serves."""
        copies = [
            copy
            for copy in self.copies.get(step.replica or "", [])
            if sorted(copy.replica.gpus) == sorted(step.gpus)
            and step.placed in (None, copy.replica.mig)
        ]
        return min(copies, key=lambda copy: copy.serving, default=None)

    def _cease(self, step: Step, copy: _Copy) -> Iterator[Violation]:
        if not copy.serving:
            return
        copy.serving = False
        name = copy.replica.deployment
        self.serving[name] -= copy.capacity
        if self.serving[name] < self.floors.get(name, 0):
            said = f"{step.id}: serves {self.serving[name]}, its floor is {self.floors[name]}"
            yield Violation("floor", name, said)

    def _serve(self, copy: _Copy) -> None:
        copy.serving = True
        self.serving[copy.replica.deployment] += copy.capacity

    def _add(self, copy: _Copy) -> None:
        self.copies.setdefault(copy.replica.id, []).append(copy)
        for gpu in copy.replica.gpus:
            self.on_gpu.setdefault(gpu, []).append(copy)
        if copy.serving:
            self.serving[copy.replica.deployment] += copy.capacity

    def _remove(self, copy: _Copy) -> None:
        # By identity: two copies of one replica may be equal while one replaces the other.
        for held in (self.copies[copy.replica.id], *(self.on_gpu[g] for g in copy.replica.gpus)):
            held[:] = [other for other in held if other is not copy]

    def _capacity(self, replica: Replica) -> int:
        """Rate in mrps, or one where demand counts replicas."""
        running = self.ground.run(replica)
        counted = running.deployment is None or running.deployment.demand is None
        return 1 if counted and running.devices else running.capacity_mrps

    def _floors(self) -> dict[str, int]:
        """What each deployment must serve all the way: the least of now, asked, and at the end."""
        later: Counter[str] = Counter()
        for replica in self._goal().values():
            later[replica.deployment] += self._capacity(replica)
        floors = {}
        for name, deployment in self.ground.deployments.items():
            asked = deployment.asked_mrps
            wanted = deployment.min_replicas if asked is None else asked
            floors[name] = min(self.serving[name], wanted, later[name])
        return floors

    def _goal(self) -> dict[str, Replica]:
        """What should run at the end, by id."""
        goal = {id: replica for id, replica in self.after.items() if id not in self.left}
        goal.update({id: self.before[id] for id in sorted(self.left) if id in self.before})
        return goal

    def _arrival(self) -> Iterator[Violation]:
        goal = self._goal()
        for id in sorted({*goal, *self.copies}):
            places = [_place(copy.replica) for copy in self.copies.get(id, [])]
            wanted = [_place(goal[id])] if id in goal else []
            if places != wanted:
                said = f"ends on {places or 'nothing'}, planned on {wanted or 'nothing'}"
                yield Violation("arrival", id, said)
        if self.left:
            return  # what was left standing may be in the way of empty instances
        for instance in self.kept_empty:
            if instance.placed not in self.standing.get(instance.gpu, set()):
                said = f"{_say(instance.placed)} should stand empty at the end"
                yield Violation("arrival", instance.gpu, said)


def _nothing() -> None:
    """What a step does at its end when all of it was done at its beginning."""


def _place(replica: Replica) -> str:
    where = ",".join(sorted(replica.gpus))
    if replica.mig is not None:
        return f"{where} {_say(replica.mig)}"
    return f"{where} {_figures(replica.share)}" if replica.share else f"{where} {Sharing.WHOLE}"


def _say(placed: PlacedProfile) -> str:
    return f"{placed.profile}@{placed.start}"


def _figures(use: Use) -> str:
    return f"{use.memory_mib} MiB, {use.bandwidth_mbs} MB/s, {use.compute_ppm} ppm"


def _natural(id: str) -> tuple[tuple[bool, int, str], ...]:
    """s2 before s10."""
    parts = re.findall(r"\d+|\D+", id)
    return tuple((not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in parts)
