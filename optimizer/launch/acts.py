"""The steps of a rebalancing plan as acts on copies, and what undoes them.

A start makes a copy of the next generation; a drain and a stop are of the oldest copy that is
left; traffic shifts to the newest. Undoing plays the acts that were done backwards, each as its
opposite: every stand on the way is one that the plan passed, so rooms and floors hold again.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.domain.placement import Replica
from optimizer.domain.plan import Plan, Step
from optimizer.launch.journal import Act, Entry, Generations, StepState
from optimizer.launch.values import LaunchRefused, ReplicaSpec

OPPOSITE = {
    "create_instance": "destroy_instance",
    "destroy_instance": "create_instance",
    "set_mig_mode": "set_mig_mode",
    "start": "stop",
    "stop": "start",
    "shift_traffic": "drain",
    "drain": "shift_traffic",
}
LAYOUT = ("create_instance", "destroy_instance", "set_mig_mode")


@dataclass(frozen=True, slots=True)
class Script:
    """Acts in a valid order, the replicas as their new copies run, and who serves at the end.

    ``new``: by replica and generation.
    """

    acts: tuple[Act, ...]
    new: Mapping[tuple[str, int], Replica]
    goal: Generations


def rebalances(plan: Plan) -> bool:
    """Whether the plan goes by steps from what runs; else it starts all that it places.

    One that only adds to what runs goes by steps too: what runs stays as it was started.
    """
    new = {move.replica for move in plan.moves if move.before is None}
    added = any(replica.id not in new for replica in plan.placement.replicas)
    return bool(plan.steps) and (added or any(move.before is not None for move in plan.moves))


def digest(plan: Plan) -> str:
    """What is equal for two readings of one plan."""
    said = repr((plan.fleet, plan.placement, plan.moves, plan.steps))
    return hashlib.sha256(said.encode()).hexdigest()


def script(plan: Plan, serving: Generations, last: Generations) -> Script:
    """The plan's steps as acts; ``serving`` now, ``last`` the highest generations there were.

    Raises LaunchRefused for steps that do not fit together.
    """
    moves = {move.replica: move for move in plan.moves}
    alive = {replica: [generation] for replica, generation in serving.items()}
    latest = dict(last)
    new: dict[tuple[str, int], Replica] = {}
    acts, reasons = [], []
    for step in plan.steps:
        if step.replica is None:
            acts.append(_act(step, 0))
            continue
        copies = alive.setdefault(step.replica, [])
        move = moves.get(step.replica)
        if step.action == "start" and move is not None:
            generation = latest.get(step.replica, -1) + 1
            latest[step.replica] = generation
            copies.append(generation)
            new[step.replica, generation] = as_started(step, move.before, move.after)
        elif move is None or not copies:
            reasons.append(f"step {step.id}: {step.action} {step.replica}: nothing to do it to")
            continue
        else:
            generation = copies[-1] if step.action == "shift_traffic" else copies[0]
        if step.action == "stop":
            copies.remove(generation)
        acts.append(_act(step, generation))
    reasons += [
        f"{name}: the plan's steps leave {len(copies)} copies of it"
        for name, copies in alive.items()
        if len(copies) > 1
    ]
    if reasons:
        raise LaunchRefused(*reasons)
    goal = {replica: copies[0] for replica, copies in alive.items() if copies}
    return Script(tuple(acts), new, goal)


def as_started(step: Step, before: Replica | None, after: Replica | None) -> Replica:
    """The replica as that step starts it: as it ends, or as before at a temporary place.

    Raises LaunchRefused for a start without either.
    """
    if after is not None and (after.gpus, after.mig) == (step.gpus, step.placed):
        return after
    if before is None:
        raise LaunchRefused(f"step {step.id} starts {step.replica} where its move does not end")
    return replace(before, gpus=step.gpus, mig=step.placed)


def _act(step: Step, generation: int) -> Act:
    return Act(
        step.id,
        step.action,
        step.gpus,
        step.after,
        step.replica,
        generation,
        step.placed,
        step.enable,
        step.because,
    )


def undoing(
    entries: Sequence[Entry], specs: Mapping[tuple[str, int], ReplicaSpec], last: Generations
) -> tuple[tuple[Act, ...], tuple[ReplicaSpec, ...]]:
    """Acts that undo what was begun, and the specs of the copies that they start.

    Whatever was stopped, or half stopped, comes back as a copy of a new generation.
    """
    begun = [entry for entry in entries if entry.state is not StepState.WAITING]
    again = _again(begun, last)
    needed_by: dict[str, list[str]] = {}
    for entry in begun:
        for name in entry.act.after:
            needed_by.setdefault(name, []).append(entry.act.id)
    acts: list[Act] = []
    for entry in reversed(begun):
        act = entry.act
        after = tuple(f"undo-{name}" for name in needed_by.get(act.id, ()))
        key = (act.replica or "", act.generation)
        if act.action == "stop" and entry.state is not StepState.DONE:
            # Maybe it runs no more, maybe it still does: it goes for good before it comes again.
            acts.append(replace(act, id=f"end-{act.id}", after=after))
            after = (f"end-{act.id}",)
        generation = again.get(key, act.generation)
        acts.append(
            replace(
                act,
                id=f"undo-{act.id}",
                action=OPPOSITE[act.action],
                after=after,
                generation=generation,
                enable=None if act.enable is None else not act.enable,
                because=f"undoes {act.id}",
            )
        )
    new = tuple(replace(specs[key], generation=number) for key, number in again.items())
    return tuple(acts), new


def _again(begun: Iterable[Entry], last: Generations) -> dict[tuple[str, int], int]:
    """New generations of the copies that were stopped."""
    latest, found = dict(last), {}
    for entry in begun:
        act = entry.act
        if act.action == "stop" and act.replica is not None:
            latest[act.replica] = latest.get(act.replica, -1) + 1
            found[act.replica, act.generation] = latest[act.replica]
    return found
