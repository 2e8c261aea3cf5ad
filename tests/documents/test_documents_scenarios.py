"""Scenarios documents: changes, families, what is good and what is kept apart."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.documents import DocumentFaults, load
from optimizer.domain.scenario import (
    AddDeployments,
    AddNodes,
    Assign,
    Forbid,
    Lose,
    PriceChange,
    RemoveDeployment,
    Scale,
)
from optimizer.domain.units import PPM
from optimizer.domain.workload import Demand, Slo
from optimizer.scenarios.scenario import apply

GOOD = Path(__file__).parents[1] / "data" / "good"


@pytest.fixture
def read(tmp_path):
    """The documents, with scenarios and families of a text."""

    def read_them(text, *, strict=False):
        file = tmp_path / "scenarios.yaml"
        file.write_text(f"kind: Scenarios\nversion: 1\n{text}\n", "utf-8")
        paths = [GOOD / "fleet.yaml", GOOD / "workloads.yaml", file]
        return load(paths, strict_scenarios=strict)

    return read_them


@pytest.fixture
def changes_of(read):
    """The changes of one scenario, each given as in a document."""

    def read_them(*changes):
        found = read(f"scenarios: [{{name: x, changes: [{', '.join(changes)}]}}]", strict=True)
        apply(found.scenarios[0], found.fleet, found.workloads)  # it can be made
        return found.scenarios[0].changes

    return read_them


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("{lose: {node: h100-01}}", Lose("node", "h100-01")),
        ("{lose: {rack: r2}}", Lose("rack", "r2")),
        ("{lose: {zone: z2}}", Lose("zone", "z2")),
        ("{lose: {gpu: a100-01/3}}", Lose("gpu", "a100-01/3")),
        ("{scale: {all: true, by: 1.5}}", Scale("all", None, 1_500_000)),
        ("{scale: {tenant: acme, by: 2}}", Scale("tenant", "acme", 2_000_000)),
        ("{scale: {deployment: big, by: 0.1}}", Scale("deployment", "big", 100_000)),
        ("{remove_deployment: vision}", RemoveDeployment("vision")),
        ("{forbid: {precision: int4}}", Forbid("precision", "int4")),
        ("{forbid: {engine: vllm}}", Forbid("engine", "vllm")),
        ("{forbid: {gpu: NVIDIA L40S}}", Forbid("gpu", "l40s")),
        ("{price: {gpu: l40s, by: 0.8}}", PriceChange("l40s", 800_000)),
    ],
)
def test_a_change(changes_of, written, meant):
    assert changes_of(written) == (meant,)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("deployments.chat.slo.tpot_ms: 40", [(("slo", "tpot_ms"), 40.0)]),
        ("deployments.chat.slo: {ttft_ms: 9}", [(("slo",), Slo(ttft_ms=9))]),
        ("deployments.chat.slo: null", [(("slo",), None)]),
        ("deployments.big.slo.ttft_ms: 900", [(("slo",), Slo(ttft_ms=900))]),
        ("deployments.chat.demand.requests_per_second: 1.5", [(("demand", "rate_mrps"), 1500)]),
        ("deployments.chat.demand.peak_factor: 2", [(("demand", "peak_factor_ppm"), 2_000_000)]),
        (
            "deployments.chat.demand: {requests_per_second: 1, input_tokens: 2, output_tokens: 3}",
            [(("demand",), Demand(1000, 2, 3))],
        ),
        ("deployments.chat.replicas.max: 9", [(("max_replicas",), 9)]),
        (
            "deployments.chat.replicas: {min: 1}",
            [(("min_replicas",), 1), (("max_replicas",), None)],
        ),
        ("deployments.chat.host.memory_gib: 1.5", [(("host_memory_mib",), 1536)]),
        ("deployments.chat.spread.rack: 2", [(("spread_rack",), 2)]),
        ("deployments.chat.allow.gpus: [l40s]", [(("allow", "gpus"), ("l40s",))]),
        (
            "deployments.chat.extras.lora: {count: 4, rank: 8}",
            [(("extras", "lora_count"), 4), (("extras", "lora_rank"), 8)],
        ),
        ("deployments.chat.isolate: tenant", [(("isolate",), "tenant")]),
        ("deployments.chat.pin: [l40s-01]", [(("pin",), ("l40s-01",))]),
        ("nodes.h100-01.cordoned: true", [(("cordoned",), True)]),
        ("nodes.h100-01.cpu_cores: 8", [(("cpu_millicores",), 8000)]),
        ("nodes.h100-02.price_per_gpu_hour: 3", [(("price_micros_per_gpu_hour",), 3_000_000)]),
        ("nodes.h100-02.labels.pool: prod", [(("labels",), (("pool", "prod"),))]),
    ],
)
def test_a_field_set(changes_of, written, meant):
    key = written.split(":")[0]
    kind, name = key.split(".")[:2]
    found = changes_of(f"{{set: {{{written}}}}}")
    assert found == tuple(Assign(kind[:-1], name, path, value) for path, value in meant)


def test_a_model_set_brings_its_precision(changes_of):
    repack = "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"
    model, precision = changes_of(f"{{set: {{deployments.chat.model: {repack}}}}}")
    assert (model.path, model.value.name) == (("model",), "llama-3.1-70b")
    assert (precision.path, precision.value) == (("precision",), "int4")


def test_another_product_brings_its_ways_of_sharing(read):
    found = read("scenarios: [{name: x, changes: [{set: {nodes.h100-01.gpu: l40s}}]}]")
    world = apply(found.scenarios[0], found.fleet, found.workloads)
    assert world.fleet.node("h100-01").gpu.name == "l40s"
    assert world.fleet.node("h100-01").sharing == ("whole", "shared")


def test_what_is_added_reads_as_in_its_own_document(changes_of):
    nodes, deployments = changes_of(
        '{add_nodes: [{name: "n-{1..2}", gpu: l40s, gpus: 2, price_per_gpu_hour: 1}]}',
        "{add_deployments: [{name: new, needs: {gpus: 1}, pin: [n-2]}]}",
    )
    assert isinstance(nodes, AddNodes)
    assert [n.name for n in nodes.nodes] == ["n-1", "n-2"]
    assert isinstance(deployments, AddDeployments)
    assert deployments.deployments[0].pin == ("n-2",)


def test_changes_see_those_before_them(changes_of):
    assert changes_of(
        '{add_nodes: [{name: "n-{1..2}", gpu: l40s, gpus: 2, price_per_gpu_hour: 1}]}',
        "{lose: {node: n-1}}",
        "{set: {nodes.n-2.cordoned: true}}",
        "{add_deployments: [{name: new.one, needs: {gpus: 1}}]}",
        "{set: {deployments.new.one.priority: 3}}",  # names may hold dots
        "{remove_deployment: new.one}",
    )[4] == Assign("deployment", "new.one", ("priority",), 3)


@pytest.mark.parametrize(
    ("kind", "change", "items"),
    [
        ("node", '{lose: {node: "{item}"}}', ["h100-01", "h100-02", "a100-01", "l40s-01"]),
        ("rack", '{lose: {rack: "{item}"}}', ["r1", "r2"]),
        ("zone", '{lose: {zone: "{item}"}}', ["z1", "z2"]),
        ("deployment", '{set: {"deployments.{item}.priority": 9}}', ["chat", "big", "vision"]),
        ("tenant", '{scale: {tenant: "{item}", by: 2}}', ["acme", "globex"]),
    ],
)
def test_for_each(read, kind, change, items):
    found = read(f"families: [{{name: f, for_each: {kind}, changes: [{change}]}}]")
    assert [s.name for s in found.scenarios] == [f"f/{item}" for item in items]
    for scenario in found.scenarios:
        assert len(scenario.changes) == 1
        apply(scenario, found.fleet, found.workloads)


def test_a_node_without_a_rack_is_its_own(tmp_path):
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("kind: Fleet\nversion: 1\nnodes: [{name: a, gpu: l40s, gpus: 1}]\n")
    asked = tmp_path / "scenarios.yaml"
    asked.write_text(
        "kind: Scenarios\nversion: 1\n"
        'families: [{name: f, for_each: zone, changes: [{lose: {zone: "{item}"}}]}]\n'
    )
    found = load([fleet, GOOD / "workloads.yaml", asked])
    assert [s.name for s in found.scenarios] == ["f/a"]
    assert apply(found.scenarios[0], found.fleet, found.workloads).fleet.nodes == ()


def test_growth(read):
    found = read("families: [{name: growth, scale: {tenant: acme, from: 1.0, to: 2.0, steps: 4}}]")
    assert [(s.name, s.changes) for s in found.scenarios] == [
        ("growth/1.0", (Scale("tenant", "acme", 1_000_000),)),
        ("growth/1.333333", (Scale("tenant", "acme", 1_333_333),)),
        ("growth/1.666667", (Scale("tenant", "acme", 1_666_667),)),
        ("growth/2.0", (Scale("tenant", "acme", 2_000_000),)),
    ]


def test_grid(read):
    acme, big = (
        "{tenant: acme, from: 1.0, to: 2.0, steps: 2}",
        "{deployment: big, from: 0.5, to: 1.5, steps: 3}",
    )
    found = read(f"families: [{{name: g, grid: [{acme}, {big}]}}]")
    names = ["1.0,0.5", "1.0,1.0", "1.0,1.5", "2.0,0.5", "2.0,1.0", "2.0,1.5"]
    assert [s.name for s in found.scenarios] == [f"g/{name}" for name in names]
    assert found.scenarios[3].changes == (
        Scale("tenant", "acme", 2_000_000),
        Scale("deployment", "big", 500_000),
    )


def test_grid_of_a_price_and_a_field(read):
    price = "{price: l40s, values: [0.5, 1]}"
    tpot = "{set: deployments.chat.slo.tpot_ms, from: 30, to: 40, steps: 3}"
    found = read(f"families: [{{name: g, grid: [{price}, {tpot}]}}]").scenarios
    names = ["0.5,30", "0.5,35", "0.5,40", "1.0,30", "1.0,35", "1.0,40"]
    assert [s.name for s in found] == [f"g/{name}" for name in names]
    assert found[1].changes == (
        PriceChange("l40s", 500_000),
        Assign("deployment", "chat", ("slo", "tpot_ms"), 35.0),
    )


def test_values_that_are_no_numbers(read):
    text = """families:
  - name: g
    grid: [{set: deployments.chat.allow.precisions, values: [[bf16], [bf16, fp8]]},
           {set: deployments.chat.isolate, values: [none, gpu]}]"""
    found = read(text).scenarios
    assert [s.name for s in found] == [
        'g/["bf16"],none',
        'g/["bf16"],gpu',
        'g/["bf16","fp8"],none',
        'g/["bf16","fp8"],gpu',
    ]
    assert [c.value for c in found[3].changes] == [("bf16", "fp8"), "gpu"]


def test_families_are_composed(read):
    """Each rack lost, for each size of a customer who comes, at random demand of all."""
    text = """families:
  - name: f
    for_each: rack
    changes:
      - {add_deployments: [{name: new, tenant: "on-{item}", needs: {gpus: 1}}]}
      - {lose: {rack: "{item}"}}
    scale: {tenant: "on-{item}", from: 1, to: 2, steps: 2}
    random_demand: {seed: 1, count: 2, sigma: 0.1}"""
    found = read(text)
    labels = ["r1,1.0,1", "r1,1.0,2", "r1,2.0,1", "r1,2.0,2", "r2,1.0,1"]
    assert [s.name for s in found.scenarios[:5]] == [f"f/{label}" for label in labels]
    assert len(found.scenarios) == 8
    added, lost, scaled, *drawn = found.scenarios[3].changes
    assert added.deployments[0].tenant == "on-r1"
    assert (lost, scaled) == (Lose("rack", "r1"), Scale("tenant", "on-r1", 2_000_000))
    assert [c.name for c in drawn] == ["chat", "big"]
    world = apply(found.scenarios[3], found.fleet, found.workloads)
    assert {n.rack for n in world.fleet.nodes} == {"r2"}


def test_a_customer_comes_and_a_rack_is_lost_in_one_scenario(changes_of):
    added, lost = changes_of(
        "{add_deployments: [{name: globex-chat, needs: {gpus: 1}}]}", "{lose: {rack: r2}}"
    )
    assert isinstance(added, AddDeployments)
    assert lost == Lose("rack", "r2")


def test_a_fault_of_every_member_is_told_once(read):
    found = read("families: [{name: g, grid: [{tenant: nobody, from: 1, to: 2, steps: 9}]}]")
    assert not found.scenarios
    assert [name for name, _ in found.bad_scenarios] == ["g"]


def test_a_value_that_is_wrong_fails_alone(read):
    grid = "[{set: deployments.chat.slo.tpot_ms, values: [40, -1]}]"
    found = read(f"families: [{{name: g, grid: {grid}}}]")
    assert [s.name for s in found.scenarios] == ["g/40"]
    ((name, (fault,)),) = found.bad_scenarios
    assert (name, fault.path) == ("g/-1", "families[0].grid[0].values[1]")


# Ten minutes: four requests in the first half, two in each quarter after it.
TRACE = """kind: Trace
version: 1
name: day
seconds: 600
requests: |
  at_s,input_tokens,output_tokens,deployment
  10,9,9,chat
  20,9,9,chat
  30,9,9,big
  140,9,9,chat
  310,9,9,chat
  320,9,9,big
  460,9,9,big
  590,9,9,big
"""


def test_random_demand_from_the_windows_of_a_trace(read, tmp_path):
    (tmp_path / "day.yaml").write_text(TRACE, "utf-8")
    drawn = "random_demand: {seed: 7, count: 200, trace: day.yaml, window_seconds: 300}"
    found = read(f"families: [{{name: r, {drawn}}}]").scenarios
    assert len(found) == 200
    factors = {
        name: [c.by_ppm for s in found for c in s.changes if c.name == name]
        for name in ("chat", "big")
    }
    # Chat had three requests, then one; big one, then three: over means of two.
    assert set(factors["chat"]) == set(factors["big"]) == {1_500_000, 500_000}
    assert 60 < factors["chat"].count(1_500_000) < 140
    assert len(set(zip(*factors.values(), strict=True))) == 4  # each draws for itself
    together = drawn.replace("seed", "together: true, seed")
    found = read(f"families: [{{name: r, {together}}}]").scenarios
    pairs = {tuple(c.by_ppm for c in s.changes) for s in found}
    assert pairs == {(1_500_000, 500_000), (500_000, 1_500_000)}


def test_a_trace_of_rates_among_the_documents(tmp_path):
    """Rates of 1 and then 4, changing in the middle of the second of three windows."""
    trace = tmp_path / "rates.yaml"
    trace.write_text(
        "kind: Trace\nversion: 1\nname: rates\nseconds: 310\nwindows:\n"
        "  - {at_s: 0, requests_per_second: 1, input_tokens: 9, output_tokens: 9}\n"
        "  - {at_s: 150, requests_per_second: 4, input_tokens: 9, output_tokens: 9}\n"
    )
    asked = tmp_path / "scenarios.yaml"
    drawn = "{seed: 1, count: 50, trace: rates, window_seconds: 100}"
    asked.write_text(
        f"kind: Scenarios\nversion: 1\nfamilies: [{{name: r, random_demand: {drawn}}}]\n"
    )
    found = load([GOOD / "fleet.yaml", GOOD / "workloads.yaml", trace, asked])
    factors = {c.by_ppm for s in found.scenarios for c in s.changes}
    assert factors == {400_000, 1_000_000, 1_600_000}


def test_random_demand(read):
    text = "families: [{name: r, random_demand: {seed: 7, count: 2000, sigma: 0.3}}]"
    found = read(text).scenarios
    assert [s.name for s in found[:2]] == ["r/1", "r/2"]
    assert [c.name for c in found[0].changes] == ["chat", "big"]  # vision has no demand
    factors = [change.by_ppm / PPM for s in found for change in s.changes]
    # Mean 1; standard deviation of the logarithm 0.3: at 4,000 draws, within five standard errors.
    assert sum(factors) / len(factors) == pytest.approx(1, abs=5 * 0.31 / len(factors) ** 0.5)
    assert sum(f < 0.956 for f in factors) / len(factors) == pytest.approx(0.5, abs=0.04)
    assert len({c.by_ppm for s in found[:9] for c in s.changes}) == 18


def test_random_demand_needs_no_luck(read):
    text = "families: [{name: r, random_demand: {seed: %d, count: 3, sigma: 0.3}}]"
    assert read(text % 7).scenarios == read(text % 7).scenarios
    assert read(text % 7).scenarios != read(text % 8).scenarios
    random.seed(1)  # nobody else's numbers
    before = random.getstate()
    read(text % 7)
    assert random.getstate() == before


def test_the_same_under_another_hash_seed():
    paths = [str(GOOD / f"{name}.yaml") for name in ("fleet", "workloads", "scenarios")]
    script = "import sys; from optimizer.documents import load; print(load(sys.argv[1:]).scenarios)"
    said = {
        subprocess.run(
            [sys.executable, "-c", script, *paths],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


MIXED = """scenarios:
  - {name: good, changes: [{lose: {rack: r1}}]}
  - {name: bad, changes: [{lose: {rack: r9}}]}
families:
  - {name: half, for_each: node, changes: [{lose: {gpu: "{item}/5"}}]}
  - {name: none, scale: {tenant: nobody, from: 1, to: 2, steps: 3}}"""


def test_a_faulty_scenario_does_not_fail_the_rest(read):
    found = read(MIXED)
    assert [s.name for s in found.scenarios] == ["good", "half/h100-01", "half/h100-02"]
    told = {name: [f.message for f in faults] for name, faults in found.bad_scenarios}
    assert told == {
        "bad": ['no rack "r9"; known: r1, r2'],
        "half/a100-01": ['no GPU "a100-01/5"; node "a100-01" has a100-01/0 to a100-01/3'],
        "half/l40s-01": ['no GPU "l40s-01/5"; node "l40s-01" has l40s-01/0 to l40s-01/1'],
        "none": ['no tenant "nobody"; known: acme, globex'],
    }


def test_a_faulty_scenario_is_a_fault_where_that_is_asked(read):
    with pytest.raises(DocumentFaults) as told:
        read(MIXED, strict=True)
    assert [(f.line, f.path) for f in told.value.faults] == [
        (5, "scenarios[1].changes[0].lose.rack"),
        (7, "families[0].changes[0].lose.gpu"),
        (8, "families[1].scale.tenant"),
    ]


def test_without_fleet_and_workloads_only_the_document_is_judged(tmp_path):
    file = tmp_path / "scenarios.yaml"
    text = (GOOD / "scenarios.yaml").read_text()
    file.write_text(text)
    assert load([file], need=(), strict_scenarios=True).bad_scenarios == ()
    file.write_text(text.replace("tpot_ms: 40", "tpot_ms: 0"))
    with pytest.raises(DocumentFaults, match="must be above 0, got 0"):
        load([file], need=(), strict_scenarios=True)
