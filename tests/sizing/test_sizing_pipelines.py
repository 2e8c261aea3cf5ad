"""Pipelines as candidates: what room they take, what their stages hand over, what that costs."""

from dataclasses import replace

import pytest

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Fleet, Node, Sharing
from optimizer.domain.workload import Allow, Demand, Deployment, Slo
from optimizer.scenarios.reuse import SizedBefore
from optimizer.sizing import size
from optimizer.sizing.performance import handed_over
from optimizer.sizing.precision import scheme
from optimizer.sizing.weights import weights
from sizing_examples import H100, LLAMA_70B, vllm

# 70B in 16 bit takes 131 GiB: one GPU of 80 GB a node holds it only over two nodes.
SINGLES = tuple(
    Node(f"n{i}", H100, 1, sharing=(Sharing.WHOLE,), network_gbs=50.0) for i in range(4)
)
CHAT = Deployment(
    "chat",
    model=LLAMA_70B,
    demand=Demand(300, 1000, 200, 2048),
    slo=Slo(8000, 200, 95),
    allow=Allow(("bf16",), engines=("vllm",), pipeline_parallel=(1, 2)),
)


def offered(deployment: Deployment, nodes: tuple[Node, ...] = SINGLES) -> tuple[Candidate, ...]:
    return size(Fleet("lab", nodes), [deployment], {"vllm": vllm()}).candidates["chat"]


def test_a_model_too_large_for_a_node_runs_as_a_pipeline() -> None:
    [way] = offered(CHAT)
    assert (way.shape.gpus, way.shape.stages, way.shape.block) == (2, 2, 1)
    assert (way.config.tensor_parallel, way.config.pipeline_parallel) == (1, 2)
    assert offered(replace(CHAT, allow=replace(CHAT.allow, pipeline_parallel=(1,)))) == ()


def test_no_more_stages_than_the_fleet_has_blocks() -> None:
    assert offered(CHAT, SINGLES[:1]) == ()


def test_the_largest_stage_decides_on_memory() -> None:
    """81 layers of which two stages take 40 and 41; the head lies in the last."""
    odd = replace(LLAMA_70B, layers=81, checkpoint_bytes=None)
    whole = weights(odd, scheme("bf16"), 1, 1).total
    fullest = weights(odd, scheme("bf16"), 1, 2).total
    assert 0.5 * whole < fullest < 0.53 * whole


@pytest.mark.parametrize(
    ("rate", "hits", "expected"),
    [(300, 0.0, 12), (150, 0.0, 6), (300, 0.5, 7)],
    ids=["as much as is asked", "half of it", "half of the prompt known"],
)
def test_what_stages_hand_over(rate: int, hits: float, expected: int) -> None:
    """4 x 8192 bytes a token; 1 x (1000 + 200) tokens a second: 39.3 MB/s; of 0.3 requests 11.8."""
    assert handed_over(LLAMA_70B) == 32_768
    demand = replace(CHAT.demand, rate_mrps=rate, prefix_hit_rate=hits)  # type: ignore[type-var]
    [way] = offered(replace(CHAT, demand=demand))
    assert way.capacity_mrps is not None
    assert way.capacity_mrps > rate
    assert way.network_mbs == expected


def test_a_slow_network_makes_a_slow_pipeline() -> None:
    slow = tuple(replace(node, network_gbs=0.05) for node in SINGLES)
    fast, other = offered(CHAT)[0], offered(CHAT, (*SINGLES[1:], *slow[:1]))
    assert not other or (other[0].capacity_mrps or 0) < (fast.capacity_mrps or 0)
    assert other == offered(CHAT, slow)  # one slow node is one too many: a candidate names none


def test_engines_that_cannot_span_nodes_say_so() -> None:
    asked = replace(CHAT, allow=replace(CHAT.allow, engines=("tensorrt-llm",)))
    found = size(
        Fleet("lab", SINGLES), [asked], {"tensorrt-llm": replace(vllm(), name="tensorrt-llm")}
    )
    assert found.candidates["chat"] == ()
    assert any("under MPI only" in one.reason for one in found.dropped["chat"])


def test_what_stages_hand_over_follows_what_each_asks() -> None:
    half = replace(CHAT, name="half", demand=replace(CHAT.demand, rate_mrps=150))  # type: ignore[type-var]
    found = size(Fleet("lab", SINGLES), [CHAT, half], {"vllm": vllm()}).candidates
    assert [way.network_mbs for name in ("chat", "half") for way in found[name]] == [12, 6]


def test_sizing_again_for_a_scenario_counts_what_it_asks() -> None:
    fleet, engines = Fleet("lab", SINGLES), {"vllm": vllm()}
    before = SizedBefore(engines, {})
    before.know(fleet, [CHAT], size(fleet, [CHAT], engines))
    less = replace(CHAT, demand=replace(CHAT.demand, rate_mrps=150))  # type: ignore[type-var]
    assert before.size(fleet, [less], None) == size(fleet, [less], engines)
