"""Pipelines over nodes after the solver: their steps, and why one more finds no place."""

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.config import Candidate, ReplicaConfig
from optimizer.domain.outcome import Limits
from optimizer.domain.plan import Plan, PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import compose
from optimizer.solver import solve
from optimizer.verify import check_plan

PLAIN = gpu("plain", memory_gib=80)
RUN = PlanRun(0.1, 1, "2026-01-05T02:00:00Z", "proof")


def staged(stages: int, network_mbs: int = 0) -> Candidate:
    config = ReplicaConfig("vllm", tensor_parallel=2, pipeline_parallel=stages)
    return candidate("chat", PLAIN, gpus=2 * stages, rps=1, config=config, network_mbs=network_mbs)


def planned(asked: PlacementProblem) -> Plan:
    outcome = solve(asked, Limits(effort=10, time_limit_s=60, workers=1))
    plan = compose(asked, outcome, inputs=(), options={}, run=RUN, dropped={}, version="0.1.0")
    assert check_plan(asked, plan) == ()
    return plan


def test_a_pipeline_moves_as_one() -> None:
    """Its node is drained: both stages start elsewhere before the old ones stop."""
    machines = [node(f"n{i}", PLAIN, 2, cordoned=i == 0) for i in range(4)]
    way = staged(2)
    now = place(replica("chat/0", "n0/0", "n0/1", "n1/0", "n1/1", config=way.config))
    plan = planned(problem(fleet(*machines), [deployment(rps=1)], [way], now))
    assert [s.action for s in plan.steps] == ["start", "shift_traffic", "drain", "stop"]
    assert plan.steps[0].gpus == ("n2/0", "n2/1", "n3/0", "n3/1")
    assert plan.steps[-1].gpus == ("n0/0", "n0/1", "n1/0", "n1/1")


def test_unmet_by_the_network() -> None:
    """Three stages of two GPUs need three nodes of four; their links hold only one pipeline."""
    machines = fleet(*(node(f"n{i}", PLAIN, 4, network_gbs=0.199) for i in range(3)))
    plan = planned(problem(machines, [deployment(rps=2)], [staged(3, network_mbs=100)]))
    [unmet] = plan.unmet
    assert unmet.reason.startswith("network_bandwidth: no free nodes have links with 100 MB/s")


def test_unmet_for_want_of_blocks() -> None:
    """Three GPUs free in each of two nodes make one pipeline of two pairs, and no second."""
    machines = fleet(*(node(f"n{i}", PLAIN, 3) for i in range(2)))
    plan = planned(problem(machines, [deployment(rps=2)], [staged(2)]))
    assert "2 times 2 whole plain, each in one node is not free" in plan.unmet[0].reason
