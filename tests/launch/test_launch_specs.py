"""From a plan to the replicas to start: which, where, on what, by which command."""

from dataclasses import replace

import pytest

from launchplans import GROUP, MIG_SLICES, REPLICAS, SHARES, WHOLE, at, launch_plan
from optimizer.domain.config import ReplicaConfig
from optimizer.engines import EngineCommand, Known, Rendezvous
from optimizer.launch import AUTO, SIMULATED, LaunchRefused, node_setup, preview
from optimizer.launch.devices import HOST_PART, declared, visible
from optimizer.launch.ranks import bundles, environment
from optimizer.launch.specs import select, specify

PLAN = launch_plan()


def specs(*replicas, **said):
    said.setdefault("simulated", True)
    return {
        s.id: s for s in specify(launch_plan(replicas or REPLICAS), replicas or REPLICAS, **said)
    }


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        (None, ["big/0", "chat/0", "chat/1", "code/0", *(f"vision/{i}" for i in range(4))]),
        ("acme", ["big/0", "chat/0", "chat/1"]),
        ("chat", ["chat/0", "chat/1"]),
        ("chat/1", ["chat/1"]),
    ],
    ids=["all", "a tenant", "a deployment", "a replica"],
)
def test_select(only, chosen):
    assert [r.id for r in select(PLAN, only)] == chosen


@pytest.mark.parametrize(
    ("plan", "only", "told"),
    [
        (PLAN, "acmee", "did you mean 'acme'"),
        (launch_plan([WHOLE]), "chat", "places no replica of 'chat'"),
        (launch_plan([]), None, "nothing to launch"),
    ],
)
def test_select_refuses_with_a_reason(plan, only, told):
    with pytest.raises(LaunchRefused, match=told):
        select(plan, only)


def test_each_replica_holds_its_own_devices():
    found = specs()
    held = {name: spec.resources for name, spec in found.items()}
    assert held["big/0"] == (("host:n2", HOST_PART), ("dev:n2/0", 1.0), ("dev:n2/1", 1.0))
    assert held["chat/0"] == (("host:n1", HOST_PART), ("dev:n1/0", 0.5))
    assert held["chat/1"] == (("host:n1", HOST_PART), ("dev:n1/0", 0.25))
    assert held["vision/0"] == (("host:n2", HOST_PART), ("dev:n2/2", 0.4))
    assert visible(found["big/0"].devices) == "0,1"
    assert visible(found["vision/3"].devices) == "2"
    assert found["chat/0"].devices == ("n1/0:3g.40gb@4",)


WIDE = at(
    "big/1",
    *("n1/0", "n1/1", "n2/0", "n2/1"),
    config=ReplicaConfig(engine="vllm", tensor_parallel=2, pipeline_parallel=2),
)


def test_a_pipeline_over_nodes_has_a_rank_on_each():
    spec = specs(WIDE)["big/1"]
    assert spec.nodes == ("n1", "n2")
    assert bundles(spec) == [
        {f"host:{node}": HOST_PART, f"dev:{node}/0": 1.0, f"dev:{node}/1": 1.0}
        for node in spec.nodes
    ]
    seen = [environment(spec, {}, node)["CUDA_VISIBLE_DEVICES"] for node in spec.nodes]
    assert seen == ["0,1", "0,1"]
    command = EngineCommand(spec.argv, others=spec.others)
    lead = command.on(8000, Rendezvous("10.0.0.1", 29500)).argv
    follow = command.on(8000, Rendezvous("10.0.0.1", 29500, 1)).argv
    assert lead[-6:] == ("--nnodes", "2", "--node-rank", "0", "--master", "10.0.0.1:29500")
    assert follow[-6:] == ("--nnodes", "2", "--node-rank", "1", "--master", "10.0.0.1:29500")
    assert "8000" in lead
    assert "8000" not in follow


def test_parts_of_one_gpu_never_add_up_to_more_than_it():
    thirds = [replace(SHARES[0], id=f"vision/{i}") for i in range(3)]
    thirds = [replace(r, share=replace(r.share, memory_mib=140 * 1024 // 3)) for r in thirds]
    parts = [dict(s.resources)["dev:n2/2"] for s in specs(*thirds).values()]
    assert parts == [0.3333] * 3


def test_a_simulated_engine_is_told_the_predictions_and_the_limits():
    argv = " ".join(specs(WHOLE)["code/0"].argv)
    assert "--served-model-name code --ttft-ms 60 --tpot-ms 8" in argv
    assert "--max-num-seqs 8 --max-model-len 4096" in argv


@pytest.mark.parametrize(
    ("replicas", "told"),
    [
        ([at("big/0", "n1/1", "n2/0")], "big/0 spans n1 and n2, and its 1 pipeline stages do not"),
        ([replace(WIDE, gpus=("n1/0", "n2/0", "n2/1", "n2/2"))], "tensor-parallel groups lie in"),
        ([at("chat/0", "n9/0")], "no GPU n9/0"),
        ([WHOLE, at("chat/0", "n1/1")], "chat/0 are both placed on n1/1"),
        ([MIG_SLICES[0], replace(MIG_SLICES[0], id="chat/9")], "both placed on n1/0:3g.40gb@4"),
    ],
    ids=["a group over nodes", "uneven stages", "unknown GPU", "one GPU twice", "one slice twice"],
)
def test_specify_refuses_with_a_reason(replicas, told):
    with pytest.raises(LaunchRefused, match=told):
        specify(PLAN, replicas, simulated=True)


def test_every_reason_against_real_engines_is_told():
    with pytest.raises(LaunchRefused) as refused:
        specify(PLAN, [GROUP, *MIG_SLICES], simulated=False, known=Known())
    assert len(refused.value.reasons) == 3
    assert "--engine simulated" in str(refused.value)


def test_preview_says_where_and_how():
    lines = preview(launch_plan(), "globex", engine=SIMULATED)
    assert [line for line in lines if line.startswith("start ")] == [lines[1]]
    assert lines[1].startswith("start code/0 on n1/1: python3 -m optimizer.launch.simulated")
    with pytest.raises(LaunchRefused):
        preview(launch_plan(), "globex", engine=AUTO)


def test_node_setup_declares_each_gpu_once():
    lines = node_setup(PLAN, "10.0.0.1:6379")
    assert [line.partition(":")[0] for line in lines] == ["n1", "n2"]
    assert "--address=10.0.0.1:6379" in lines[1]
    assert '"dev:n2/3": 1' in lines[1]
    assert sum(declared(PLAN).values()) == 2 + 6
