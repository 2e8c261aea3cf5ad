"""The plans of the launch show: four nodes of eight devices, 25 replicas, and one with 17 moves."""

from dataclasses import replace

from builders import a100, candidate, deployment, fleet, gpu, node, place, placed, problem, use
from optimizer.domain.config import Candidate, Prediction, ReplicaConfig
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.plan import Plan, PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import compose

A100, H200 = a100(), gpu("h200", memory_gib=140)
TTFT_MS, TPOT_MS = 40.0, 4.0
ONE = ReplicaConfig(engine="vllm", precision="bf16", max_model_len=4096, max_num_seqs=32)
TP4 = replace(ONE, tensor_parallel=4)
WIDE = replace(ONE, tensor_parallel=2, pipeline_parallel=2)
TENANTS = {"big": "acme", "chat": "acme", "code": "globex", "small": "globex", "vision": "initech"}
TENANTS |= {"wide": "acme"}
PARTS = (0.4, 0.6, 0.5, 0.5)  # the first two fill one GPU, the others another


def at(name: str, *gpus: str, mig: str | None = None, part: float | None = None, **said: object):
    """A replica on these GPUs, in an instance or with a part of one."""
    share = None if part is None else use(memory_gib=140 * part, compute=part)
    said.setdefault("config", ONE)
    slot = placed(mig) if mig else None
    return Replica(name, name.partition("/")[0], gpus, slot, share, **said)  # type: ignore[arg-type]


def _mig(small: str, *places: tuple[str, str]) -> list[Replica]:
    return [at(f"{small}/{i}", gpu_id, mig=slot) for i, (gpu_id, slot) in enumerate(places)]


GROUP = at("big/0", "n4/0", "n4/1", "n4/2", "n4/3", config=TP4)
PIPELINE = at("wide/0", "n3/6", "n3/7", "n4/6", "n4/7", config=WIDE)

BEFORE = (
    GROUP,
    PIPELINE,
    *_mig("chat", *((f"n1/{i}", "3g.40gb@4") for i in range(6))),
    *_mig("small", *((f"n2/{i}", f"1g.10gb@{i}") for i in range(6))),
    at("code/0", "n4/4"),
    at("code/1", "n4/5"),
    at("code/2", "n3/5"),
    *(at(f"vision/{i}", f"n3/{(0, 0, 1, 1)[i]}", part=PARTS[i]) for i in range(4)),
    *(at(f"vision/{i + 4}", f"n3/{(2, 2, 3, 3)[i]}", part=PARTS[i]) for i in range(4)),
)
# Two to a GPU and six to a GPU; vision/4 to 7 go elsewhere, code/2 leaves its node.
AFTER = (
    GROUP,
    PIPELINE,
    *_mig("chat", *((f"n2/{6 + i // 2}", f"3g.40gb@{4 * (i % 2)}") for i in range(4))),
    at("chat/4", "n1/0", mig="3g.40gb@0"),
    at("chat/5", "n1/0", mig="3g.40gb@4"),
    *_mig("small", *(("n1/7", f"1g.10gb@{i}") for i in range(6))),
    at("code/0", "n4/4"),
    at("code/1", "n4/5"),
    at("code/2", "n3/4"),
    *(at(f"vision/{i}", f"n3/{(0, 0, 1, 1)[i]}", part=PARTS[i]) for i in range(4)),
    *(at(f"vision/{i + 4}", f"n3/{(3, 3, 2, 2)[i]}", part=PARTS[i]) for i in range(4)),
)


def _candidates() -> list[Candidate]:
    found = [
        candidate("chat", A100, profile="3g.40gb", config=ONE),
        candidate("small", A100, profile="1g.10gb", config=ONE),
        candidate("code", H200, gpus=1, config=ONE),
        candidate("big", H200, gpus=4, config=TP4),
        candidate("wide", H200, gpus=4, config=WIDE),
    ]
    for part in sorted(set(PARTS)):
        share = use(memory_gib=140 * part, compute=part)
        found.append(candidate("vision", H200, share=share, config=ONE))
    return found


def _asked(current: Placement | None) -> PlacementProblem:
    counts = {name: sum(r.deployment == name for r in BEFORE) for name in TENANTS}
    return problem(
        fleet(*(node(f"n{i}", A100 if i < 3 else H200, 8) for i in (1, 2, 3, 4))),
        [
            replace(deployment(name, replicas=counts[name], max_replicas=counts[name]), tenant=who)
            for name, who in sorted(TENANTS.items())
        ],
        _candidates(),
        current,
    )


def show_plan(replicas: tuple[Replica, ...], current: tuple[Replica, ...] | None = None) -> Plan:
    """The plan that ends in these replicas, with steps when it starts from ``current``."""
    plan = compose(
        _asked(None if current is None else place(*current)),
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
        fleet="show",
        deployments=tuple(replace(d, predicted=times) for d in plan.deployments),
    )
