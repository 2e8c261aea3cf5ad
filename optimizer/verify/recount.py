"""The objectives, counted again from plain values."""

from collections import Counter
from dataclasses import dataclass

from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.verify.facts import Facts, Ground, current_replicas, mode, stays
from optimizer.verify.slots import stranded_slices

REPARTITION_MIB = 1024


@dataclass(frozen=True, slots=True)
class Score:
    """What a placement is worth; at every level less is better.

    ``unmet_ppm`` pairs each priority, highest first, with the missing shares of its deployments in
    millionths; ``price_micros`` is per hour; ``disruption_mib`` is None without a state.
    """

    unmet_ppm: tuple[tuple[int, int], ...]
    price_micros: int
    disruption_mib: int | None
    stranded_mib: int

    @property
    def levels(self) -> tuple[int, ...]:
        """The objectives but the tie-break, in order: of two placements the smaller is better."""
        return (*(ppm for _, ppm in self.unmet_ppm), self.price_micros, self.disruption_mib or 0)


@dataclass(frozen=True, slots=True)
class Missing:
    """What a deployment asks and does not get; ``ppm`` is missing over asked, rounded up."""

    mrps: int
    replicas: int
    ppm: int


def objectives(problem: PlacementProblem, placement: Placement) -> Score:
    """Count the objectives of a placement, from nothing but the problem and the placement."""
    return score(Facts.of(problem, placement))


def score(facts: Facts) -> Score:
    """The objectives of an indexed placement."""
    return Score(
        unmet_by_priority(facts),
        price_micros(facts),
        None if facts.problem.current is None else disruption_mib(facts),
        stranded_mib(facts),
    )


def missing(facts: Facts, deployment: Deployment) -> Missing:
    """What this placement leaves unserved of one deployment."""
    running = facts.replicas(deployment)
    fewest, asked = deployment.min_replicas, deployment.asked_mrps or 0
    replicas = max(0, fewest - len(running))
    mrps = max(0, asked - sum(one.capacity_mrps for one in running))
    shares = [(replicas, fewest), (mrps, asked)]
    # The larger of the two shares; one millionth more where the division leaves a rest.
    ppm = max((part * 1_000_000 + whole - 1) // whole if whole else 0 for part, whole in shares)
    return Missing(mrps, replicas, ppm)


def unmet_by_priority(facts: Facts) -> tuple[tuple[int, int], ...]:
    """Each priority, highest first, with the sum of its deployments' missing shares."""
    sums: Counter[int] = Counter()
    for deployment in facts.problem.deployments:
        sums[deployment.priority] += missing(facts, deployment).ppm
    return tuple(sorted(sums.items(), reverse=True))


def price_micros(facts: Facts) -> int:
    """Every GPU that holds a replica or room kept free, at its node's price.

    One unit each where nobody has a price.
    """
    fleet = facts.problem.fleet
    return sum(fleet.price_micros(facts.ground.gpus[id].node) for id in facts.used)


def disruption_mib(facts: Facts) -> int:
    """Weights that replicas which do not stay must load, plus 1 GiB for each GPU repartitioned.

    Weights of a deployment that asks to avoid it count eight times.
    """
    current = current_replicas(facts.problem)
    loads = sum(
        one.candidate.load_mib * (8 if one.deployment and one.deployment.disturb == "avoid" else 1)
        for one in facts.running
        if one.candidate is not None and not stays(one.replica, current)
    )
    return loads + REPARTITION_MIB * len(repartitioned(facts))


def repartitioned(facts: Facts) -> tuple[str, ...]:
    """GPUs on which a MIG instance must be created or destroyed, in fleet order.

    An instance that stands and is in nobody's way need not be destroyed; on a GPU used whole or
    shared none may stand.
    """
    today = standing_today(facts.ground, facts.problem.current or Placement())
    wanted = instances_by_gpu(facts.placement)

    def changes(id: str) -> bool:
        created = wanted.get(id, set()) - today.get(id, set())
        unsliced = mode(facts.on_gpu.get(id, [])) in (Sharing.WHOLE, Sharing.SHARED)
        return bool(created) or (unsliced and id in today)

    return tuple(id for id in facts.ground.gpus if changes(id))


def standing_today(ground: Ground, current: Placement) -> dict[str, set[PlacedProfile]]:
    """The instances that stand now: the state's, or the fleet's layout where it says nothing."""
    found = instances_by_gpu(current)
    mentioned = {*found, *(gpu for replica in current.replicas for gpu in replica.gpus)}
    for id, gpu in ground.gpus.items():
        if gpu.device.layout and id not in mentioned:
            found[id] = set(gpu.device.layout)
    return found


def instances_by_gpu(placement: Placement) -> dict[str, set[PlacedProfile]]:
    """The MIG instances of each GPU that has some, held by replicas or empty."""
    found: dict[str, set[PlacedProfile]] = {}
    for replica in placement.replicas:
        if replica.mig is not None:
            for gpu in replica.gpus:
                found.setdefault(gpu, set()).add(replica.mig)
    for instance in placement.instances:
        found.setdefault(instance.gpu, set()).add(instance.placed)
    return found


def stranded_mib(facts: Facts) -> int:
    """Free memory of used GPUs that is in pieces too small for half a GPU; MiB."""
    return sum(_stranded_on(facts, facts.ground.gpus[id]) for id in facts.used)


def _stranded_on(facts: Facts, gpu: FleetGpu) -> int:
    running = facts.on_gpu.get(gpu.id, [])
    kept = [piece.mig for piece in facts.kept.get(gpu.id, []) if piece.mig]
    usable = gpu.gpu.room.memory_mib
    used = Sharing.MIG if kept else mode(running)
    if used is Sharing.SHARED:
        free = usable - sum(r.replica.share.memory_mib for r in running if r.replica.share)
        return free if 0 < 2 * free < usable else 0
    if used is Sharing.MIG and gpu.gpu.mig is not None:
        held = sorted([*kept, *(r.replica.mig for r in running if r.replica.mig)])
        return stranded_slices(gpu.gpu, held) * usable // gpu.gpu.mig.memory_slices
    return 0
