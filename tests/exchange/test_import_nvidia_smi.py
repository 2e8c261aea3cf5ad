"""Captures of nvidia-smi are read exactly, or refused with the line; never misread."""

import random
from pathlib import Path

import pytest

from optimizer.documents import catalogue
from optimizer.exchange import CannotRead, File, Input
from optimizer.exchange.smi_import import import_nvidia_smi

CAPTURES = Path(__file__).parent.parent / "data" / "captures"
GPUS = catalogue().gpus.all()
H100 = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-48aeb943-9458-4282-da24-e5f49e0db44b)\n"
BORDER = "+-------------------------------------------------------+\n"
HEAD = (
    BORDER
    + "| GPU instances:                                        |\n"
    + "| GPU   Name             Profile  Instance   Placement  |\n"
    + "|                          ID       ID       Start:Size |\n"
    + "|=======================================================|\n"
)


def lgi(*rows: str) -> str:
    return HEAD + "".join(f"|  {row} |\n{BORDER}" for row in rows)


def read(*files: File, **said):
    return import_nvidia_smi(Input(files, GPUS, parse=lambda file: [], **said))


def text(content: str, name: str = "n1.txt", folder: str | None = None) -> File:
    return File(name, content, folder)


def capture(name: str) -> File:
    return text((CAPTURES / name).read_text("utf-8"), name)


def nodes(found):
    return {n["name"]: n for n in found.documents[0].data["nodes"]}


def layouts(found) -> dict[str, list[str] | None]:
    """Each GPU's instances as ``3g.40gb@4``; None where nothing is said, off where MIG is off."""
    shown = {}
    for name, node in nodes(found).items():
        for index, device in node.get("devices", {}).items():
            layout = device.get("layout")
            told = None if layout is None else [f"{p['profile']}@{p['start']}" for p in layout]
            shown[f"{name}/{index}"] = "off" if device.get("mig_enabled") is False else told
    return shown


def refusal(*files: File, **said) -> str:
    with pytest.raises(CannotRead) as refused:
        read(*files, **said)
    return "\n".join(refused.value.reasons)


@pytest.mark.parametrize(
    ("names", "product", "expected"),
    [
        (["a30.txt"], "a30", {"a30-07/0": ["2g.12gb@0", "1g.6gb@2", "1g.6gb+me@3"]}),
        (
            ["a100-40.txt"],
            "a100-40gb-sxm",
            {
                "a100-40/0": ["2g.10gb@0", "3g.20gb@4"],
                "a100-40/1": "off",
                "a100-40/2": ["1g.5gb@6"],
            },
        ),
        (
            ["a100-r450.txt"],
            "a100-40gb-sxm",
            {"a100-r450/0": ["3g.20gb@0", "3g.20gb@4"], "a100-r450/1": "off"},
        ),
        (["h100-q.txt"], "h100-80gb-sxm", {"h100/0": None, "h100/1": "off"}),
        (
            ["a100-80.txt"],
            "a100-80gb-sxm",
            {"dgx-3/0": ["3g.40gb@0", "3g.40gb@4"], "dgx-3/1": []},
        ),
        (
            ["h100-pcie.txt"],
            "h100-80gb-pcie",
            {"h100-pcie/0": ["4g.40gb@0", "1g.10gb@4", "1g.20gb@6"]},
        ),
        (
            ["h100-sxm.txt"],
            "h100-80gb-sxm",
            {
                "h100-02/0": ["3g.40gb@0", "1g.10gb+me@4", "1g.10gb@6"],
                "h100-02/1": "off",
                "h100-02/2": [],
            },
        ),
        (
            ["h100-nvl.txt"],
            "h100-94gb-nvl",
            {"h100-nvl/0": "off", "h100-nvl/1": ["3g.47gb@0", "2g.24gb@4"]},
        ),
        (
            ["h200-qx.xml", "h200-lgi.txt"],
            "h200-141gb-sxm",
            {"h200/0": ["1g.18gb@4", "1g.18gb@6"], "h200/1": []},
        ),
        (["gh200.txt"], "gh200-96gb", {"gh200-1/0": []}),
        (
            ["rtx-pro-6000.txt"],
            "rtx-pro-6000-blackwell-server",
            {"rtx-pro-6000/0": ["2g.48gb-me@0", "1g.24gb+me.all@6", "1g.24gb-me@9"]},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_captures_are_read_exactly(names, product, expected):
    found = read(*map(capture, names))
    assert layouts(found) == expected
    assert {n["gpu"] for n in nodes(found).values()} == {product}
    assert found.left_out == ()


def test_the_uuid_of_each_gpu_is_kept():
    devices = nodes(read(capture("a30.txt")))["a30-07"]["devices"]
    assert devices["0"]["uuid"] == "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"


def test_the_state_holds_what_stands():
    state = read(capture("h200-qx.xml"), capture("h200-lgi.txt")).documents[1].data
    assert state["instances"] == [
        {"gpu": "h200/0", "profile": "1g.18gb", "start": 4},
        {"gpu": "h200/0", "profile": "1g.18gb", "start": 6},
    ]


def test_processes_are_told():
    assert any(
        "VLLM::EngineCore" in note for note in read(capture("h100-sxm.txt")).documents[0].notes
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no GPU"),
        ("hello\n", "not understood"),
        ("No devices were found\n", "n1.txt:1: nvidia-smi did not answer"),
        ("$ nvidia-smi\nbash: nvidia-smi: command not found\n", "n1.txt:2:"),
        ("Failed to initialize NVML: Driver/library version mismatch\n", "version mismatch"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", ":1:"),
        ("No MIG-supported devices found.\n", "No MIG-supported"),
        ("Unable to determine the device handle for GPU 0000:C1:00.0: Unknown Error\n", ":1:"),
        (H100 + "Unable to determine the device handle for GPU1: Unknown Error\n", ":2:"),
        (H100 + lgi("0  MIG 3g.40gb          9        2          0"), "not whole"),
        (H100 + lgi("0  MIG 3g.40gb          9        2          4:3    "), "4:3"),
        (H100 + lgi("0  MIG 3g.40gb          9        2          2:4    "), "2:4"),
        (H100 + lgi("0  MIG 1g.10gb          9        2          0:4    "), "the row says 1g"),
        (H100 + lgi("0  MIG 5g.50gb         77        2          0:4    "), "no profile 77"),
        (
            H100
            + lgi(
                "0  MIG 4g.40gb          5        1          0:4    ",
                "0  MIG 2g.20gb         14        3          2:2    ",
            ),
            "held by",
        ),
        (
            H100
            + "  MIG 2g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)\n"
            + lgi("0  MIG 3g.40gb          9        2          4:4    "),
            "more often",
        ),
        (H100 + HEAD + "|   0  MIG 3g.40gb          9        2          4:4     |\n", "breaks off"),
        (H100 + H100.replace("0:", "1:"), "two GPUs have the UUID"),
        (H100 + "|   0  MIG 3g.40gb          9        2          4:4     |\n", "in no table"),
        (H100.replace("0:", "1:") + lgi("0  MIG 3g.40gb 9 2 4:4"), "GPU 0 stands in a table"),
        (H100 + HEAD + BORDER, "a row of the table is missing"),
        (
            H100 + lgi("0  MIG 3g.40gb          9        2          4:4    ") + BORDER + "$ ls\n",
            "a row of the table is missing",
        ),
        (H100 + "  MIG 3g.40gb     Dev\n", "cut off"),
        (H100 + "GPU 1: NVIDIA H100 80GB HB\n", "cut off"),
        ("GPU 0: Tesla T4 (UUID: GPU-1)\n" + lgi("0  MIG 1g.5gb 19 7 4:1"), "no MIG"),
        ("<?xml version='1.0'?>\n<nvidia_smi_log><gpu>", "cut off"),
        ("<nvidia_smi_log><gpu></nvidia_smi_log>", "broken XML"),
        (H100 + "GPU 0: NVIDIA H200 (UUID: GPU-48aeb943-9458-4282-da24-e5f49e0db44b)\n", "above"),
        (lgi("0  MIG 3g.40gb          9        2          4:4    "), "--gpu PRODUCT"),
        ("GPU 0: NVIDIA X999 (UUID: GPU-48aeb943-9458-4282-da24-e5f49e0db44b)\n", "X999"),
        ("index, name, uuid\n0, NVIDIA H100 80GB HBM3\n", "2 values under 3 columns"),
        ("index, name, uuid\n0, [Unknown Error], GPU-1\n", ":2: a GPU does not answer"),
        (H100 + "GPU  0 Profile ID  9 Placements: {0,2}:4\n", "Profile|profile 9"),
    ],
)
def test_odd_texts_are_refused_with_the_reason(content, reason):
    told = refusal(text(content))
    assert any(part in told for part in reason.split("|")), told


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (H100, {"n1/0": None}),
        (H100 + "Unable to list GPU instances: Insufficient Permissions\n", {"n1/0": None}),
        (H100 + "No MIG-enabled devices found.\n", {"n1/0": "off"}),
        (H100 + "$ nvidia-smi mig -lgi\nNo GPU instances found: Not Found\n", {"n1/0": None}),
        # -L hides +me, so 1g.10gb may be either; 3g.40gb may start at 0 or at 4.
        (H100 + "  MIG 1g.10gb  Device  0: (UUID: MIG-c7384736)\n", {"n1/0": None}),
        (H100 + "  MIG 3g.40gb  Device  0: (UUID: MIG-c7384736)\n", {"n1/0": None}),
        (H100 + "  MIG 7g.80gb  Device  0: (UUID: MIG-c7384736)\n", {"n1/0": ["7g.80gb@0"]}),
        # What was made after a listing makes it old.
        (
            H100
            + lgi("0  MIG 3g.40gb          9        2          4:4    ")
            + "Successfully created GPU instance ID 1 on GPU 0 using profile MIG 3g.40gb (ID 9)\n",
            {"n1/0": None},
        ),
    ],
)
def test_what_is_not_said_is_not_written(content, expected):
    assert layouts(read(text(content))) == expected


def test_a_gpu_that_no_capture_shows_is_cordoned():
    found = read(text(H100.replace("GPU 0:", "GPU 2:")))
    assert nodes(found)["n1"]["gpus"] == 3
    assert nodes(found)["n1"]["devices"]["0"] == {"cordoned": True}


def test_a_gpu_of_another_product_is_cordoned():
    other = "GPU 1: NVIDIA DGX Display (UUID: GPU-00000000-9458-4282-da24-e5f49e0db44b)\n"
    found = read(text(H100 + other))
    assert nodes(found)["n1"]["devices"]["1"] == {"cordoned": True}
    assert "DGX Display" in found.left_out[0]


def test_files_are_joined_by_node():
    second = H100.replace("48aeb943", "99999999")
    table = lgi("0  MIG 3g.40gb          9        2          4:4    ")
    by_folder = read(
        text(H100, "a/L.txt", "a"), text(table, "a/lgi.txt", "a"), text(second, "b/L.txt", "b")
    )
    by_prompt = read(
        text("root@a:~# nvidia-smi -L\n" + H100),
        text("root@a:~# nvidia-smi mig -lgi\n" + table),
        text("[root@b ~]# nvidia-smi -L\n" + second),
    )
    by_stem = read(text(H100, "a-L.txt"), text(table, "a_lgi.txt"), text(second, "b-L.txt"))
    for found in (by_folder, by_prompt, by_stem):
        assert layouts(found) == {"a/0": ["3g.40gb@4"], "b/0": None}
    assert "which node" in refusal(text(H100, "1.txt"), text(second, "2.txt"), text(table, "3.txt"))


def test_a_row_without_header_is_read_by_its_values():
    row = (
        "0, NVIDIA H100 80GB HBM3, GPU-48aeb943-9458-4282-da24-e5f49e0db44b, 81559 MiB, Disabled\n"
    )
    assert layouts(read(text(row))) == {"n1/0": "off"}


def test_every_cut_of_every_capture_is_read_or_refused():
    """Cut anywhere, a capture gives the layout of the whole one, or none, or a refusal."""
    reached = 0
    for name in ("a30.txt", "h100-sxm.txt", "a100-40.txt"):
        whole = capture(name)
        said = read(whole)
        truth = layouts(said)
        for end in range(0, len(whole.text), 37):
            try:
                part = layouts(read(text(whole.text[:end], name), node=next(iter(nodes(said)))))
            except CannotRead:
                continue
            reached += 1
            for gpu, layout in part.items():
                if layout not in (None, [], "off"):
                    assert layout == truth[gpu], (name, end)
    assert reached > 20


def test_one_table_may_follow_another_at_once():
    table = lgi("0  MIG 3g.40gb          9        2          4:4    ")
    assert layouts(read(text(H100 + table + table))) == {"n1/0": ["3g.40gb@4"]}


def test_answers_of_other_commands_are_passed_over():
    said = read(text("root@n7:~# ls\nfoo  bar\nroot@n7:~# nvidia-smi -L\n" + H100))
    assert said.documents[0].notes == ()


def test_damage_is_refused_or_harmless():
    """Characters and lines lost, doubled or cut: never an error of ours, seldom another layout."""
    chance = random.Random(7)
    answered = 0
    for _ in range(300):
        whole = capture(chance.choice(["a30.txt", "h100-sxm.txt", "h200-qx.xml", "a100-r450.txt"]))
        lines = whole.text.splitlines(keepends=True)
        at = chance.randrange(len(lines))
        cut = lines[at][: chance.randrange(len(lines[at]) + 1)] + "\n"
        lines[at : at + 1] = chance.choice([[], [lines[at]] * 2, [cut]])
        try:
            found = read(text("".join(lines), whole.name))
        except CannotRead:
            continue
        answered += 1
        for id, layout in layouts(found).items():
            assert layout in (None, [], "off") or len(layout) >= 2, (whole.name, at, id)
    assert answered > 100


def lgip(free: int) -> str:
    return (
        BORDER
        + "| GPU instance profiles:                                                      |\n"
        + "| GPU   Name             ID    Instances   Memory     P2P    SM    DEC   ENC  |\n"
        + "|                              Free/Total   GiB              CE    JPEG  OFA  |\n"
        + BORDER
        + f"|   0  MIG 1g.12gb       19     {free}/7        10.62      No     16     1     0   |\n"
        + "|                                                             1     1     0   |\n"
        + BORDER
    )


def test_profiles_alone_suggest_their_product():
    assert "those of h100-94gb-nvl)" in refusal(text(lgip(7)))
    assert layouts(read(text(lgip(7)), gpu="h100-94gb-nvl")) == {"n1/0": []}
    assert layouts(read(text(lgip(5)), gpu="h100-94gb-nvl")) == {"n1/0": None}
    assert nodes(read(text(lgip(5)), gpu="h100-94gb-nvl"))["n1"]["devices"]["0"]["mig_enabled"]
    assert "devices" not in nodes(read(text(lgip(0)), gpu="h100-94gb-nvl"))["n1"]


def test_a_gpu_without_mig_says_so_in_many_ways():
    table = "index, name, uuid, mig.mode.current\n0, Tesla T4, GPU-00000000-1, [N/A]\n"
    node = nodes(read(text(table)))["n1"]
    assert node == {
        **{"name": "n1", "gpu": "t4", "gpus": 1},
        "devices": {"0": {"uuid": "GPU-00000000-1"}},
    }


@pytest.mark.parametrize(
    ("captured", "names"),
    [
        ("root@a:~# nvidia-smi -L\n{0}root@b.lab:~# nvidia-smi -L\n{1}", {"a", "b"}),
        ("[me@a ~]$ nvidia-smi -L\n{0}[me@a ~]$ ssh b nvidia-smi -L\n{1}", {"a", "b"}),
        ("$ ssh -i ~/.ssh/id root@a.lab 'sudo nvidia-smi -L'\n{0}", {"a"}),
        ("$ ssh -p 2222 a nvidia-smi -L\n{0}", {"a"}),
        ("a: {0}b: {1}", {"a", "b"}),
        ("root@10.0.0.7:~# nvidia-smi -L\n{0}", {"10.0.0.7"}),
        ("root@3f2a1b9c8d7e:/# nvidia-smi -L\n{0}", {"n1"}),
        ("me@pc:~$ kubectl exec -it p -- nvidia-smi -L\n{0}", {"n1"}),
        ("C:\\Users\\me> nvidia-smi -L\n{0}", {"n1"}),
    ],
)
def test_the_machine_of_each_line(captured, names):
    found = read(text(captured.format(H100, H100.replace("48aeb943", "99999999"))))
    assert set(nodes(found)) == names
    inside = "/#" in captured or "kubectl" in captured
    assert ["inside a container" in note for note in found.documents[0].notes] == [True] * inside
