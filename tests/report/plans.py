"""A small plan with everything a report must show: MIG, a group, shares, unmet demand, moves."""

from dataclasses import replace

from builders import candidate, deployment, fleet, gpu, instance, node, placed, problem, use
from optimizer.domain.config import Candidate, Dropped, Prediction, ReplicaConfig
from optimizer.domain.outcome import Objective, Outcome, Termination
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.plan import Plan, PlanInput, PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Slo
from optimizer.planning import compose

H100 = gpu("h100-80gb-sxm", mig="std8", bandwidth_gbs=3350, tdp_w=700)
H200 = gpu("h200-141gb-sxm", memory_gib=140, mig="std8", bandwidth_gbs=4800, tdp_w=700)
L40S = gpu("l40s", memory_gib=44, bandwidth_gbs=864, tdp_w=350)

FP8 = ReplicaConfig(engine="vllm", precision="fp8", kv_precision="bf16")
BF16 = ReplicaConfig(engine="vllm", precision="bf16", kv_precision="bf16")
TP4 = ReplicaConfig(engine="vllm", precision="fp8", kv_precision="fp8", tensor_parallel=4)
SHARE = use(memory_gib=6, bandwidth_gbs=250, compute=0.15)


def predicted(ttft: float, tpot: float | None, band: float = 15) -> Prediction:
    """Means are four fifths of the percentile; the band of TPOT is half that of TTFT."""
    return Prediction(
        ttft,
        tpot,
        ttft * 0.8,
        tpot and tpot * 0.8,
        8.0,
        900.0,
        (("throughput", band), ("tpot", band / 2), ("ttft", band)),
    )


def small_problem(current: Placement | None = None) -> PlacementProblem:
    """Three products, two racks, four tenants."""
    machines = fleet(
        node("h100-01", H100, 4, price=2.5, rack="r1"),
        node("h100-02", H100, 4, price=2.5, rack="r1"),
        node("h100-03", H100, 4, price=2.5, rack="r1"),
        node("h200-01", H200, 8, price=3.6, rack="r2", cordoned_gpus=[7]),
        node("l40s-01", L40S, 4, price=1.1, rack="r2"),
    )
    deployments = [
        replace(deployment("support-chat", rps=9.6), tenant="acme", slo=Slo(800, 50)),
        replace(deployment("reranker", rps=40, replicas=2), tenant="acme", slo=Slo(200, None)),
        replace(deployment("llama-70b", rps=4), tenant="globex", slo=Slo(1500, 40), priority=100),
        replace(deployment("code-assist", rps=5), tenant="globex", slo=Slo(400, 25)),
        replace(deployment("vision", replicas=3), tenant="initech"),
        replace(deployment("research-405b", rps=1), tenant="umbrella", slo=Slo(3000, 60)),
    ]
    return problem(machines, deployments, small_candidates(), current)


def small_candidates() -> list[Candidate]:
    """The ways to run them."""
    big = use(memory_gib=120, bandwidth_gbs=4000, compute=1)
    return [
        candidate(
            "support-chat", H100, profile="3g.40gb", rps=3.3, load_gib=8.5, config=FP8,
            takes=use(33.4, 1500, 0.4), predicted=predicted(412, 31),
        ),
        candidate(
            "support-chat", H100, profile="4g.40gb", rps=3.6, load_gib=15, config=BF16,
            takes=use(38.9, 1600, 0.5), predicted=predicted(498, 38),
        ),
        candidate(
            "reranker", H100, profile="1g.10gb", rps=22, load_gib=1.1, config=BF16,
            takes=use(7.2, 300, 0.1), predicted=predicted(190, None, 20),
        ),
        candidate(
            "llama-70b", H200, gpus=4, rps=5.1, load_gib=68, config=TP4,
            takes=big, predicted=predicted(1210, 37.5),
        ),
        candidate(
            "code-assist", H100, gpus=1, rps=3, load_gib=28, config=FP8,
            takes=use(71, 3000, 1), predicted=predicted(350, 24.1),
        ),
        candidate(
            "code-assist", H200, gpus=1, rps=4, load_gib=28, config=FP8,
            takes=use(130, 4400, 1), predicted=predicted(331, 18.4),
        ),
        candidate("vision", L40S, share=SHARE, load_gib=2, config=ReplicaConfig()),
    ]  # fmt: skip


def at(
    name: str, *gpus: str, mig: str | None = None, config: ReplicaConfig = FP8, **other: object
) -> Replica:
    """A replica of this plan."""
    slot = placed(mig) if mig else None
    return Replica(name, name.rsplit("/", 1)[0], gpus, slot, config=config, **other)


def visions(count: int) -> list[Replica]:
    """Shares of one GPU."""
    plain = ReplicaConfig()
    return [at(f"vision/{i}", "l40s-01/0", config=plain, share=SHARE) for i in range(count)]


def small_placement(*empty: str) -> Placement:
    """Where they run, and instances that stand empty."""
    return Placement(
        (
            at("code-assist/0", "h100-02/0"),
            at("llama-70b/0", *(f"h200-01/{i}" for i in range(4)), config=TP4),
            at("reranker/0", "h100-01/1", mig="1g.10gb@0", config=BF16),
            at("reranker/1", "h100-01/1", mig="1g.10gb@2", config=BF16),
            at("support-chat/0", "h100-01/0", mig="3g.40gb@0"),
            at("support-chat/1", "h100-01/0", mig="3g.40gb@4"),
            at("support-chat/2", "h100-01/1", mig="3g.40gb@4"),
            *(
                at(f"vision/{i}", "l40s-01/0", config=ReplicaConfig(), share=SHARE)
                for i in (0, 1, 2)
            ),
        ),
        (instance("h100-02/1 2g.20gb@0"),),
    )


def small_current() -> Placement:
    """What ran before: spread wider, and one replica too many."""
    return Placement(
        (
            at("code-assist/0", "h100-02/0"),
            at("llama-70b/0", *(f"h200-01/{i}" for i in range(4)), config=TP4),
            at("reranker/0", "h100-01/1", mig="1g.10gb@0", config=BF16),
            at("reranker/1", "h100-02/1", mig="1g.10gb@6", config=BF16),
            at("reranker/2", "h100-02/1", mig="1g.10gb@4", config=BF16),
            at("support-chat/0", "h100-01/0", mig="3g.40gb@0"),
            at("support-chat/1", "h200-01/7", mig="3g.70gb@0"),
            at("support-chat/2", "h100-02/2", mig="4g.40gb@0", config=BF16),
            *visions(2),
        ),
        (instance("h100-02/1 2g.20gb@0"),),
    )


DROPPED = {
    "research-405b": (
        Dropped(
            "research-405b",
            "h200-141gb-sxm x8 fp8",
            "TPOT 71 ms at batch 1, SLO 60 ms",
        ),
    ),
    "support-chat": (
        Dropped("support-chat", "h100-80gb-sxm 2g.20gb fp8", "needs 21.3 GiB, the slice has 20.0"),
    ),
}


def plan_of(asked: PlacementProblem, placement: Placement, outcome: Outcome | None = None) -> Plan:
    """The composed plan, with a run that never changes."""
    outcome = outcome or Outcome(Termination.OPTIMAL, placement)
    return compose(
        asked,
        replace(outcome, incumbent=placement),
        inputs=(
            PlanInput("clusters/small.yaml", "0123456789abcdef" * 4, "Fleet"),
            PlanInput("workloads/small.yaml", "fedcba9876543210" * 4, "Workloads"),
        ),
        options={"gap": 0.0, "seed": 0},
        run=PlanRun(1.5, 2, "2026-01-05T02:00:00Z", outcome.stopped_by),
        dropped=DROPPED,
        version="0.1.0",
    )


def objectives(gap: bool = False) -> tuple[Objective, ...]:
    """Unmet at two priorities, the price (proved or not) and stranded room."""
    price = 23_000_000
    return (
        Objective("unmet", 0, 0, priority=100),
        Objective("unmet", 1_400_000, 1_400_000, priority=0),
        Objective("price_per_hour", price, price - (92_000 if gap else 0)),
        *((Objective("disruption", 22_631, 22_631),) if gap else ()),
        Objective("stranded", 20_480, 0),
    )


def small_plan() -> Plan:
    """Planned from scratch, proved."""
    outcome = Outcome(Termination.OPTIMAL, objectives=objectives())
    return plan_of(small_problem(), small_placement(), outcome)


def rebalanced_plan() -> Plan:
    """The same placement, reached from another; the price within a gap."""
    outcome = Outcome(Termination.WITHIN_GAP, objectives=objectives(gap=True), stopped_by="gap")
    placement = small_placement("h100-02/1 2g.20gb@0")
    return plan_of(small_problem(small_current()), placement, outcome)


def large_plan() -> Plan:
    """Ninety-six GPUs: full of slices, groups and shares, and some empty."""
    machines = fleet(
        *(node(f"h100-{i:02}", H100, 8, price=2.5, rack=f"r{i % 3}") for i in range(6)),
        *(node(f"h200-{i:02}", H200, 8, price=3.6, rack="r9") for i in range(4)),
        *(node(f"l40s-{i:02}", L40S, 8, price=1.1, rack="r9") for i in range(2)),
    )
    asked = replace(small_problem(), fleet=machines)
    found: list[Replica] = []
    chats = iter(range(1000))
    for i in range(5):
        for g in range(8):
            for start in (0, 4):
                spot = f"3g.40gb@{start}"
                found.append(at(f"support-chat/{next(chats)}", f"h100-{i:02}/{g}", mig=spot))
    found.append(at("reranker/0", "h100-05/0", mig="1g.10gb@6", config=BF16))
    for i in range(4):
        group = [f"h200-{i:02}/{g}" for g in range(4)]
        found.append(at(f"llama-70b/{i}", *group, config=TP4))
    found.append(at("code-assist/0", "h100-05/3"))
    for i in range(10):
        plain = ReplicaConfig()
        found.append(at(f"vision/{i}", f"l40s-00/{i // 3}", config=plain, share=SHARE))
    return plan_of(asked, Placement(tuple(found)))


_ENTRY = {
    "gpu": "h100-80gb-sxm",
    "mig_profile": "3g.40gb",
    "tensor_parallel": 1,
    "pipeline_parallel": 1,
    "precision": "fp8",
    "kv_precision": "bf16",
    "attention": "flash-3",
    "engine": "vllm",
    "engine_version": "0.11.0",
    "memory": {
        "budget_mib": 36000,
        "weights_mib": 8700,
        "activation_mib": 1200,
        "runtime_mib": 500,
        "kv_cache_mib": 25000,
        "cuda_graphs_mib": 600,
        "outside_budget_mib": 900,
        "kv_cache_tokens": 204000,
    },
    "performance": {
        "ttft_ms": 300,
        "tpot_ms": 21,
        "ttft_p95_ms": 412,
        "tpot_p95_ms": 31,
        "requests_per_second": 3.3,
        "output_tokens_per_second": 726.0,
        "concurrency": 12,
        "error_band_percent": {"ttft": 20, "tpot": 12, "throughput": 10},
    },
    "price_per_hour": 1.25,
    "price_per_million_output_tokens": 0.478,
    "reasons": ["bound by the TPOT limit"],
}

SIZE = {
    "model": "llama-3.1-8b",
    "candidates": [
        _ENTRY,
        {**_ENTRY, "gpu": "h200-141gb-sxm", "mig_profile": None, "tensor_parallel": 2},
    ],
    "refused": [
        {
            **_ENTRY,
            "mig_profile": "1g.10gb",
            "performance": None,
            "reason": "weights 8.5 GiB + activation 1.2 + KV of one request 1.0 need 11.2 GiB, "
            "h100-80gb-sxm 1g.10gb has 9.6 GiB, 8.7 of them for the engine",
        }
    ],
}


def _scenario(name: str, price: float | None, **more: object) -> dict[str, object]:
    row = {"name": name, "status": "optimal", "price_per_hour": price, "bound": price}
    counts = {"gpus_used": 61, "unmet": [], "moves": 0, "failed": None, "differences": []}
    return {**row, **counts, **more}


def _short(deployment: str, rps: float = 0.0, replicas: int = 0) -> dict[str, object]:
    missing = {"missing_rps": rps, "missing_replicas": replicas}
    return {"deployment": deployment, **missing, "reason": "no room", "smallest_fix": None}


WHATIF = {
    "baseline": _scenario("baseline", 131.5),
    "scenarios": [
        _scenario(
            "lose-r2",
            140.2,
            status="within_gap",
            gpus_used=64,
            unmet=[_short("batch-embed", 1.5)],
            moves=12,
            differences=["batch-embed misses 1.5 req/s", "support-chat moves to h100-80gb-sxm"],
        ),
        _scenario("growth/1.5", 131.5),
        _scenario("cheaper", 120.25, gpus_used=58),
        _scenario("broken", None, status=None, failed='no node "x-01" in the fleet'),
    ],
}

# Answers about the small plan: one node after the other is lost, and demand grows.
FAMILIES = {
    "unit": "USD",
    "baseline": _scenario("baseline", 23.0),
    "scenarios": [
        _scenario("each-node/h100-01", 20.0, unmet=[_short("support-chat", 4.8)]),
        _scenario("each-node/h200-01", None, status="infeasible", gpus_used=None),
        _scenario("each-node/l40s-01", 22.0, unmet=[_short("vision", replicas=3)]),
        _scenario("growth/2.0", 41.0, unmet=[_short("support-chat", 1)]),
        _scenario("growth/1.0", 23.0),
    ],
}

CURVE = {
    "unit": "USD",
    "points": [
        {
            "price_per_hour": price,
            "price_bound": price,
            "gpus_used": gpus,
            "moves": moves,
            "disruption_gib": gib,
            "disruption_bound_gib": gib,
            "proved": True,
            "knee": moves == 2,
        }
        for price, gpus, moves, gib in ((31.6, 11, 0, 0.0), (25.5, 9, 2, 17.0), (23.0, 8, 9, 90.0))
    ],
}
