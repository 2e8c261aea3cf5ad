"""Every model of a plan under its traffic, and what the plan had predicted."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from optimizer.domain.engine import EngineCard
from optimizer.domain.fleet import Fleet
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.trace import Trace
from optimizer.domain.workload import Demand, Deployment, Slo
from optimizer.simulation.replay import Replayed, Routing, Served, replay_deployment
from optimizer.simulation.server import ServerSpec
from optimizer.simulation.traffic import Arrivals, fitted, of_deployment, synthetic
from optimizer.sizing.batching import Batching, Embedding
from optimizer.sizing.candidates import running_as
from optimizer.sizing.replica import Sized, load_of


@dataclass(frozen=True, slots=True)
class Replay:
    """How to replay. ``trace`` None: arrivals drawn from each demand's statistics at its peak.

    ``lengths_vary_as``: demand or trace.
    """

    seconds: float = 3600.0
    trace: Trace | None = None
    routing: Routing = Routing.LEAST_LOADED
    seed: int = 0
    lengths_vary_as: str = "demand"


@dataclass(frozen=True, slots=True)
class Task:
    """One deployment's part of a replay, ready to be sent to another process."""

    deployment: str
    replicas: tuple[Served, ...]
    demand: Demand
    slo: Slo | None
    longest: int | None
    replay: Replay


@dataclass(frozen=True, slots=True)
class Left:
    """A deployment that is not replayed, and why."""

    deployment: str
    reason: str


def tasks(
    fleet: Fleet,
    deployments: Iterable[Deployment],
    engines: Mapping[str, EngineCard],
    placement: Placement,
    replay: Replay,
) -> tuple[list[Task], list[Left]]:
    """What there is to replay, deployment by deployment."""
    found: list[Task] = []
    left: list[Left] = []
    for deployment in deployments:
        replicas = [r for r in placement.replicas if r.deployment == deployment.name]
        made = _task(fleet, deployment, engines, replicas, replay)
        if isinstance(made, Task):
            found.append(made)
        else:
            left.append(made)
    return found, left


def _task(
    fleet: Fleet,
    deployment: Deployment,
    engines: Mapping[str, EngineCard],
    replicas: Sequence[Replica],
    replay: Replay,
) -> Task | Left:
    demand = deployment.demand
    if deployment.model is None or demand is None:
        return Left(deployment.name, "not a model with a demand: its speed is not simulated")
    if not replicas:
        return Left(deployment.name, "no replica in the plan")
    served: list[Served] = []
    longest: int | None = None
    for replica in replicas:
        running = running_as(fleet, deployment, engines, replica)
        if running is None or running.sized.serving is None:
            return Left(deployment.name, f"{replica.id} runs in a way that cannot be sized")
        spec = spec_of(running.sized, running.card, demand)
        served.append(Served(replica.id, spec, max(1e-6, running.sized.rate or 1.0)))
        length = running.sized.budget.max_model_len
        longest = min(length, longest or length)
    return Task(deployment.name, tuple(served), demand, deployment.slo, longest, replay)


def spec_of(sized: Sized, card: EngineCard, demand: Demand) -> ServerSpec:
    """What a sized replica can do. Its KV cache holds tokens as it holds mean requests."""
    serving, budget = sized.serving, sized.budget
    assert isinstance(serving, Batching | Embedding)
    load = load_of(demand, None)
    fraction = card.range_of(sized.way.version).host.kv_output_fraction
    held = max(1.0, load.input_tokens + load.output_tokens)
    blocks = budget.layout.blocks_per_request(int(held), budget.max_num_batched_tokens)
    tokens = budget.free_blocks / blocks * held if blocks else float("inf")
    return ServerSpec(
        step=serving.step,
        front_end_s=serving.front_end_s,
        max_num_seqs=budget.max_num_seqs,
        chunk=serving.chunk,
        kv_tokens=tokens,
        reserves=fraction >= 1,
        in_flight=card.batching == "in-flight",
        decodes=isinstance(serving, Batching),
    )


def run(task: Task) -> Replayed:
    """One deployment's traffic over its replicas."""
    return replay_deployment(
        task.deployment, task.replicas, _traffic(task), task.slo, task.replay.routing
    )


def _traffic(task: Task) -> Iterable[Arrivals]:
    replay = task.replay
    seed = f"{replay.seed}/{task.deployment}"
    if replay.trace is None:
        return synthetic(task.demand, replay.seconds, seed)
    own = of_deployment(replay.trace, task.deployment)
    if own:
        return [Arrivals.of(own).before(replay.seconds)]
    return fitted(
        replay.trace,
        task.demand,
        replay.seconds,
        seed,
        task.longest,
        lengths_vary_as=replay.lengths_vary_as,
    )


def replay_plan(
    work: Sequence[Task], workers: int = 1, progress: Callable[[str], None] | None = None
) -> Iterator[Replayed]:
    """Every task, in the order given; the same results for any number of worker processes."""
    if workers <= 1 or len(work) <= 1:
        for task in work:
            yield run(task)
            if progress:
                progress(task.deployment)
        return
    with ProcessPoolExecutor(min(workers, len(work))) as pool:
        running = {t.deployment: pool.submit(run, t) for t in sorted(work, key=_requests)}
        for task in work:
            yield running[task.deployment].result()
            if progress:
                progress(task.deployment)


def _requests(task: Task) -> float:
    """The longest replays start first, so that no process is left with one at the end."""
    return -task.demand.rate_mrps
