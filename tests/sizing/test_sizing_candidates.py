"""What is offered to placement, and what is dropped with which reason."""

from dataclasses import replace

import pytest

from optimizer.domain.config import Candidate, ReplicaConfig
from optimizer.domain.fleet import Fleet, Node, Sharing
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.workload import (
    Allow,
    Demand,
    Deployment,
    MeasuredOption,
    Needs,
    Slo,
)
from optimizer.sizing import size
from optimizer.sizing.replica import _over
from sizing_examples import (
    A100,
    EMBEDDER_8B,
    GPT_OSS_20B,
    H100,
    L40S,
    LLAMA_8B,
    LLAMA_70B,
    T4,
    vllm,
)

WHOLE, MIG, SHARED = Sharing.WHOLE, Sharing.MIG, Sharing.SHARED
H100_NODE = Node("h", H100, 8, sharing=(MIG, WHOLE))
A100_NODE = Node("a", A100, 8, sharing=(WHOLE,))
L40S_NODE = Node("l", L40S, 4, sharing=(WHOLE, SHARED), nvlink_domain="none")
T4_NODE = Node("t", T4, 2, sharing=(WHOLE, SHARED), nvlink_domain="none")
FLEET = Fleet("lab", (H100_NODE, A100_NODE, L40S_NODE, T4_NODE))
ENGINES = {"vllm": vllm()}
CHAT = Deployment(
    "chat",
    model=LLAMA_8B,
    demand=Demand(6000, 900, 220, 8192),
    slo=Slo(800, 50, 95),
)


def sized(deployment: Deployment, fleet: Fleet = FLEET, running: Placement | None = None):
    found = size(fleet, [deployment], ENGINES, running)
    return found.candidates[deployment.name], found.dropped[deployment.name]


def rooms(candidates: tuple[Candidate, ...]) -> set[tuple[str, str, object]]:
    return {
        (c.gpu, c.shape.sharing.value, c.shape.profile or c.shape.share or c.shape.gpus)
        for c in candidates
    }


def test_a_chat_model_is_offered_slices_groups_and_shares():
    candidates, _ = sized(CHAT)
    offered = rooms(candidates)
    assert (H100.name, "mig", "3g.40gb") in offered
    assert {(H100.name, "whole", n) for n in (1, 2, 4, 8)} <= offered
    assert any(kind == "shared" and gpu == L40S.name for gpu, kind, _ in offered)


def test_candidates_are_complete():
    for c in sized(CHAT)[0]:
        assert None not in [getattr(c.config, f) for f in ReplicaConfig.__dataclass_fields__]
        assert c.capacity_mrps is not None
        assert c.capacity_mrps > 0
        assert c.load_mib > 7000
        assert c.predicted is not None
        assert c.predicted.ttft_ms is not None
        assert c.predicted.tpot_ms is not None
        assert c.predicted.ttft_ms <= 800
        assert c.predicted.tpot_ms <= 50
        assert c.reasons
        assert c.config.tensor_parallel == c.shape.gpus


def test_candidates_fit_their_rooms():
    for c in sized(CHAT)[0]:
        gpu = {g.name: g for g in FLEET.products()}[c.gpu]
        room = gpu.room
        if c.shape.profile is not None:
            found = gpu.slice_room(gpu.mig.profile(c.shape.profile))
            assert found is not None
            room = found
        assert c.use.fits_in(room)
        if c.shape.share is not None:
            assert c.use == c.shape.share


def test_every_refusal_has_numbers():
    _, dropped = sized(CHAT)
    refused = {d.what: d.reason for d in dropped}
    assert "9.8 GiB" in refused[f"{H100.name} 1g.10gb bf16 vllm"]
    assert "weights 15.0 GiB" in refused[f"{H100.name} 1g.10gb bf16 vllm"]


def test_a_profile_of_unknown_memory_is_offered_to_nobody():
    candidates, _ = sized(CHAT)
    assert not any(c.shape.profile == "4g.40gb" for c in candidates)


def test_an_slo_out_of_reach_says_the_best_there_is():
    strict = replace(CHAT, slo=Slo(None, 3, 95))
    candidates, dropped = sized(strict, Fleet("one", (A100_NODE,)))
    assert not candidates
    assert all("at batch 1" in d.reason and "SLO 3 ms" in d.reason for d in dropped)


def test_a_time_just_above_its_limit_is_not_rounded_onto_it():
    times = ((55.4, 40), (40.2, 40), (40.004, 40), (3.2, 2.5))
    assert [_over(ms, limit) for ms, limit in times] == ["55", "40.2", "40.004", "3"]


def test_fp8_is_offered_where_it_computes():
    by_gpu = {c.gpu: c.config.precision for c in sized(CHAT)[0]}
    assert by_gpu[H100.name] == "fp8"
    assert by_gpu[A100.name] == "bf16"


def test_a_gpu_without_bf16_runs_fp16():
    small = replace(CHAT, model=replace(LLAMA_8B, layers=8), slo=None)
    found = [c for c in sized(small)[0] if c.gpu == T4.name]
    assert found
    assert {c.config.precision for c in found} == {"fp16"}


def test_a_repack_keeps_its_precision():
    quantised = replace(CHAT, precision="int4")
    assert {c.config.precision for c in sized(quantised)[0]} == {"int4"}


@pytest.mark.parametrize(
    ("allow", "gpus", "kinds"),
    [
        (Allow(gpus=(A100.name,)), {A100.name}, {"whole"}),
        (Allow(sharing=("mig",)), {H100.name}, {"mig"}),
        (Allow(forbidden=(("gpu", H100.name),), sharing=("mig",)), set(), set()),
        (
            Allow(tensor_parallel=(2,), sharing=("whole",), gpus=(H100.name,)),
            {H100.name},
            {"whole"},
        ),
    ],
)
def test_allow_is_honoured(allow: Allow, gpus: set[str], kinds: set[str]):
    candidates, dropped = sized(replace(CHAT, allow=allow))
    assert {c.gpu for c in candidates} == gpus
    assert {c.shape.sharing.value for c in candidates} == kinds
    assert dropped


def test_only_allowed_group_sizes():
    only_two = replace(CHAT, allow=Allow(tensor_parallel=(2,), sharing=("whole",)))
    assert {c.shape.gpus for c in sized(only_two)[0]} == {2}


@pytest.mark.parametrize("pin", [("a",), ("a/3",)], ids=["node", "gpu"])
def test_a_pin_leaves_its_products(pin: tuple[str, ...]):
    assert {c.gpu for c in sized(replace(CHAT, pin=pin))[0]} == {A100.name}


def test_a_forbidden_precision_is_named():
    allow = Allow(forbidden=(("precision", "fp8"),))
    candidates, dropped = sized(replace(CHAT, allow=allow))
    assert "fp8" not in {c.config.precision for c in candidates}
    assert any(d.what == "fp8" for d in dropped)


def test_an_engine_without_a_card_is_named():
    candidates, dropped = sized(replace(CHAT, allow=Allow(engines=("sglang",))))
    assert not candidates
    assert any(d.what == "sglang" for d in dropped)


def test_nothing_dominated_is_offered():
    candidates, _ = sized(CHAT)
    for small in candidates:
        for large in candidates:
            same = small.gpu == large.gpu and small.shape.sharing is large.shape.sharing
            if same and small.shape.sharing is WHOLE and small.shape.gpus < large.shape.gpus:
                assert (small.capacity_mrps or 0) < (large.capacity_mrps or 0)


def test_no_more_than_one_way_a_room():
    keys = [(c.gpu, c.shape) for c in sized(CHAT)[0]]
    assert len(keys) == len(set(keys))


def test_without_demand_one_replica_is_counted_not_its_rate():
    candidates, _ = sized(Deployment("plain", model=LLAMA_8B))
    assert candidates
    assert all(c.capacity_mrps is None for c in candidates)
    assert max(c.shape.gpus for c in candidates if c.gpu == H100.name) == 1


def test_a_large_model_needs_a_group():
    big = replace(CHAT, model=LLAMA_70B, slo=None)
    a100 = [c.shape.gpus for c in sized(big)[0] if c.gpu == A100.name]
    assert min(a100) == 2


def test_groups_over_pcie_are_marked():
    big = replace(CHAT, model=LLAMA_70B, slo=None)
    groups = [c for c in sized(big)[0] if c.gpu == L40S.name and c.shape.gpus > 1]
    assert groups
    assert all(any("PCIe" in r for r in c.reasons) for c in groups)


def test_throughput_only_takes_all_it_can():
    batch = replace(CHAT, slo=None)
    relaxed = {(c.gpu, c.shape): c.capacity_mrps for c in sized(batch)[0]}
    for c in sized(CHAT)[0]:
        assert (c.capacity_mrps or 0) <= (relaxed.get((c.gpu, c.shape)) or 0) * 1.01


def test_an_embedder_is_sized_by_its_prompts():
    embed = Deployment("embed", model=EMBEDDER_8B, demand=Demand(5000, 400), slo=Slo(500))
    candidates, _ = sized(embed)
    assert candidates
    assert all(c.predicted and c.predicted.tpot_ms is None for c in candidates)


def test_demand_without_lengths_is_refused():
    candidates, dropped = sized(replace(CHAT, demand=Demand(5000)))
    assert not candidates
    assert "input_tokens" in dropped[0].reason


def test_a_quantised_checkpoint_keeps_its_own_precision():
    moe = replace(CHAT, model=GPT_OSS_20B, slo=None)
    assert {c.config.precision for c in sized(moe)[0]} == {"mxfp4"}


# Deployments by needs and by measurement


def test_needs_are_offered_slices_and_a_share():
    vision = Deployment("vision", needs=Needs(6144, 250_000, 100_000))
    offered = rooms(sized(vision)[0])
    assert (H100.name, "mig", "1g.10gb") in offered
    assert (L40S.name, "shared", Use(6144, 250_000, 100_000)) in offered
    assert (A100.name, "whole", 1) in offered  # no slices and no sharing there
    assert not any(gpu == H100.name and kind == "whole" for gpu, kind, _ in offered)


def test_each_need_must_fit_the_slice():
    hungry = Deployment("vision", needs=Needs(6144, 250_000, 150_000))
    _, dropped = sized(hungry)
    assert any(d.what.endswith("1g.10gb") and "SMs" in d.reason for d in dropped)


def test_compute_scales_with_the_dense_peak():
    needs = Needs(6144, 0, 400_000, measured_on=L40S.name)
    found = {c.gpu: c.use.compute_ppm for c in sized(Deployment("vision", needs=needs))[0]}
    assert found[L40S.name] == 400_000
    assert found[A100.name] == pytest.approx(400_000 * 362.05 / 312, abs=1)


def test_compute_measured_on_an_unknown_product():
    needs = Needs(6144, 0, 400_000, measured_on="b200-180gb-sxm")
    candidates, dropped = sized(Deployment("vision", needs=needs))
    assert not candidates
    assert all("b200" in d.reason for d in dropped)


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (Needs(mig_profile="3g.40gb"), {(H100.name, "mig", "3g.40gb")}),
        (Needs(gpus=8), {(H100.name, "whole", 8), (A100.name, "whole", 8)}),
        (
            Needs(gpu_ppm=460_000),
            {
                (L40S.name, "shared", L40S.fraction(460_000)),
                (T4.name, "shared", T4.fraction(460_000)),
            },
        ),
    ],
    ids=["profile", "gpus", "fraction"],
)
def test_named_rooms(needs: Needs, expected: set[tuple[str, str, object]]):
    assert rooms(sized(Deployment("legacy", needs=needs))[0]) == expected


def test_measured_ways_keep_their_rates():
    ways = (
        MeasuredOption(H100.name, 410_000, "1g.10gb", latency_ms=9),
        MeasuredOption(H100.name, 1_350_000, "3g.40gb", latency_ms=30),
        MeasuredOption("unknown", 5),
    )
    resnet = Deployment("resnet", measured=ways, demand=Demand(2_900_000), slo=Slo(20))
    candidates, dropped = sized(resnet)
    assert [(c.shape.profile, c.capacity_mrps) for c in candidates] == [("1g.10gb", 410_000)]
    assert any("30 ms" in d.reason for d in dropped)


# What runs now


def running(**fields: object) -> Placement:
    return Placement((Replica("chat/0", "chat", **fields),))  # type: ignore[arg-type]


def test_a_running_configuration_that_is_not_offered_is_kept():
    now = running(
        gpus=("h/0",),
        mig=PlacedProfile(0, "3g.40gb"),
        config=ReplicaConfig(engine="vllm", precision="bf16"),
    )
    candidates, _ = sized(CHAT, running=now)
    kept = [c for c in candidates if c.running_only]
    assert [c.config.precision for c in kept] == ["bf16"]
    assert now.replicas[0].runs_as(kept[0], H100.name)


def test_a_running_configuration_that_is_offered_adds_nothing():
    now = running(gpus=("h/0",), mig=PlacedProfile(0, "3g.40gb"))
    assert not any(c.running_only for c in sized(CHAT, running=now)[0])


def test_a_running_configuration_that_became_illegal_is_not_offered():
    now = running(gpus=("h/0",), config=ReplicaConfig(precision="bf16"))
    forbidden = replace(CHAT, allow=Allow(forbidden=(("precision", "bf16"),)))
    assert not any(c.running_only for c in sized(forbidden, running=now)[0])


def test_a_running_share_of_another_size_is_kept():
    share = Use(8000, 260_000, 200_000)
    vision = Deployment("vision", needs=Needs(6144, 250_000, 100_000))
    now = Placement((Replica("vision/0", "vision", ("l/0",), share=share),))
    kept = [c for c in sized(vision, running=now)[0] if c.running_only]
    assert [c.shape.share for c in kept] == [share]
    small = Placement((Replica("vision/0", "vision", ("l/0",), share=Use(5000, 1, 1)),))
    assert not any(c.running_only for c in sized(vision, running=small)[0])


def test_order_of_nodes_changes_nothing():
    backwards = Fleet("lab", tuple(reversed(FLEET.nodes)))
    assert sized(CHAT)[0] == sized(CHAT, backwards)[0]


def test_deployments_sized_alike_get_what_each_gets_alone():
    """What they ask, and who they are, may differ; their traffic and what they promise must not."""
    busier = replace(CHAT.demand, rate_mrps=42_000)
    more = [
        replace(CHAT, name="more", tenant="other", priority=5, min_replicas=3, demand=busier),
        replace(CHAT, name="stricter", slo=Slo(800, 25, 95)),
        replace(CHAT, name="longer", demand=replace(CHAT.demand, input_tokens=4000)),
    ]
    together = size(FLEET, [*more, CHAT], ENGINES)
    for deployment in (*more, CHAT):
        ways, dropped = sized(deployment)
        assert together.candidates[deployment.name] == ways != ()
        assert together.dropped[deployment.name] == dropped
