"""The reference documents: they load, keep what they promise, and can be planned to proof."""

from pathlib import Path

import pytest

from optimizer.documents import Documents, load
from optimizer.domain.outcome import Limits
from optimizer.optimize import Inputs, optimize, pose
from optimizer.verify import verify

ROOT = Path(__file__).parent.parent
FLEET, WORKLOADS = ROOT / "clusters/lab-64.yaml", ROOT / "workloads/prod.yaml"
STATE, SCENARIOS = ROOT / "clusters/lab-64.state.yaml", ROOT / "workloads/lab-64.scenarios.yaml"


def inputs(documents: Documents) -> Inputs:
    assert documents.fleet is not None
    assert documents.workloads is not None
    cards = {card.name: card for card in documents.catalogue.engine_cards()}
    return Inputs(documents.fleet, documents.workloads, cards, documents.state)


@pytest.fixture(scope="module")
def lab() -> Documents:
    return load([FLEET, WORKLOADS], state_path=STATE)


def test_counts_promised(lab):
    assert sum(node.gpus for node in lab.fleet.nodes) == 64
    assert len(lab.fleet.products()) == 4
    assert len({node.rack for node in lab.fleet.nodes}) == 4
    assert lab.fleet.priced
    assert len(lab.workloads.deployments) >= 25
    assert len({d.tenant for d in lab.workloads.deployments}) == 8


def test_every_feature_has_an_example(lab):
    deployments = lab.workloads.deployments
    assert any(d.measured for d in deployments)
    assert any(d.needs and d.needs.mig_profile for d in deployments)
    assert any(d.needs and d.needs.memory_mib for d in deployments)
    assert any(d.model and d.model.task == "embed" for d in deployments)
    assert any(d.model and d.slo is None for d in deployments)
    assert any(d.spread_node for d in deployments)
    assert any(d.spread_rack for d in deployments)
    assert {d.isolate for d in deployments} >= {"none", "tenant", "gpu"}
    assert any(d.pin for d in deployments)


def test_state_is_legal_meets_demand_and_is_scattered(lab):
    problem, _ = pose(inputs(lab))
    assert lab.state_fleet == lab.fleet.name
    assert verify(problem, lab.state) == ()
    assert lab.state.instances, "no MIG instance stands empty"


def test_scenarios_are_understood():
    documents = load([FLEET, WORKLOADS, SCENARIOS])
    assert documents.bad_scenarios == ()
    assert len(documents.scenarios) >= 6


def test_tutorial_is_proved_and_uses_slices_and_shares():
    documents = load([ROOT / "clusters/tutorial.yaml", ROOT / "workloads/tutorial.yaml"])
    assert sum(node.gpus for node in documents.fleet.nodes) <= 8
    plan = optimize(inputs(documents), Limits(effort=20, time_limit_s=120)).plan
    assert plan.status == "optimal"
    assert plan.unmet == ()
    assert {gpu.mode for gpu in plan.gpus} >= {"mig", "shared"}


@pytest.mark.slow
def test_lab_is_planned_within_one_percent_of_its_bound(lab):
    scratch = inputs(load([FLEET, WORKLOADS]))
    plan = optimize(scratch, Limits(gap=0.01, effort=60, time_limit_s=240)).plan
    assert plan.unmet == ()
    assert plan.status in ("optimal", "within_gap")
    prices = {o.name: o for o in plan.objectives}
    assert prices["price_per_hour"].gap <= 0.01
    assert all(o.value == 0 for o in plan.objectives if o.name == "unmet")
    late = [
        d.name
        for d in plan.deployments
        if d.slo and d.predicted and d.slo.tpot_ms and (d.predicted.tpot_ms or 0) > d.slo.tpot_ms
    ]
    assert late == []
    assert {gpu.mode for gpu in plan.gpus} == {"mig", "whole", "shared", "empty"}
    assert any(len(replica.gpus) > 1 for replica in plan.placement.replicas)
