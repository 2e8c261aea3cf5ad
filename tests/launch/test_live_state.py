"""What runs as a placement: ours, others', and what cannot be told."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from launchplans import GROUP, MIG_SLICES, SHARES, WHOLE, launch_plan
from optimizer.domain.placement import Instance
from optimizer.launch import LaunchRefused, State
from optimizer.launch.cluster import absent, away
from optimizer.launch.live import Taken, account
from optimizer.launch.specs import specify

REPLICAS = (GROUP, *MIG_SLICES, WHOLE, *SHARES)
SPECS = specify(launch_plan(REPLICAS), REPLICAS, simulated=True, run="r")


def taken(specs=SPECS, /, **others):
    """What Ray says when these run, and others hold so much more of some GPUs."""
    parts = {"n2/9": 0.0}
    for spec in specs:
        for name, amount in spec.resources:
            if name.startswith("dev:"):
                gpu = name.removeprefix("dev:")
                parts[gpu] = parts.get(gpu, 0.0) + amount
    for gpu, part in others.pop("more", {}).items():
        parts[gpu] = parts.get(gpu, 0.0) + part
    return Taken(parts, others.pop("holders", {}), others.pop("plain", {}))


def rows(specs=SPECS, state=State.READY):
    return [
        {**absent(s.actor_name, state, ""), "generation": s.generation, "fleet": s.fleet}
        for s in specs
    ]


def test_what_was_placed_is_what_runs():
    live = account(None, SPECS, rows(), taken())
    assert live.fleet == "toy"
    assert live.placement.replicas == tuple(sorted(REPLICAS, key=lambda r: r.id))
    assert (live.foreign, live.doubts) == ((), ())


def test_what_others_hold_is_occupied_room():
    others = taken(
        more={"n2/9": 1.0, "n2/2": 0.0, "n1/0": 0.125},
        holders={"n2/9": ["their/actor"], "n1/0": ["slice"]},
    )
    live = account("toy", SPECS, rows(), others)
    [whole] = live.foreign
    assert (whole.gpus, whole.share, whole.mig) == (("n2/9",), None, None)
    assert live.by == {whole.deployment: "their/actor"}
    assert live.doubts == ("slice holds 0.125 of n1/0, and which instance is not told",)


def test_beside_shares_of_ours_others_hold_memory_in_proportion():
    specs = [s for s in SPECS if s.id == "vision/0"]  # 0.4 of 140 GiB
    live = account("toy", specs, rows(specs), taken(specs, more={"n2/2": 0.5}))
    [other] = live.foreign
    assert other.share is not None
    assert other.share.memory_mib == 70 * 1024
    assert live.by == {other.deployment: "a task or placement group"}


def test_gpus_of_rays_own_counting_are_a_doubt():
    live = account("toy", SPECS, rows(), taken(plain={"n2": 2.0}))
    assert live.foreign == ()
    [doubt] = live.doubts
    assert doubt.startswith("node n2: 2 of Ray's own GPUs are taken")


def test_the_copy_that_serves_counts_and_the_other_is_occupied_room():
    old = next(s for s in SPECS if s.id == "code/0")
    new = replace(old, generation=1, devices=("n2/9",), replica=replace(WHOLE, gpus=("n2/9",)))
    states = [*rows([old]), *rows([new], State.STARTING)]
    live = account("toy", [old, new], states, taken([old]))
    assert [r.gpus for r in live.placement.replicas] == [("n1/1",)]
    assert [r.gpus for r in live.foreign] == [("n2/9",)]
    assert live.doubts == ("code/0 runs a second time, on n2/9: finish its rebalance",)


def test_empty_instances_are_kept_but_for_those_in_use():
    free, used = (Instance("n1/0", r.mig) for r in MIG_SLICES)
    only = [s for s in SPECS if s.id == MIG_SLICES[1].id]
    live = account("toy", only, rows(only), taken(only), [free, used])
    assert live.placement.instances == (free,)


def test_of_several_fleets_one_must_be_named():
    other = [replace(s, fleet="other") for s in SPECS if s.id == "code/0"]
    ours = [s for s in SPECS if s.id == "big/0"]
    both = [*ours, *other]
    with pytest.raises(LaunchRefused, match="several fleets run there: other, toy"):
        account(None, both, rows(both), taken(both))
    live = account("toy", both, rows(both), taken(both))
    assert [r.id for r in live.placement.replicas] == ["big/0"]
    assert [r.gpus for r in live.foreign] == [WHOLE.gpus]
    assert list(live.by.values()) == ["other/code/0"]


def test_a_reason_names_the_nodes_that_are_gone():
    nodes = [
        {"Alive": True, "Resources": {"host:n1": 1.0}},
        {"Alive": False, "Resources": {"host:n2": 1.0}},
    ]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert away(ray, ["n1", "n1"]) == ""
    assert away(ray, ["n3", "n1", "n2"]) == "; nodes n2 and n3 are not on the cluster"
