from pathlib import Path

import pytest

from optimizer.documents import DocumentFaults
from optimizer.domain.scenario import AddDeployments, Assign, Lose, Scale
from optimizer.scenarios.quick import load_with, quick, scaling

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = [ROOT / "clusters" / "tutorial.yaml", ROOT / "workloads" / "tutorial.yaml"]

CUSTOMER = """\
kind: Workloads
version: 1
name: globex
deployments:
  - name: globex-chat
    tenant: globex
    model: qwen3-14b
    demand: {requests_per_second: 1.5, input_tokens: 700, output_tokens: 200}
"""


def asked(**flags):
    found = load_with(TUTORIAL, quick(**flags))
    assert found.bad_scenarios == ()
    (scenario,) = found.scenarios
    return scenario


def test_nothing_asked_is_no_scenario():
    assert quick() is None
    assert load_with(TUTORIAL, None).scenarios == ()


def test_flags_make_one_scenario_in_which_all_happens(tmp_path):
    customer = tmp_path / "customer.yaml"
    customer.write_text(CUSTOMER, encoding="utf-8")
    scenario = asked(
        add=[customer],
        lose=[("node", "l40s-01"), ("rack", "r1")],
        scale=[("all", 1.5), ("tenant:acme", 2.0)],
    )
    assert scenario.name == "add customer, lose l40s-01, lose r1, demand x1.5, acme x2"
    added, *rest = scenario.changes
    assert isinstance(added, AddDeployments)
    assert [d.name for d in added.deployments] == ["globex-chat"]
    assert added.deployments[0].demand.rate_mrps == 1500
    assert rest == [
        Lose("node", "l40s-01"),
        Lose("rack", "r1"),
        Scale("all", None, 1_500_000),
        Scale("tenant", "acme", 2_000_000),
    ]


def test_a_set_value_means_what_it_means_in_a_document():
    scenario = asked(assign=["deployments.chat.slo.tpot_ms=40"])
    assert scenario.name == "chat.slo.tpot_ms=40"
    assert scenario.changes == (Assign("deployment", "chat", ("slo", "tpot_ms"), 40),)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"lose": [("node", "l40s-1")]}, 'did you mean "l40s-01"?'),
        ({"assign": ["deployments.chat.slo.tpot=40"]}, "tpot_ms"),
        ({"assign": ["deployments.chat.slo.tpot_ms=soon"]}, "number"),
        ({"scale": [("all", -1.0)]}, "must be at least"),
    ],
)
def test_a_wrong_flag_is_told_as_in_a_document(flags, told):
    with pytest.raises(DocumentFaults) as error:
        load_with(TUTORIAL, quick(**flags))
    assert told in str(error.value)
    assert str(error.value).startswith("the command line: ")


def test_scaling_is_of_all_or_of_somebody():
    assert scaling("1.5") == ("all", 1.5)
    assert scaling("tenant:acme=2") == ("tenant:acme", 2.0)
    for wrong in ("much", "acme=2", "tenant:=2", "rack:r1=2", ""):
        with pytest.raises(DocumentFaults, match="FACTOR"):
            scaling(wrong)


def test_a_set_without_a_value_is_a_fault():
    with pytest.raises(DocumentFaults, match="FIELD=VALUE"):
        quick(assign=["deployments.chat.slo.tpot_ms"])


def test_a_faulty_customer_is_told_by_its_own_file(tmp_path):
    customer = tmp_path / "customer.yaml"
    customer.write_text(CUSTOMER.replace("qwen3-14b", "qwen3-14"), encoding="utf-8")
    with pytest.raises(DocumentFaults, match=r"customer.yaml:7:12: deployments\[0\].model"):
        quick(add=[customer])
