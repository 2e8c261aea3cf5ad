"""Spreadsheets, the openb trace and configs of mig-parted to documents; refusals say why."""

from typing import Any

import pytest

from optimizer.documents import catalogue
from optimizer.documents.yaml_reader import read_yaml
from optimizer.exchange import IMPORTERS, CannotRead, File, Input

GPUS = catalogue().gpus.all()


def parse(file: File) -> list[Any]:
    return [value for value, _ in read_yaml(file.text)[0]]


def read(kind: str, *texts: str, **said):
    files = tuple(File(f"f{i}", text) for i, text in enumerate(texts))
    return IMPORTERS[kind](Input(files, GPUS, parse, **said))


def kinds(found) -> dict[str, Any]:
    return {d.kind: d.data for d in found.documents}


def refusal(kind: str, *texts: str, **said) -> str:
    with pytest.raises(CannotRead) as refused:
        read(kind, *texts, **said)
    return "\n".join(refused.value.reasons)


@pytest.mark.parametrize(
    ("sheet", "demand"),
    [
        ("model,rps,input_tokens,output_tokens\nllama-3.1-8b,6,900,220\n", 6),
        ("Model;Requests/min;ISL;OSL\nllama-3.1-8b;360;900;220\n", 6),
        ("Model\tRequests per day\tInput\tOutput\nllama-3.1-8b\t518400\t900\t220\n", 6),
        ("\n\nModel;QPS;Prompt tokens;Completion tokens\nllama-3.1-8b;1,5;900;220\n;;;\n", 1.5),
    ],
)
def test_sheets_of_many_spellings(sheet, demand):
    (deployment,) = kinds(read("csv", sheet))["Workloads"]["deployments"]
    assert deployment["model"] == "llama-3.1-8b"
    assert deployment["demand"] == {
        "requests_per_second": demand,
        "input_tokens": 900,
        "output_tokens": 220,
    }


def test_a_sheet_says_slo_tenant_and_what_is_allowed():
    sheet = (
        "Name,Model,RPS,Input tokens,Output tokens,TTFT (ms),TPOT ms,Precision,Team,Remark\n"
        "Chat,llama-3.1-8b,1,10,10,800,50,bf16/fp8,acme,x\n"
        "Chat,llama-3.1-8b,1,10,10,,,,,\n"
    )
    found = read("csv", sheet)
    first, second = kinds(found)["Workloads"]["deployments"]
    assert first["slo"] == {"ttft_ms": 800, "tpot_ms": 50}
    assert (first["tenant"], first["allow"]) == ("acme", {"precisions": ["bf16", "fp8"]})
    assert (first["name"], second["name"]) == ("chat", "chat-2")
    assert "Remark" in found.documents[0].notes[0]


@pytest.mark.parametrize(
    ("sheet", "reason"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", "no column names the model"),
        ("model,rps,rps\nx,1,1\n", "two columns"),
        ("model,input,output\nx,1,1\n", "f0:2: no rate"),
        ("model,rps,rpm,input,output\nx,1,60,1,1\n", "2 rates"),
        ("model,rps,input,output\nx,fast,1,1\n", '"fast" is no number'),
        ("model,rps,input,output\nx,-1,1,1\n", "0 or more"),
        ("model;rps;input;output\nx;1,234;1;1\n", "is no number"),
        ("model,rps,input,output\nx,1,,1\n", "input_tokens missing"),
        ("model,rps,input,output\n,1,1,1\n", "no model"),
        ("model,rps,input,output\nx,1,1,1,9\n", "5 values under 4 columns"),
        ("model,rps\n", "no row"),
    ],
)
def test_sheets_that_say_too_little(sheet, reason):
    assert reason in refusal("csv", sheet)


NODES = "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,262144,2,P100\nn1,8000,1024,0,\n"
PODS = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n"
    "p0,6000,12288,1,460,,LS\np1,6000,12288,1,460,,LS\np2,0,0,2,1000,V100M16|T4,LS\np3,1,1,0,0,,LS\n"
)


def test_openb_nodes_and_pods():
    found = read("openb", NODES + "n2,64000,262144,8,G2\n", PODS)
    told = kinds(found)
    assert told["Fleet"]["nodes"] == [
        {
            "name": "n0",
            "gpu": "p100-16gb",
            "gpus": 2,
            "sharing": ["whole", "shared"],
            "cpu_cores": 64.0,
            "memory_gib": 256.0,
        }
    ]
    assert told["Gpu"]["memory_gb"] == 16
    first, second = told["Workloads"]["deployments"]
    assert (first["needs"], first["replicas"]) == ({"gpu_fraction": 0.46}, {"min": 2})
    assert (second["needs"], second["allow"]) == ({"gpus": 2}, {"gpus": ["t4", "v100-16gb"]})
    assert "1 nodes with G2" in found.left_out[0]
    chosen = read("openb", NODES + "n2,64000,262144,8,G2\n", gpu="G2=a10")
    assert [n["gpu"] for n in kinds(chosen)["Fleet"]["nodes"]] == ["p100-16gb", "a10"]


def test_openb_pods_without_gpus_take_their_room_first():
    more = "c0,5000,512,0,0,,LS\nc1,8000,512,0,0,,LS\nc2,99000,1,0,0,,LS\n"
    found = read("openb", NODES, PODS + more)
    node = kinds(found)["Fleet"]["nodes"][0]
    assert (node["cpu_cores"], node["memory_gib"]) == (58.999, 255.499023)
    assert "8 cores of nodes without GPUs, 5.001 cores of 1 nodes" in found.documents[0].notes[1]
    assert found.left_out == ("1 pods without GPUs: no node has room for them",)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("a,b\n1,2\n", "neither a node table"),
        (PODS + "p9,1,1,2,500,,LS\n", "f0:6: num_gpu 2 and gpu_milli 500"),
        (NODES.replace("262144,2", "262144,2.5"), "must be whole"),
        ("sn,cpu_milli,memory_mib,gpu,model\nn2,1,1,8,G2\n", "--gpu G2=PRODUCT"),
    ],
)
def test_openb_refusals(table, reason):
    assert reason in refusal("openb", table)


CONFIG = """version: v1
mig-configs:
  plan-n1:
  - {devices: [0], mig-enabled: true, mig-devices: {"3g.40gb": 1, "1g.10gb": 4}}
  - {devices: [1], mig-enabled: false}
"""
FLEET = (
    "kind: Fleet\nversion: 1\nname: lab\nnodes:\n- {name: 'n{1..2}', gpu: h100-80gb-sxm, gpus: 2}\n"
)


def test_mig_parted_alone_needs_the_product():
    assert "say --gpu PRODUCT" in refusal("mig-parted", CONFIG)
    (node,) = kinds(read("mig-parted", CONFIG, gpu="h100-80gb-sxm"))["Fleet"]["nodes"]
    assert (node["name"], node["gpus"]) == ("n1", 2)
    profiles = [p["profile"] for p in node["devices"]["0"]["layout"]]
    assert sorted(profiles) == ["1g.10gb"] * 4 + ["3g.40gb"]
    assert node["devices"]["1"] == {"mig_enabled": False}


def test_mig_parted_beside_a_fleet_gives_its_state():
    told = kinds(read("mig-parted", CONFIG, FLEET))
    assert sorted(told) == ["State"]
    assert told["State"]["fleet"] == "lab"
    assert {i["gpu"] for i in told["State"]["instances"]} == {"n1/0"}


def test_mig_parted_by_device_filter_and_config_map():
    text = CONFIG.replace("{devices: [0]", '{device-filter: ["0x233510DE"], devices: [0]')
    assert "has no profile" in refusal("mig-parted", text, gpu="h200-141gb-sxm")
    text = text.replace("3g.40gb", "3g.71gb").replace("1g.10gb", "1g.18gb")
    body = "".join(f"    {line}\n" for line in text.splitlines())
    data = f"kind: ConfigMap\ndata:\n  config.yaml: |\n{body}"
    (node,) = kinds(read("mig-parted", data))["Fleet"]["nodes"]
    assert node["gpu"] == "h200-141gb-sxm"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("version: v1", "version: v2", "no config of mig-parted"),
        ("mig-enabled: false", "mig-enabled: maybe", "must be true or false"),
        ("devices: [1]", "devices: some", "all or a list"),
        ("devices: [1], ", "", "missing required field devices"),
        ("mig-enabled: false", "mig-enabled: false, extra: 1", "unexpected field extra"),
        ('"1g.10gb": 4', '"1g.10gb": 9', "do not fit"),
        ('"1g.10gb": 4', '"9g.99gb": 4', "no profile 9g.99gb"),
        (', mig-devices: {"3g.40gb": 1, "1g.10gb": 4}', "", "missing mig-devices"),
        ("devices: [0]", "devices: all", "say --gpus N"),
    ],
)
def test_mig_parted_refusals(old, new, reason):
    assert reason in refusal("mig-parted", CONFIG.replace(old, new), gpu="h100-80gb-sxm")
