"""What is written is read back as it was: states, plans; and broken plans are told."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from builders import a100, candidate, deployment, fleet, gpu, node, place, problem, replica, use
from optimizer.documents import (
    DocumentFaults,
    json_text,
    load,
    plan_json,
    read_plan,
    state_document,
    write_json,
    yaml_text,
)
from optimizer.domain.outcome import Objective, Outcome, Termination
from optimizer.domain.plan import Plan, PlanInput, PlanRun, Sighting
from optimizer.domain.workload import Slo
from optimizer.planning import compose

SEEN = (Sighting(0.5, None, 2_000_000), Sighting(1.0, 2_500_000, 2_000_000))
GOOD = Path(__file__).parents[1] / "data" / "good"


@pytest.mark.parametrize(("suffix", "text"), [("json", json_text), ("yaml", yaml_text)])
def test_a_state_comes_back(tmp_path, suffix, text):
    beside = [GOOD / "fleet.yaml", GOOD / "workloads.yaml"]
    first = load([*beside, GOOD / "state.yaml"])
    assert len(first.state.replicas) == 3
    assert len(first.state.instances) == 1
    file = tmp_path / f"state.{suffix}"
    file.write_text(text(state_document(first.state, "small")), "utf-8")
    again = load(beside, state_path=file)
    assert (again.state, again.state_fleet) == (first.state, "small")


def small_plan() -> Plan:
    """MIG, a share, moves and unmet demand."""
    cut, shared = a100(), gpu("l40s", memory_gib=44)
    machines = fleet(node("a", cut, 2, price=1.5), node("b", shared, 1, price=0.7))
    asked = [
        replace(deployment("chat", rps=5), slo=Slo(800, 50.5)),
        deployment("vision", replicas=1),
    ]
    ways = [
        candidate("chat", cut, profile="3g.40gb", rps=1.5),
        candidate("vision", shared, share=use(memory_gib=6, compute=0.15)),
    ]
    before = place(replica("chat/0", "a/0", mig="3g.40gb@0"), empty=["a/1 1g.10gb@0"])
    share = use(memory_gib=6, compute=0.15)
    after = place(
        replica("chat/0", "a/1", mig="3g.40gb@4"),
        replica("chat/1", "a/1", mig="3g.40gb@0"),
        replica("vision/0", "b/0", share=share),
        empty=["a/0 2g.20gb@2"],
    )
    outcome = Outcome(
        Termination.WITHIN_GAP,
        after,
        objectives=(Objective("unmet", 2000, 2000, priority=3), Objective("disruption", 3, 2)),
        stopped_by="gap",
    )
    return compose(
        problem(machines, asked, ways, before),
        outcome,
        inputs=(PlanInput("fleet.yaml", "0" * 64, "Fleet"),),
        options={"gap": 0.01, "seed": 7},
        run=PlanRun(1.25, 2, "2026-01-05T02:00:00Z", "gap", SEEN),
        dropped={},
        version="0.1.0",
    )


@pytest.fixture(scope="module")
def plan():
    return small_plan()


def test_a_plan_comes_back(tmp_path, plan):
    assert plan.moves
    assert plan.unmet
    assert plan.placement.instances
    file = tmp_path / "plan.json"
    write_json(file, plan_json(plan))
    again = read_plan(file)
    # A share is written as what its replica uses too, whatever the plan said of it.
    assert again == replace(plan, uses=again.uses)
    assert plan_json(again) == plan_json(plan)
    write_json(file, plan_json(again))
    assert read_plan(file) == again


def test_a_plan_can_stand_for_a_state(tmp_path, plan):
    file = tmp_path / "plan.json"
    write_json(file, plan_json(plan))
    found = load([], need=(), state_path=file)
    assert found.state == plan.placement
    assert load([file], need=("State",)).state == plan.placement


VALUES = (None, -1, 0, 1.5, 10**30, "", "x", "a/9", [], {}, [[]], {"a": 1}, True, "NaN")


def broken(value, chance):
    """The JSON value with one part of it replaced, left out or doubled."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = chance.choice(keys)
    changed = dict(value) if isinstance(value, dict) else list(value)
    match chance.randrange(8):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, list):
            changed.append(changed[key])
        case 1:
            changed[f"{key}x"] = changed[key]
        case _:
            changed[key] = broken(value[key], chance)
    return changed


def faults_of(read, file):
    """What is wrong with a file, in words."""
    try:
        read(file)
    except DocumentFaults as faults:
        return [str(fault) for fault in faults.faults]
    return []


def test_a_broken_plan_is_a_fault_and_nothing_else(tmp_path, plan):
    chance = random.Random("plans")
    whole = plan_json(plan)
    told = 0
    file = tmp_path / "plan.json"
    for _ in range(300):
        file.write_text(json.dumps(broken(whole, chance)))
        for read in (read_plan, lambda f: load([], need=(), state_path=f)):
            found = faults_of(read, file)
            told += bool(found)
            assert all(line.startswith(str(file)) for line in found)
    assert told > 200
