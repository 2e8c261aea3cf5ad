"""Pipelines over nodes: where their stages lie, and what a node's network lets through."""

import random

import pytest

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.config import Candidate, ReplicaConfig
from optimizer.domain.gpu import Gpu
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import solve
from optimizer.verify import check_outcome, verify

PLAIN = gpu("plain", memory_gib=80)
OTHER = gpu("other", memory_gib=80)
LIMITS = Limits(effort=10, time_limit_s=60, workers=1)


def staged(
    name: str, block: int, stages: int, rps: float, product: Gpu = PLAIN, **other: int
) -> Candidate:
    """A pipeline of so many stages of ``block`` GPUs each."""
    config = ReplicaConfig("vllm", tensor_parallel=block, pipeline_parallel=stages)
    return candidate(name, product, gpus=block * stages, rps=rps, config=config, **other)


def solved(asked: PlacementProblem) -> Outcome:
    outcome = solve(asked, LIMITS)
    assert outcome.incumbent is not None
    assert not verify(asked, outcome.incumbent)
    assert not check_outcome(asked, outcome)
    return outcome


def lies(outcome: Outcome) -> list[tuple[str, ...]]:
    """The nodes of each replica."""
    assert outcome.incumbent is not None
    return [one.nodes for one in outcome.incumbent.replicas]


def test_stages_share_a_node_where_they_can() -> None:
    machines = fleet(*(node(f"n{i}", PLAIN, 4) for i in range(3)))
    asked = problem(machines, [deployment(rps=4)], [staged("chat", 2, 2, 2)])
    assert sorted(lies(solved(asked))) in (
        [("n0",), ("n1",)],
        [("n0",), ("n2",)],
        [("n1",), ("n2",)],
    )


def test_each_stage_lies_in_one_node() -> None:
    """Three GPUs free in each of two nodes hold one pipeline of two pairs, never two."""
    machines = fleet(*(node(f"n{i}", PLAIN, 3) for i in range(2)))
    asked = problem(machines, [deployment(rps=4)], [staged("chat", 2, 2, 2)])
    outcome = solved(asked)
    assert lies(outcome) == [("n0", "n1")]
    assert outcome.objectives[0].value == outcome.objectives[0].bound == 500_000


@pytest.mark.parametrize(
    ("network", "served"),
    [(None, 2), (0.2, 2), (0.199, 1), (0.099, 0)],
    ids=["nobody knows", "just fits", "one too many", "not even one"],
)
def test_network_bandwidth(network: float | None, served: int) -> None:
    """Three stages of two GPUs on three nodes of four: two pipelines, each over all nodes."""
    machines = fleet(*(node(f"n{i}", PLAIN, 4, network_gbs=network) for i in range(3)))
    asked = problem(machines, [deployment(rps=2)], [staged("chat", 2, 3, 1, network_mbs=100)])
    assert len(lies(solved(asked))) == served


def test_a_pipeline_counts_once_in_each_rack() -> None:
    racks = ("r0", "r0", "r1")
    machines = fleet(*(node(f"n{i}", PLAIN, 1, rack=rack) for i, rack in enumerate(racks)))
    one_a_rack = deployment(rps=1, spread_rack=1)
    asked = problem(machines, [one_a_rack], [staged("chat", 1, 3, 1)])
    assert lies(solved(asked)) == [("n0", "n1", "n2")]


def test_a_drained_node_moves_all_stages_that_must() -> None:
    machines = fleet(*(node(f"n{i}", PLAIN, 2, cordoned=i == 0) for i in range(3)))
    way = staged("chat", 2, 2, 1)
    now = place(replica("chat/0", "n0/0", "n0/1", "n1/0", "n1/1", config=way.config))
    outcome = solved(problem(machines, [deployment(rps=1)], [way], now))
    assert lies(outcome) == [("n1", "n2")]
    stays = problem(
        fleet(*(node(f"n{i}", PLAIN, 2) for i in range(3))), [deployment(rps=1)], [way], now
    )
    assert solved(stays).incumbent.replicas == now.replicas  # type: ignore[union-attr]


def large(seed: int, nodes: int) -> PlacementProblem:
    """Nodes of 8 GPUs of two products in racks of four; groups, single GPUs and pipelines."""
    dice = random.Random(seed)
    machines = [
        node(
            f"n{i:03}",
            PLAIN if i % 2 else OTHER,
            8,
            price=2.0 if i % 2 else 2.6,
            rack=f"r{i // 4}",
            network_gbs=50 if i % 3 else 25,
        )
        for i in range(nodes)
    ]
    deployments, ways, taken = [], [], 0
    while taken < nodes * 6:
        name, copies = f"d{len(deployments)}", dice.choice((1, 1, 2, 3))
        block, stages = dice.choice(((8, 2), (4, 2), (4, 1), (2, 1), (1, 1)))
        ways.append(staged(name, block, stages, 10, network_mbs=9000 * (stages > 1)))
        ways.append(staged(name, block, stages, 11, OTHER, network_mbs=9000 * (stages > 1)))
        rate = round(10 * copies * dice.uniform(0.8, 1) - 0.2, 2)
        spread = dice.choice((None, None, 1))
        deployments.append(deployment(name, rps=rate, spread_node=spread))
        taken += block * stages * copies
    return problem(fleet(*machines), deployments, ways)


@pytest.mark.parametrize("nodes", [12, 48], ids=["96 GPUs", "384 GPUs"])
def test_larger_fleets_are_proved_with_pipelines(nodes: int) -> None:
    outcome = solved(large(3, nodes))
    assert outcome.termination is Termination.OPTIMAL
    assert any(len(names) > 1 for names in lies(outcome))
