"""Carries out the acts of an undertaking, in any order that their dependencies allow.

Each act's intent is in the journal before it begins and its end after it is done; every act may be
begun again after a kill, and then finds what is done already. An act that fails holds up those that
need it and no others: what was done is then always a beginning of some valid order, so rooms and
floors hold.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.domain.placement import node_of
from optimizer.domain.words import plural
from optimizer.launch import actor, cluster
from optimizer.launch.acts import LAYOUT
from optimizer.launch.instances import Going, Instances, check_idle
from optimizer.launch.journal import (
    DONE,
    FAILED,
    RUNNING,
    Act,
    CopyState,
    Journal,
    StepState,
    Undertaking,
)
from optimizer.launch.session import NAMESPACE
from optimizer.launch.traffic import table_of
from optimizer.launch.values import (
    SIMULATED,
    Event,
    Failure,
    LayoutRefused,
    ReplicaSpec,
    Row,
    State,
    copy_name,
)

LOOK_EVERY_S = 0.1
# An engine that ended so often without ever serving will not begin to.
GIVE_UP_RESTARTS = 3
# How long requests in flight may take to end before a copy is stopped all the same.
DRAIN_S = 120.0
# Beyond an engine's grace, for its actor to answer.
END_EXTRA_S = 10.0


class StepFailed(Exception):
    """A step cannot be done, why, and the last lines of the engine's log."""

    def __init__(self, reason: str, log: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.log = tuple(log)


@dataclass(slots=True)
class _Work:
    act: Act
    going: Going
    end_at: float
    waits_for: str = "not begun"


class Steps:
    """One undertaking at work on a connected cluster."""

    def __init__(
        self,
        ray: Any,
        journal: Journal,
        undertaking: Undertaking,
        instances: Instances,
        tell: Callable[[Event], None],
        step_s: float,
        router: Any = None,
    ) -> None:
        """``step_s``: the deadline of each step, in seconds; ``router``: the run's, if any."""
        self._ray, self._journal, self._undertaking = ray, journal, undertaking
        self._instances, self._tell, self._step_s = instances, tell, step_s
        self._router = router
        self._copies = {(c.spec.id, c.spec.generation): c for c in journal.copies()}
        self._states = {key: copy.state for key, copy in self._copies.items()}
        self._done: set[str] = set()
        self._loading: dict[str, frozenset[str]] = {}  # actor -> GPUs on which its engine starts
        self.failed: list[Failure] = []

    def carry_out(self) -> tuple[str, ...]:
        """Do all that is not done; the steps that could not begin because others failed."""
        entries = self._journal.entries(self._undertaking.id)
        self._journal.close(self._undertaking.id, RUNNING)
        self._done = {e.act.id for e in entries if e.state is StepState.DONE}
        waiting = [e.act for e in entries if e.state is not StepState.DONE]
        work: dict[str, _Work] = {}
        while True:
            waiting = self._begin_free(waiting, work)
            if not work:
                break
            for name, one in list(work.items()):
                if self._over(one):
                    del work[name]
                    if one.act.action == "start":
                        self._loading.pop(self._spec(one.act).actor_name, None)
            time.sleep(LOOK_EVERY_S)
        self._journal.close(self._undertaking.id, FAILED if waiting or self.failed else DONE)
        return tuple(act.id for act in waiting)

    def _begin_free(self, waiting: Sequence[Act], work: dict[str, _Work]) -> list[Act]:
        later = []
        for act in waiting:
            if not self._done.issuperset(act.after):
                later.append(act)
                continue
            self._journal.mark(self._undertaking.id, act.id, StepState.INTENT)
            self._say(act, act.action, f"step {act.id} on {', '.join(act.gpus)}")
            work[act.id] = _Work(act, self._going(act), time.monotonic() + self._step_s)
        return later

    def _over(self, one: _Work) -> bool:
        """Let an act go on; whether it is done or has failed."""
        try:
            one.waits_for = next(one.going)
        except StopIteration:
            self._journal.mark(self._undertaking.id, one.act.id, StepState.DONE)
            self._done.add(one.act.id)
            return True
        except StepFailed as failed:
            self._fail(one.act, str(failed), failed.log)
            return True
        if time.monotonic() <= one.end_at:
            return False
        one.going.close()
        reason = f"not done within {self._step_s:g} s: {one.waits_for}"
        self._fail(one.act, reason, self._tail(one.act) if one.act.action == "start" else ())
        return True

    def _fail(self, act: Act, reason: str, log: Sequence[str]) -> None:
        if act.action == "start":
            self._end_failed(self._spec(act))
        reason += cluster.away(self._ray, map(node_of, act.gpus))
        self._journal.mark(self._undertaking.id, act.id, StepState.FAILED, reason, log)
        subject = act.replica or act.gpus[0]
        self.failed.append(Failure(subject, reason, tuple(log), act.id))
        self._say(act, "failed", f"step {act.id}, {act.action}: {reason}")

    def _going(self, act: Act) -> Going:
        if act.action in LAYOUT:
            return self._layout(act)
        by_action = {
            "start": self._start,
            "shift_traffic": self._shift,
            "drain": self._drain,
            "stop": self._stop,
        }
        return by_action[act.action](self._spec(act))

    # --- the acts

    def _layout(self, act: Act) -> Going:
        [gpu] = act.gpus
        try:
            if act.action == "set_mig_mode":
                check_idle(self._journal, gpu, None)
                yield from self._instances.set_mode(gpu, bool(act.enable))
                return
            assert act.placed is not None
            if act.action == "create_instance":
                yield from self._instances.create(gpu, act.placed)
                return
            check_idle(self._journal, gpu, act.placed)
            yield from self._instances.destroy(gpu, act.placed)
        except LayoutRefused as refused:
            raise StepFailed(str(refused)) from None

    def _start(self, spec: ReplicaSpec) -> Going:
        handle = self._handle(spec)
        gpus = frozenset(d.partition(":")[0] for d in spec.devices)
        while handle is None and spec.engine != SIMULATED and self._is_loading(spec, gpus):
            yield "other engines start on its GPU"
        self._set(spec, CopyState.STARTING)
        if handle is None:
            handle = actor.start(self._ray, spec)
        there = yield from self._answer(handle.spec, "Ray has not started its actor")
        if there.run != spec.run:
            raise StepFailed(f"an actor {spec.actor_name} of another launch runs")
        while True:
            row: Row = yield from self._answer(handle.report, "its actor does not answer")
            if row["state"] == State.READY:
                return
            if row["restarts"] >= GIVE_UP_RESTARTS and not row["ever_ready"]:
                tail = yield from self._answer(handle.tail, "its actor does not answer")
                why = f"never ready in {row['restarts']} starts: {row['last_end']}"
                raise StepFailed(why, tail)
            yield _standing(row)

    def _is_loading(self, spec: ReplicaSpec, gpus: frozenset[str]) -> bool:
        """Engines on one GPU start one after another: each measures the memory that is free."""
        if any(gpus & held for name, held in self._loading.items() if name != spec.actor_name):
            return True
        self._loading[spec.actor_name] = gpus
        return False

    def _shift(self, spec: ReplicaSpec) -> Going:
        yield from self._until_ready(spec)
        self._set(spec, CopyState.SERVING)
        while spec.actor_name not in (yield from self._route(spec)):
            yield f"the router does not reach {spec.copy_name}"

    def _route(self, spec: ReplicaSpec) -> Generator[str, None, Sequence[str]]:
        """Send traffic to whoever serves now; the copies that the router reaches."""
        if self._router is None:
            return (spec.actor_name,)
        told = False
        while not told:
            table = table_of(replace(c, state=self._states[k]) for k, c in self._copies.items())
            try:
                reached: Sequence[str] = yield from self._answer(
                    self._router.serve, "the router does not answer", table
                )
                told = True
            except StepFailed:
                yield "the router starts anew"
        return reached

    def _until_ready(self, spec: ReplicaSpec) -> Going:
        while True:
            handle = self._handle(spec)
            if handle is None:
                raise StepFailed(f"the actor of {spec.copy_name} is gone")
            row: Row = yield from self._answer(handle.report, f"{spec.copy_name} does not answer")
            if row["state"] == State.READY:
                return
            yield f"{spec.copy_name} is {_standing(row)}"

    def _drain(self, spec: ReplicaSpec) -> Going:
        """Take it out of traffic once all others of its deployment that serve do so indeed, and
        wait for its requests in flight. One that does not serve itself is nobody's loss."""
        serving = self._states[spec.id, spec.generation] is CopyState.SERVING
        if serving and (yield from self._serves(spec)):
            for other in self._others(spec):
                while self._is_meant_to_serve(other) and not (yield from self._serves(other)):
                    yield f"{other.copy_name} does not serve"
        self._set(spec, CopyState.DRAINING)
        yield from self._route(spec)
        end_at = time.monotonic() + min(DRAIN_S, self._step_s / 2)
        while time.monotonic() < end_at and (left := (yield from self._in_flight(spec))):
            yield f"{plural(left, 'request')} in flight"

    def _in_flight(self, spec: ReplicaSpec) -> Generator[str, None, int]:
        """Requests on their way in the engine or to it; 0 where nobody tells."""
        handle = self._handle(spec)
        if handle is None:
            return 0
        left = yield from self._ask(handle.in_flight)
        if self._router is not None:
            left = left or (yield from self._ask(self._router.in_flight, spec.actor_name))
        return int(left or 0)

    def _serves(self, spec: ReplicaSpec) -> Generator[str, None, bool]:
        handle = self._handle(spec)
        row = None if handle is None else (yield from self._ask(handle.report))
        return row is not None and row["state"] == State.READY

    def _is_meant_to_serve(self, spec: ReplicaSpec) -> bool:
        return self._states[spec.id, spec.generation] is CopyState.SERVING

    def _others(self, spec: ReplicaSpec) -> list[ReplicaSpec]:
        return [
            copy.spec
            for key, copy in self._copies.items()
            if self._states[key] is CopyState.SERVING
            and copy.spec.deployment == spec.deployment
            and copy.spec.copy_name != spec.copy_name
        ]

    def _stop(self, spec: ReplicaSpec) -> Going:
        handle = self._handle(spec)
        if handle is not None:
            end_at = time.monotonic() + spec.patience.grace_s + END_EXTRA_S
            stopped = handle.stop.remote()
            while time.monotonic() < end_at and not self._there(stopped):
                yield "its engine ends"
        actor.end(self._ray, spec.actor_name, handle)
        while spec.actor_name in cluster.named(self._ray):
            yield "its actor ends"
        self._set(spec, CopyState.GONE)

    # --- what the acts stand on

    def _answer(self, method: Any, else_waits_for: str, *said: object) -> Generator[str, None, Any]:
        """What an actor answers, without holding up the other acts."""
        reference = method.remote(*said)
        while not self._there(reference):
            yield else_waits_for
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            raise StepFailed(f"its actor ended: {first}") from None

    def _ask(self, method: Any, *said: object) -> Generator[str, None, Any]:
        """As ``_answer``, but None from an actor that ended, or is silent as on a dead node."""
        reference, end_at = method.remote(*said), time.monotonic() + cluster.ANSWER_S
        while not self._there(reference):
            if time.monotonic() > end_at:
                return None
            yield "an actor does not answer"
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError:
            return None

    def _there(self, reference: Any) -> bool:
        done, _ = self._ray.wait([reference], timeout=0)
        return bool(done)

    def _handle(self, spec: ReplicaSpec) -> Any:
        try:
            return self._ray.get_actor(spec.actor_name, namespace=NAMESPACE)
        except ValueError:
            return None  # there is no such actor

    def _tail(self, act: Act) -> tuple[str, ...]:
        handle = self._handle(self._spec(act))
        if handle is None:
            return ()
        found = cluster.ask(self._ray, {act.id: handle.tail}, within_s=2.0)
        return tuple(found.get(act.id, ()))

    def _end_failed(self, spec: ReplicaSpec) -> None:
        """A copy that never served goes, so that nothing is left over."""
        handle = self._handle(spec)
        if handle is not None:
            cluster.ask(self._ray, {spec.id: handle.stop}, spec.patience.grace_s + END_EXTRA_S)
        actor.end(self._ray, spec.actor_name, handle)
        self._set(spec, CopyState.GONE)

    def _spec(self, act: Act) -> ReplicaSpec:
        assert act.replica is not None
        return self._copies[act.replica, act.generation].spec

    def _set(self, spec: ReplicaSpec, state: CopyState) -> None:
        self._journal.set_copy(spec.id, spec.generation, state)
        self._states[spec.id, spec.generation] = state

    def _say(self, act: Act, state: str, detail: str) -> None:
        named = act.gpus[0] if act.replica is None else copy_name(act.replica, act.generation)
        self._tell(Event(named, state, detail))


def _standing(row: Row) -> str:
    why = row["reason"] or row["last_end"]
    return f"{row['state']} ({why})" if why else str(row["state"])
