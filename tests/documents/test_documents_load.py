"""Documents that are right: what becomes of each field."""

import json
from pathlib import Path

import pytest

from optimizer.documents import DocumentFaults, load
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.workload import Demand, Slo

HEAD = {"Fleet": "kind: Fleet\nversion: 1\n", "Workloads": "kind: Workloads\nversion: 1\n"}


@pytest.fixture
def fleet_of(tmp_path):
    """A fleet from the text of its nodes, and what stands after them."""

    def read(nodes, name="fleet.yaml"):
        file = tmp_path / name
        file.write_text(HEAD["Fleet"] + nodes, "utf-8")
        return load([file], need=()).fleet

    return read


@pytest.fixture
def deployment_of(tmp_path):
    """The only deployment of a text."""

    def read(entry):
        file = tmp_path / "workloads.yaml"
        file.write_text(f"{HEAD['Workloads']}deployments:\n  - {entry}\n", "utf-8")
        return load([file], need=()).workloads.deployments[0]

    return read


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a"]),
        ("a-{1..3}", ["a-1", "a-2", "a-3"]),
        ("a-{08..10}", ["a-08", "a-09", "a-10"]),
        ("r{1..2}-n{1..2}", ["r1-n1", "r1-n2", "r2-n1", "r2-n2"]),
        ("{1..1}.rack", ["1.rack"]),
    ],
)
def test_braces_expand(fleet_of, pattern, names):
    fleet = fleet_of(f'nodes: [{{name: "{pattern}", gpu: l40s, gpus: 1}}]')
    assert [node.name for node in fleet.nodes] == names


def test_a_fleet_in_full(fleet_of):
    fleet = fleet_of("""name: lab
currency: EUR
nodes:
  - name: a
    gpu: a100-80gb-sxm
    gpus: 4
    rack: r1
    zone: z1
    price_per_gpu_hour: 1.25
    sharing: [whole, mig]
    nvlink_domain: pair
    network_gbs: 50
    cpu_cores: 64
    memory_gib: 512.5
    labels: {pool: prod, "2": "3"}
    devices:
      3: {uuid: GPU-5, cordoned: true, mig_enabled: true, layout: [{profile: 3g.40gb, start: 4}]}
""")
    node = fleet.nodes[0]
    assert (fleet.name, fleet.currency, fleet.unit) == ("lab", "EUR", "EUR")
    assert (node.rack, node.zone, node.price_micros_per_gpu_hour) == ("r1", "z1", 1_250_000)
    assert node.sharing == (Sharing.WHOLE, Sharing.MIG)
    assert (node.nvlink_domain, node.network_gbs) == ("pair", 50)
    assert (node.cpu_millicores, node.host_memory_mib) == (64_000, 524_800)
    assert node.labels == (("2", "3"), ("pool", "prod"))
    device = node.device(3)
    assert (device.uuid, device.cordoned, device.mig_enabled) == ("GPU-5", True, True)
    assert device.layout == (PlacedProfile(4, "3g.40gb"),)
    assert [gpu.id for gpu in fleet.gpus() if not gpu.cordoned] == ["a/0", "a/1", "a/2"]


@pytest.mark.parametrize(
    ("gpu", "sharing"),
    [("h100-80gb-sxm", ["mig", "whole"]), ("l40s", ["whole", "shared"])],
)
def test_sharing_by_default(fleet_of, gpu, sharing):
    node = fleet_of(f"nodes: [{{name: a, gpu: {gpu}, gpus: 1}}]").nodes[0]
    assert list(node.sharing) == sharing


@pytest.mark.parametrize(
    "spelling", ["h100-80gb-sxm", "NVIDIA H100 80GB HBM3", "NVIDIA-H100-80GB-HBM3"]
)
def test_products_by_their_exact_names(fleet_of, spelling):
    fleet = fleet_of(f'nodes: [{{name: a, gpu: "{spelling}", gpus: 1}}]')
    assert [gpu.name for gpu in fleet.products()] == ["h100-80gb-sxm"]


@pytest.mark.parametrize(
    ("spelling", "precision"),
    [
        ("llama-3.1-70b", None),
        ("LLAMA-3.1-70B", None),
        ("meta-llama/Llama-3.1-70B-Instruct", None),
        ("meta-llama/llama-3.1-70b-instruct", None),
        ("hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "int4"),
    ],
)
def test_models_by_name_and_alias(deployment_of, spelling, precision):
    demand = "{requests_per_second: 1, input_tokens: 2, output_tokens: 3}"
    found = deployment_of(f'{{name: a, model: "{spelling}", demand: {demand}}}')
    assert (found.model.name, found.precision) == ("llama-3.1-70b", precision)


def test_a_deployment_in_full(deployment_of):
    found = deployment_of("""name: chat
    tenant: acme
    model: llama-3.1-8b
    demand: {requests_per_second: 0.0001, input_tokens: 900, output_tokens: 1e2, peak_factor: 1.6}
    slo: {tpot_ms: 50}
    allow: {precisions: [fp8, "gguf:Q4_K_M", fp8], engines: [sglang], tensor_parallel: [2, 1]}
    extras: {lora: {count: 4, rank: 16}, draft_model: llama-3.2-1b, other_mib: 5}
    host: {cpu_cores: 0.0001, memory_gib: 1.5}
    replicas: {min: 2, max: 20}
    spread: {node: 1, rack: 2}
    isolate: tenant
    pin: [n1, n1/3]
    priority: -5
""")
    assert found.demand == Demand(1, 900, 100, peak_factor_ppm=1_600_000)  # a need rounds up
    assert found.slo == Slo(tpot_ms=50)
    assert found.allow.precisions == ("fp8", "gguf:Q4_K_M")
    assert found.allow.tensor_parallel == (1, 2)
    assert (found.extras.lora_count, found.extras.lora_rank) == (4, 16)
    assert found.extras.draft_model.name == "llama-3.2-1b"
    assert (found.host_cpu_millicores, found.host_memory_mib) == (1, 1536)
    assert (found.min_replicas, found.max_replicas) == (2, 20)
    assert (found.spread_node, found.spread_rack, found.priority) == (1, 2, -5)
    assert found.pin == ("n1", "n1/3")


def test_yaml_and_json_say_the_same(tmp_path):
    entry = {"name": "a-{1..2}", "gpu": "l40s", "gpus": 2, "price_per_gpu_hour": 0.1}
    document = {"kind": "Fleet", "version": 1, "name": "x", "nodes": [entry]}
    as_json, as_yaml = tmp_path / "a.json", tmp_path / "a.yaml"
    as_json.write_text(json.dumps(document))
    as_yaml.write_bytes(
        b"\xef\xbb\xbf# with a byte order mark, and line ends of another system\r\n"
        b"kind: Fleet\r\nversion: 1\r\nname: x\r\nnodes:\r\n"
        b'- {name: "a-{1..2}", gpu: l40s, gpus: 2, price_per_gpu_hour: 0.1}\r\n'
    )
    assert load([as_json], need=()).fleet == load([as_yaml], need=()).fleet


def test_anchors_and_merges(fleet_of):
    fleet = fleet_of("""nodes:
  - &one {name: a, gpu: l40s, gpus: 2, rack: r1}
  - {<<: *one, name: b, gpus: 4}
""")
    assert [(n.name, n.gpus, n.rack) for n in fleet.nodes] == [("a", 2, "r1"), ("b", 4, "r1")]


@pytest.mark.parametrize(("written", "gpus"), [("8", 8), ("0.8e1", 8), ("+8", 8)])
def test_whole_numbers(fleet_of, written, gpus):
    assert fleet_of(f"nodes: [{{name: a, gpu: l40s, gpus: {written}}}]").nodes[0].gpus == gpus


def test_documents_in_one_file_and_in_folders(tmp_path):
    (tmp_path / "one.yaml").write_text(
        f"{HEAD['Fleet']}nodes: [{{name: a, gpu: l40s, gpus: 2}}]\n---\n{HEAD['Workloads']}"
        "deployments: [{name: x, needs: {gpus: 1}}]\n...\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.yml").write_text(
        f"{HEAD['Workloads']}name: more\ndeployments: [{{name: y, needs: {{gpus: 1}}}}]\n"
    )
    (tmp_path / "notes.txt").write_text("not read")
    found = load([tmp_path])
    assert [d.name for d in found.workloads.deployments] == ["x", "y"]
    assert found.workloads.name == "more"
    assert [i.kind for i in found.inputs] == ["Fleet", "Workloads", "Workloads"]
    assert load([tmp_path, tmp_path / "one.yaml"]).inputs == found.inputs  # each file once


def test_a_card_beside_the_documents_comes_first(tmp_path):
    (tmp_path / "gpus").mkdir()
    (tmp_path / "gpus" / "l40s.yaml").write_text(
        "kind: Gpu\nversion: 1\nname: l40s\narchitecture: ada\nmemory_gb: 24\n"
        "memory_bandwidth_gbs: 100\n"
    )
    file = tmp_path / "fleet.yaml"
    file.write_text(f"{HEAD['Fleet']}nodes: [{{name: a, gpu: l40s, gpus: 2}}]\n")
    assert load([file], need=()).fleet.nodes[0].gpu.memory_gb == 24


def test_a_broken_card_does_not_hide_other_faults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, name, text in [
        ("gpus", "l40s", "kind: Gpu\nversion: 1\nname: l40s\nmemory: 24\n"),
        ("models", "tiny", "kind: Model\nversion: 1\nname: huge\n"),
        ("engines", "vllm", "kind: Engine\nversion: 1\nname: vllm\nno: 1\n"),
    ]:
        Path(folder).mkdir()
        Path(folder, f"{name}.yaml").write_text(text)
    nodes = "[{name: a, gpu: l40s, gpus: 2}, {name: b, gpu: l40z, gpus: 2}]"
    Path("fleet.yaml").write_text(f"{HEAD['Fleet']}nodes: {nodes}\n")
    demand = "demand: {requests_per_second: 1, input_tokens: 9, output_tokens: 1}"
    Path("workloads.yaml").write_text(
        f"{HEAD['Workloads']}deployments:\n"
        f"  - {{name: a, model: tiny, {demand}, allow: {{attention: [flash-9]}}}}\n"
        f"  - {{name: b, model: tinny, {demand}}}\n"
    )
    with pytest.raises(DocumentFaults) as told:
        load(["fleet.yaml", "workloads.yaml"])
    said = str(told.value)
    for expected in (
        'fleet.yaml:3:24: nodes[0].gpu: the datasheet of "l40s" has faults; mend those first',
        'fleet.yaml:3:55: nodes[1].gpu: no product "l40z"; did you mean "l40s"?',
        "gpus/l40s.yaml:4:1: memory: unknown field",
        'models/tiny.yaml:1:1: name: a file named tiny.yaml must hold "name: tiny"',
        "engines/vllm.yaml:4:1: no: ",
        'workloads.yaml:4:22: deployments[0].model: the card of "tiny" has faults; mend those',
        'workloads.yaml:5:22: deployments[1].model: no model "tinny"',
        'allow.attention[0]: no attention kernel "flash-9"',
    ):
        assert expected in said
