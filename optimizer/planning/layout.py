"""MIG layouts before and after: which instances stand, which must be created or destroyed."""

from collections.abc import Iterable, Mapping

from optimizer.domain.gpu import Gpu, MigTable, PlacedProfile
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.verify.facts import Ground
from optimizer.verify.recount import standing_today

Layouts = dict[str, tuple[PlacedProfile, ...]]


def layouts_of(placement: Placement) -> Layouts:
    """Every MIG instance that a placement names, held or empty, by GPU id; sorted by start."""
    found: dict[str, set[PlacedProfile]] = {}
    for replica in placement.replicas:
        if replica.mig is not None:
            found.setdefault(replica.gpus[0], set()).add(replica.mig)
    for instance in placement.instances:
        found.setdefault(instance.gpu, set()).add(instance.placed)
    return {gpu: tuple(sorted(found[gpu])) for gpu in sorted(found)}


def standing(problem: PlacementProblem) -> Layouts:
    """The instances that stand now on GPUs of the fleet, counted as the judge counts them."""
    ground = Ground.of(problem)
    today = standing_today(ground, problem.current or Placement())
    return {gpu: tuple(sorted(today[gpu])) for gpu in sorted(today) if gpu in ground.gpus}


def legal(table: MigTable, layout: Iterable[PlacedProfile]) -> bool:
    """Whether these instances may stand together."""
    return not table.faults(tuple(layout))


def keep_beside(
    table: MigTable, wanted: Iterable[PlacedProfile], empties: Iterable[PlacedProfile]
) -> tuple[PlacedProfile, ...]:
    """The empty instances that may stay beside the wanted ones, taken in order of start."""
    held = list(wanted)
    kept: list[PlacedProfile] = []
    for empty in sorted(empties):
        if empty in held:
            continue
        if legal(table, [*held, *kept, empty]):
            kept.append(empty)
    return tuple(kept)


def layouts_after(
    problem: PlacementProblem, placement: Placement, now: Layouts | None = None
) -> Layouts:
    """Every instance that stands once the placement is carried out, the untouched empties included.

    A GPU used whole or shared has none. ``now``: those that stand today, if counted already.
    """
    now = standing(problem) if now is None else now
    wanted = layouts_of(placement)
    plain = {g for r in placement.replicas if r.mig is None for g in r.gpus}
    after: Layouts = {}
    for gpu in problem.fleet.gpus():
        table = gpu.gpu.mig
        if table is None or gpu.id in plain:
            continue
        want = wanted.get(gpu.id, ())
        stand = tuple(sorted({*want, *keep_beside(table, want, now.get(gpu.id, ()))}))
        if stand:
            after[gpu.id] = stand
    return after


def changed(before: Mapping[str, tuple[PlacedProfile, ...]], after: Layouts) -> tuple[str, ...]:
    """GPUs on which an instance is created or destroyed, sorted."""
    every = sorted({*before, *after})
    return tuple(g for g in every if before.get(g, ()) != after.get(g, ()))


def slices_of(gpu: Gpu, placed: PlacedProfile) -> int:
    """Memory slices that the instance takes on that product; 0 when it has no such profile."""
    profile = None if gpu.mig is None else gpu.mig.profile(placed.profile)
    return 0 if profile is None else profile.memory_slices
