"""Hard rules that clash, from documents: the minimal set by name, the smallest changes, exit 3."""

import json
import sys
from pathlib import Path

import pytest

from optimizer.cli.app import run

FLEET = """\
kind: Fleet
version: 1
name: toy
nodes:
  - {name: "big-{1..4}", gpu: a100-80gb-sxm, gpus: 2, rack: r1, price_per_gpu_hour: 2.0}
"""
SPARE = '  - {name: "far-{1..2}", gpu: a100-80gb-sxm, gpus: 2, rack: r2, price_per_gpu_hour: 2.0}\n'
WORKLOADS = """\
kind: Workloads
version: 1
name: toy
deployments:
  - name: chat
    measured:
      - {gpu: a100-80gb-sxm, mig_profile: 3g.40gb, requests_per_second: 10, latency_ms: 9}
    demand: {requests_per_second: 15}
    RULES
  - {name: other, needs: {gpus: 1}}
"""


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """Plans the documents; exit code, rules that clash, notes."""
    monkeypatch.chdir(tmp_path)

    def called(rules: str, fleet: str = FLEET, workloads: str = WORKLOADS):
        Path("fleet.yaml").write_text(fleet, encoding="utf-8")
        Path("workloads.yaml").write_text(workloads.replace("RULES", rules), encoding="utf-8")
        flags = ["fleet.yaml", "workloads.yaml", "--effort", "5", "-o", "json", "--out", "p.json"]
        monkeypatch.setattr(sys, "argv", ["fleetslice", "plan", *flags])
        code = run()
        data = json.loads(capsys.readouterr().out)
        return (
            code,
            data["outcome"]["status"],
            data["outcome"]["conflict"],
            data["outcome"]["notes"],
        )

    return called


def test_outliving_a_node_with_too_few_replicas(planned):
    code, status, rules, notes = planned("replicas: {max: 2}\n    survive: node")
    assert (code, status) == (3, "infeasible")
    assert rules == ["replica_bounds: chat", "survive: chat"]
    assert "a plan is possible with chat.replicas.max 2 -> 3" in notes


def test_outliving_a_rack_where_there_is_one(planned):
    code, _, rules, notes = planned("survive: rack")
    assert (code, rules) == (3, ["survive: chat"])
    assert notes[0] == "a plan is possible with chat.survive rack -> node"
    assert notes[1].startswith("a plan is possible with 1 more a100-80gb-sxm (1 node of 1")
    assert planned("survive: rack", FLEET + SPARE)[0] == 0


def test_explain_tells_the_clash_of_a_deployment(planned, monkeypatch, capsys):
    planned("survive: rack")
    monkeypatch.setattr(sys, "argv", ["fleetslice", "explain", "p.json", "chat"])
    assert run() == 0
    text = capsys.readouterr().out
    assert "No plan is possible: survive: chat cannot hold." in text
    assert "A plan is possible with chat.survive rack -> node." in text


def test_what_is_kept_free_costs_too_much(planned):
    limits = "reserve: [{gpu: a100-80gb-sxm, gpus: 1, count: 3}]\nlimits: {price_per_hour: 5}\n"
    code, _, rules, notes = planned("priority: 1", FLEET + limits)
    assert (code, rules) == (3, ["price_limit", "reserve[0]"])
    assert notes == [
        "a plan is possible with limits.price_per_hour 5.00 USD/h -> 6.00 USD/h",
        "a plan is possible with reserve[0].count 3 -> 2",
    ]


def test_a_fixed_layout_has_no_slot_to_keep_free(planned):
    fixed = FLEET.replace("rack: r1", "rack: r1, mig_layouts: fixed")
    kept = "reserve: [{profile: 3g.40gb, count: 2}]\n"
    code, _, rules, notes = planned("priority: 1", fixed + kept)
    assert (code, rules) == (3, ["fixed_layout", "reserve[0]"])
    assert "a plan is possible without fixed_layout" in notes
    assert notes[0].startswith("a plan is possible with 1 more a100-80gb-sxm (1 node of 1, a rack")


def test_a_promise_that_would_have_to_give_way(planned):
    """At 20 ms a replica carries too little for what is left after a loss."""
    model = WORKLOADS.replace(
        WORKLOADS[WORKLOADS.index("    measured") : WORKLOADS.index("    RULES")],
        "    model: llama-3.1-8b\n"
        "    demand: {requests_per_second: 30, input_tokens: 700, output_tokens: 200,"
        " max_context_tokens: 4096}\n"
        "    slo: {ttft_ms: 4000, tpot_ms: 20}\n"
        "    allow: {precisions: [bf16], engines: [vllm], tensor_parallel: [1]}\n",
    )
    code, _, rules, notes = planned("survive: node", workloads=model)
    assert (code, rules) == (3, ["survive: chat"])
    (fix,) = [note for note in notes if "slo" in note]
    before, after = fix.partition("tpot_ms ")[2].split(" -> ")
    assert float(before) == 20 < float(after)
    relaxed = model.replace("tpot_ms: 20", f"tpot_ms: {after}")
    assert planned("survive: node", workloads=relaxed)[1] != "infeasible"
