"""A model too large for any one node, from its documents to a plan and what follows."""

import json
from pathlib import Path

import pytest
from test_cli import fleetslice, folder  # noqa: F401  (a fixture)

FLEET = """
kind: Fleet
version: 1
name: lab
nodes:
  - {name: "h100-{01..04}", gpu: h100-80gb-sxm, gpus: 8, rack: r1, price_per_gpu_hour: 2.5,
     network_gbs: 50}
"""
WORK = """
kind: Workloads
version: 1
name: prod
deployments:
  - name: big
    model: llama-3.1-405b
    demand: {requests_per_second: 0.4, input_tokens: 1500, output_tokens: 300}
    slo: {ttft_ms: 8000, tpot_ms: 120}
    allow: {precisions: [bf16], engines: [vllm], tensor_parallel: [8], pipeline_parallel: [1, 2]}
"""
NODES = [f"h100-{number:02}" for number in range(1, 5)]


def drained(name: str) -> str:
    """The fleet with that node cordoned."""
    lines = FLEET.splitlines()
    first, rest = lines[5].replace("h100-{01..04}", "NAME"), lines[6]
    every = [first.replace("NAME", node) + rest for node in NODES]
    every = [one.replace("}", ", cordoned: true}") if name in one else one for one in every]
    return "\n".join([*lines[:5], *every, ""])


@pytest.fixture
def planned(folder):  # noqa: F811
    """The documents and a plan of them."""
    for name, text in (("fleet", FLEET), ("work", WORK)):
        Path(f"{name}.yaml").write_text(text)
    said = fleetslice("plan", "fleet.yaml", "work.yaml", "--out", "plan.json")
    assert said.code == 0, said.err
    assert "1× h100-80gb-sxm x16 bf16 pp2 vllm" in said.out
    return json.loads(Path("plan.json").read_text())


def test_a_pipeline_is_planned_judged_and_told(planned):
    [big] = planned["replicas"]
    assert len(big["gpus"]) == 16
    assert len({gpu.rpartition("/")[0] for gpu in big["gpus"]}) == 2
    assert (big["config"]["tensor_parallel"], big["config"]["pipeline_parallel"]) == (8, 2)
    assert planned["outcome"]["status"] == "optimal"
    assert planned["price_per_hour"] == 40.0
    assert fleetslice("verify", "fleet.yaml", "work.yaml", "plan.json").code == 0
    told = fleetslice("explain", "plan.json", "big").out
    assert "h100-80gb-sxm 2 x 8 GPUs: weights" in told
    assert "Its 2 stages hand over at most" in told
    dry = fleetslice("launch", "plan.json", "--dry-run").out
    assert "--pipeline-parallel-size 2" in dry
    assert "--nnodes 2" in dry


def test_a_slow_network_lets_none_through_and_the_judge_says_so(planned):
    slow = FLEET.replace("network_gbs: 50", "network_gbs: 0.001")
    Path("slow.yaml").write_text(slow)
    said = fleetslice("plan", "slow.yaml", "work.yaml")
    assert said.code == 3
    broken = fleetslice("verify", "slow.yaml", "work.yaml", "plan.json")
    assert broken.code == 7
    assert "network_bandwidth" in broken.out + broken.err or "allowed" in broken.out + broken.err


def test_draining_a_node_moves_its_stages(planned):
    gone = planned["replicas"][0]["gpus"][0].rpartition("/")[0]
    Path("drained.yaml").write_text(drained(gone))
    arguments = ("drained.yaml", "work.yaml", "--state", "plan.json")
    said = fleetslice("rebalance", *arguments, "--out", "after.json")
    assert said.code == 0, said.err
    after = json.loads(Path("after.json").read_text())
    assert gone not in {gpu.rpartition("/")[0] for gpu in after["replicas"][0]["gpus"]}
    # The new copy lies off the old one's nodes, so that it serves before the old one stops.
    assert [step["action"] for step in after["steps"]] == [
        "start",
        "shift_traffic",
        "drain",
        "stop",
    ]
    judged = fleetslice("verify", *arguments, "after.json")
    assert judged.code == 0, judged.out + judged.err


@pytest.mark.slow
def test_a_replay_keeps_the_slo(planned):
    assert fleetslice("simulate", "fleet.yaml", "work.yaml", "plan.json").code == 0
