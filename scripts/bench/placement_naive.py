"""The model most people write first: a boolean for each way to run a replica in each place.

A place is a GPU and the start of a MIG instance, a block of whole GPUs of one node, or a GPU to
share, once for each replica that fits. It knows no rules, tells equal GPUs apart, and is given to
CP-SAT with a time limit.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ortools.sat.python import cp_model

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver.where import Seat, settle

PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class NaiveAnswer:
    """``price_bound`` holds for the unmet demand found; None: nothing found. Seconds of a clock."""

    placement: Placement | None
    unmet_bound_ppm: int
    price_bound_micros: int | None
    seconds: float
    first_s: float | None


def naive_cp_sat(problem: PlacementProblem, time_limit_s: float) -> NaiveAnswer:
    """Least unmet demand, then least price, in one weighted sum; building counts as time."""
    started = time.monotonic()
    model = _Model(problem)
    first = _First(started)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(1.0, time_limit_s - (time.monotonic() - started))
    solver.parameters.num_workers = 2
    status = solver.solve(model.rows, first)
    seconds = time.monotonic() - started
    # Weight x unmet + price >= bound, and the price of the whole fleet is below the weight.
    bound = max(0, math.ceil(solver.best_objective_bound - 1e-6))
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return NaiveAnswer(None, bound // model.weight, None, seconds, None)
    unmet = sum(map(solver.value, model.missing))
    seats = [seat for x, seat in model.seats if solver.value(x)]
    price_bound = max(0, bound - model.weight * unmet) * model.unit
    return NaiveAnswer(
        settle(problem, seats), bound // model.weight, price_bound, seconds, first.seconds
    )


class _First(cp_model.CpSolverSolutionCallback):
    """Remembers when the first solution came."""

    def __init__(self, started: float) -> None:
        super().__init__()
        self.started = started
        self.seconds: float | None = None

    def on_solution_callback(self) -> None:
        """Called by CP-SAT at each better solution."""
        if self.seconds is None:
            self.seconds = time.monotonic() - self.started


@dataclass(slots=True)
class _Gpu:
    """What lies on one GPU: booleans by memory slice, by MIG profile, whole, and shares."""

    node: Node
    whole: list[cp_model.IntVar] = field(default_factory=list)
    slices: dict[int, list[cp_model.IntVar]] = field(default_factory=lambda: defaultdict(list))
    profiles: dict[str, list[cp_model.IntVar]] = field(default_factory=lambda: defaultdict(list))
    shares: list[tuple[cp_model.IntVar, Candidate]] = field(default_factory=list)


class _Model:
    def __init__(self, problem: PlacementProblem) -> None:
        self.rows = cp_model.CpModel()
        self.seats: list[tuple[cp_model.IntVar, Seat]] = []
        self.missing: list[cp_model.IntVar] = []
        self.gpus = {
            f"{node.name}/{index}": _Gpu(node)
            for node in problem.fleet.nodes
            for index in range(node.gpus)
        }
        for deployment in problem.deployments:
            self._deployment(deployment, problem.candidates[deployment.name])
        prices = [problem.fleet.price_micros(gpu.node) for gpu in self.gpus.values()]
        self.unit = math.gcd(*prices) or 1
        self.weight = sum(prices) // self.unit + 1
        used = [self._gpu(gpu) for gpu in self.gpus.values()]
        price = sum(x * (p // self.unit) for x, p in zip(used, prices, strict=True))
        self.rows.minimize(self.weight * sum(self.missing) + price)

    def _deployment(self, d: Deployment, ways: tuple[Candidate, ...]) -> None:
        asked, replicas, served = d.asked_mrps or 0, [], []
        for way in ways:
            for gpus, mig in self._places(way):
                x = self.rows.new_bool_var("")
                self.seats.append((x, Seat(d.name, way, gpus, mig)))
                self._take(x, way, gpus, mig)
                replicas.append(x)
                served.append((way.capacity_mrps or 0) * x)
        missing = self.rows.new_int_var(0, PPM, "")
        self.rows.add(asked * missing >= PPM * (asked - sum(served)))
        self.rows.add(d.min_replicas * missing >= PPM * (d.min_replicas - sum(replicas)))
        self.missing.append(missing)

    def _places(self, way: Candidate) -> Iterator[tuple[tuple[str, ...], PlacedProfile | None]]:
        """Blocks of a power of two begin at multiples of their size: nothing is lost by it."""
        for name, gpu in self.gpus.items():
            node, index = gpu.node, int(name.rpartition("/")[2])
            if node.gpu.name != way.gpu or way.shape.sharing not in node.sharing:
                continue
            if way.shape.sharing is Sharing.MIG:
                profile = node.gpu.mig and node.gpu.mig.profile(way.shape.profile or "")
                for start in profile.starts if profile else ():
                    yield (name,), PlacedProfile(start, way.shape.profile or "")
            elif way.shape.share is not None:
                for _ in range(math.floor(1 / max(way.shape.share.parts_of(node.gpu.room)))):
                    yield (name,), None
            elif index % way.shape.gpus == 0 and index + way.shape.gpus <= node.gpus:
                block = range(index, index + way.shape.gpus)
                yield tuple(f"{node.name}/{i}" for i in block), None

    def _take(
        self, x: cp_model.IntVar, way: Candidate, names: tuple[str, ...], mig: PlacedProfile | None
    ) -> None:
        for gpu in (self.gpus[name] for name in names):
            if mig is not None and gpu.node.gpu.mig is not None:
                profile = gpu.node.gpu.mig.profile(mig.profile)
                for cell in range(mig.start, mig.start + (profile.memory_slices if profile else 0)):
                    gpu.slices[cell].append(x)
                gpu.profiles[mig.profile].append(x)
            elif way.shape.share is not None:
                gpu.shares.append((x, way))
            else:
                gpu.whole.append(x)

    def _gpu(self, gpu: _Gpu) -> cp_model.IntVar:
        """One use at a time, within its room; the boolean that it is used at all."""
        used, shared = self.rows.new_bool_var(""), self.rows.new_bool_var("")
        self.rows.add(sum(gpu.whole) + shared <= used)
        for taken in gpu.slices.values():
            self.rows.add(sum(taken) + sum(gpu.whole) + shared <= used)
        for name, taken in gpu.profiles.items():
            profile = gpu.node.gpu.mig and gpu.node.gpu.mig.profile(name)
            self.rows.add(sum(taken) <= (profile.max_instances if profile else 0))
        for part in ("memory_mib", "bandwidth_mbs", "compute_ppm"):
            held = sum(getattr(way.shape.share, part) * x for x, way in gpu.shares)
            self.rows.add(held <= getattr(gpu.node.gpu.room, part) * shared)
        return used
