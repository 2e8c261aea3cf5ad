"""One more deployment beside what is planned: the cheapest room for it while nothing else moves.

GPUs with the same room left, on nodes that no rule tells apart, are one kind with a count, so the
program grows with the variety of the fleet and not with its size. Its optimum is exact.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ortools.sat.python import cp_model

from optimizer.domain.config import Candidate
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.workload import Deployment
from optimizer.solver.beside import Planned
from optimizer.solver.easing import ceilings
from optimizer.solver.newcomer import Program
from optimizer.solver.offers import least
from optimizer.solver.room import Found
from optimizer.solver.worth import worth_trying


@dataclass(frozen=True, slots=True)
class Admitted:
    """Where the deployment runs and what that adds to the price, or why it does not fit.

    ``exact``: nothing cheaper exists, or nothing at all, while what runs stays where it is.
    """

    replicas: tuple[Replica, ...]
    marginal_micros: int
    exact: bool
    reason: str | None = None


def admit(planned: Planned, new: Deployment, ways: Sequence[Candidate]) -> Admitted:
    """The cheapest room for the deployment, all of its demand served and every rule kept."""
    if any(other == new.name for names in planned.on_node.values() for other in names):
        raise ValueError(f"{new.name} runs already")
    program, status = _solved(planned, new, ways)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        seats = program.seats()
        replicas = tuple(
            Replica(
                f"{new.name}/{number}",
                new.name,
                seat.gpus,
                seat.mig,
                seat.candidate.shape.share,
                seat.candidate.config,
            )
            for number, seat in enumerate(seats)
        )
        return Admitted(replicas, program.price_micros(), status == cp_model.OPTIMAL)
    exact = status == cp_model.INFEASIBLE
    return Admitted((), 0, exact, _reason(planned, new, ways) if exact else "not settled in time")


def _solved(planned: Planned, new: Deployment, ways: Sequence[Candidate]) -> tuple[Program, Any]:
    """The cheapest room: where its least price is reached on a few nodes, there; else anywhere."""
    low = least(planned, new, ways)
    if isinstance(low, Found):
        few = Program(planned, new, ways, frozenset(low.names))
        if few.reaches(low):
            return few, cp_model.OPTIMAL
    if low is None:
        return Program(planned, new, ways, frozenset()), cp_model.INFEASIBLE
    program = Program(planned, new, ways, only=worth_trying(planned, new, ways))
    return program, program.solve()


RULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pin", {"pin": ()}),
    ("spread", {"spread_node": None, "spread_rack": None}),
    ("survive", {"survive": None}),
    ("isolation", {"isolate": "none"}),
    ("anti_affinity", {"avoid": ()}),
    ("affinity", {"near": ()}),
    ("replica_bounds", {"max_replicas": None}),
    ("host_cpu", {"host_cpu_millicores": 0}),
    ("host_memory", {"host_memory_mib": 0}),
)


def _reason(planned: Planned, new: Deployment, ways: Sequence[Candidate]) -> str:
    """A rule without which it would fit, or how much of it does."""
    if not ways:
        return "no way to run it fits a GPU of this fleet"
    for name, fields in RULES:
        eased = replace(new, **fields)
        if eased != new and fits(planned, eased, ways):
            return f"{name}: without it, it fits"
    for name, lifted, _ in ceilings(planned.problem):
        if fits(replace(planned, problem=lifted, states=[]), new, ways):
            return f"{name}: without it, it fits"
    most = Program(planned, new, ways).most()
    if new.asked_mrps:
        return f"room for {most / 1000:g} of {new.asked_mrps / 1000:g} requests per second is left"
    return f"room for {most} of {new.min_replicas} replicas is left"


def fits(planned: Planned, new: Deployment, ways: Sequence[Candidate]) -> bool:
    """Whether room for all of it was found, at any price."""
    if not ways:
        return False
    low = least(planned, new, ways)
    if isinstance(low, Found) and _fits(Program(planned, new, ways, frozenset(low.names))):
        return True
    return low is not None and _fits(
        Program(planned, new, ways, only=worth_trying(planned, new, ways))
    )


def _fits(program: Program) -> bool:
    return program.feasible()


def after(planned: Planned, admitted: Admitted) -> Placement:
    """The placement with the new replicas; empty instances in their way are gone."""
    before = planned.placement
    tables = {gpu.id: gpu.gpu.mig for gpu in planned.gpus}
    new: dict[str, list[Replica]] = defaultdict(list)
    for replica in admitted.replicas:
        for gpu in replica.gpus:
            new[gpu].append(replica)
    kept = []
    for instance in before.instances:
        here, table = new.get(instance.gpu, []), tables[instance.gpu]
        slices = [r.mig for r in (*here, *planned.on_gpu.get(instance.gpu, [])) if r.mig]
        in_way = any(r.mig is None or r.mig == instance.placed for r in here)
        if not here or not (in_way or table is None or table.faults((*slices, instance.placed))):
            kept.append(instance)
    return replace(before, replicas=(*before.replicas, *admitted.replicas), instances=tuple(kept))
