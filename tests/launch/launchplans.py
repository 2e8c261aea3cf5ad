"""A plan over two nodes to launch: MIG slices, shares, a tensor-parallel group, a whole GPU."""

from collections.abc import Sequence
from dataclasses import replace

from builders import a100, deployment, fleet, gpu, node, place, placed, problem, use
from optimizer.domain.config import Prediction, ReplicaConfig
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.placement import Replica
from optimizer.domain.plan import Plan, PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import compose

A100 = a100()
H200 = gpu("h200", memory_gib=140)
ONE = ReplicaConfig(engine="vllm", precision="bf16", max_model_len=4096, max_num_seqs=8)
TP2 = replace(ONE, tensor_parallel=2)
TTFT_MS, TPOT_MS = 60.0, 8.0


def at(name: str, *gpus: str, mig: str | None = None, **other: object) -> Replica:
    """A replica on these GPUs, or in ``3g.40gb@4`` of one."""
    slot = placed(mig) if mig else None
    other.setdefault("config", ONE if len(gpus) == 1 else TP2)
    return Replica(name, name.rsplit("/", 1)[0], gpus, slot, **other)  # type: ignore[arg-type]


MIG_SLICES = (
    at("chat/0", "n1/0", mig="3g.40gb@4"),
    at("chat/1", "n1/0", mig="2g.20gb@0"),
)
GROUP = at("big/0", "n2/0", "n2/1")
WHOLE = at("code/0", "n1/1")
# 0.4 and 0.6 of one GPU, halves of the other: Ray's own packing of num_gpus hangs on them.
SHARES = tuple(
    at(f"vision/{i}", f"n2/{index}", share=use(memory_gib=140 * part, compute=part))
    for i, (index, part) in enumerate([(2, 0.4), (3, 0.5), (3, 0.5), (2, 0.6)])
)
REPLICAS = (GROUP, *MIG_SLICES, WHOLE, *SHARES)


def asked() -> PlacementProblem:
    """Two nodes and four deployments of three tenants."""
    tenants = {"big": "acme", "chat": "acme", "code": "globex", "vision": "initech"}
    return problem(
        fleet(node("n1", A100, 2), node("n2", H200, 4)),
        [replace(deployment(name), tenant=tenant) for name, tenant in sorted(tenants.items())],
    )


def launch_plan(replicas: Sequence[Replica] = REPLICAS, *, name: str = "toy") -> Plan:
    """The plan that runs these replicas, all predicted to be equally fast."""
    plan = compose(
        asked(),
        Outcome(Termination.OPTIMAL, place(*replicas)),
        inputs=(),
        options={},
        run=PlanRun(0.1, 1, "2026-01-05T02:00:00Z", "optimality"),
        dropped={},
        version="0.1.0",
    )
    times = Prediction(TTFT_MS, TPOT_MS)
    return replace(
        plan,
        fleet=name,
        deployments=tuple(replace(d, predicted=times) for d in plan.deployments),
    )
