"""Captures as other people's machines, terminals and tools leave them: read right, or refused.

Forms seen in public issue threads, written anew with names and numbers of our own.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.documents import catalogue
from optimizer.documents.yaml_reader import read_yaml
from optimizer.exchange import IMPORTERS, CannotRead, File, Import, Input

CAPTURES = Path(__file__).parent.parent / "data" / "captures"
GPUS = catalogue().gpus.all()
A100, A30, RTX = "NVIDIA A100-SXM4-80GB", "NVIDIA A30", "NVIDIA RTX PRO 6000 Blackwell"
BAR = "+-------------------------------------------------------+\n"
TOP = BAR + (
    "| GPU instances:                                        |\n"
    "| GPU   Name             Profile  Instance   Placement  |\n"
    "|                          ID       ID       Start:Size |\n"
    "|=======================================================|\n"
)
ROW_4 = "  0  MIG 3g.40gb          9        2          4:4    "
ROW_0 = "  0  MIG 3g.40gb          9        1          0:4    "


def gpus(name: str = A100, count: int = 1, mark: int = 0) -> str:
    """``nvidia-smi -L``."""
    uuid = f"GPU-{mark}1a2b3c4-0000-1111-2222-00000000000"
    return "".join(f"GPU {i}: {name} (UUID: {uuid}{i})\n" for i in range(count))


def lgi(*rows: str) -> str:
    return TOP + "".join(f"| {row} |\n{BAR}" for row in rows)


def table(*rows: tuple[str, str, str, str], driver: str = "535.104.05") -> str:
    """The table of plain ``nvidia-smi``: name, mode, MiB and MIG of each GPU."""
    rule = "+-----------------------------------------+----------------------+----------------+\n"
    text = rule + f"| NVIDIA-SMI {driver}     Driver Version: {driver}   CUDA Version: 12.2  |\n"
    for index, (name, mode, mib, mig) in enumerate(rows):
        bus = f"00000000:{index + 1}1:00.0"
        text += (
            f"|   {index}  {name:<28} {mode:>5}  | {bus} Off |                0 |\n"
            f"| N/A   33C    P0              87W / 400W |      9MiB / {mib}MiB |  0%  Default |\n"
            f"|                                         |                      | {mig:>14} |\n"
            + rule
        )
    return text + "\n"


def held(*rows: str) -> str:
    """The table of MIG devices: GPU, GI, CI and device of each."""
    return "| MIG devices:                                            |\n" + "".join(
        f"|  {row}  |     37MiB /  9728MiB  | 16      0 |  1   0    0    0    0 |\n"
        "|                  |      0MiB / 16383MiB |           |                       |\n" + BAR
        for row in rows
    )


def stamped(text: str) -> str:
    lines = enumerate(text.splitlines())
    return "".join(f"2026-01-02T03:04:05.{n:06d}Z {line}\n" for n, line in lines)


def quoted(text: str, mark: str) -> str:
    return "".join(f"{mark}{line}\n" for line in text.splitlines())


WHOLE = gpus() + lgi(ROW_4)
MADE = "Successfully created GPU instance ID  2 on GPU  0 using profile MIG 3g.40gb (ID  9)\n"
DESTROYED = "Successfully destroyed GPU instance ID  2 from GPU  0\n"
NONE = "No GPU instances found: Not Found\n"
BUSY = (
    "Warning: MIG mode is in pending enable state for GPU 00000000:31:00.0:In use by another client"
)
SMALL_LGIP = (
    "| GPU instance profiles:                                                        |\n"
    "|   0  MIG 1g.23gb         19     7/7        22.00      No     18     1     0   |\n"
    "|                                                               2     1     0   |\n"
)


def read(text: str, kind: str = "nvidia-smi", name: str = "n1.txt") -> Import:
    def parse(file: File) -> list:
        values, faults = read_yaml(file.text)
        if faults:
            raise CannotRead(*(f.message for f in faults))
        return [value for value, _ in values]

    return IMPORTERS[kind](Input((File(name, text),), GPUS, parse))


def layouts(found: Import) -> dict[str, str]:
    """``n1/0``: its instances, ``off``, ``closed``, ``?`` where nothing is said of MIG."""
    shown = {}
    for node in found.documents[0].data["nodes"]:
        for index in range(node["gpus"]):
            device = node.get("devices", {}).get(str(index), {})
            said = [f"{p['profile']}@{p['start']}" for p in device.get("layout", ())]
            text = " ".join(said) or ("none" if "layout" in device else "?")
            text = "off" if device.get("mig_enabled") is False else text
            shown[f"{node['name']}/{index}"] = "closed" if device.get("cordoned") else text
    return shown


def told(found: Import) -> str:
    said = (n for d in found.documents for n in (*d.notes, *d.unsaid))
    return "\n".join([*found.left_out, *said])


ODD = {
    "a driver calls 3g.40gb 3g.39gb": (
        gpus() + lgi(ROW_0.replace("40gb", "39gb"), ROW_4.replace("40gb", "39gb")),
        {"n1/0": "3g.40gb@0 3g.40gb@4"},
        "calls 3g.40gb (profile 9) 3g.39gb",
    ),
    "another driver's sizes": (
        gpus("NVIDIA GB200") + lgi(ROW_4.replace("40gb", "95gb")),
        {"n1/0": "3g.93gb@4"},
        "calls 3g.93gb",
    ),
    "names cut short in the table": (
        table(
            ("NVIDIA A100 80G...", "On", "81920", "Enabled"),
            ("NVIDIA A100 80G...", "On", "81920", "Disabled"),
        )
        + held("0    2   0   0")
        + lgi(ROW_4),
        {"n1/0": "3g.40gb@4", "n1/1": "off"},
        "",
    ),
    "Windows with TCC": (table(("Tesla T4", "TCC", "15360", "N/A")), {"n1/0": "?"}, ""),
    "Windows with MCDM": (table(("NVIDIA L4", "MCDM", "23034", "N/A")), {"n1/0": "?"}, ""),
    "one of two GPUs broken": (
        table(("NVIDIA H100 PCIe", "On", "81559", "Disabled"), ("ERR!", "On", "81559", "ERR!")),
        {"n1/0": "off", "n1/1": "closed"},
        "n1/1 is ERR!",
    ),
    "no CUDA version": (
        table(("NVIDIA L4", "On", "23034", "N/A")).replace("Version: 12.2", "Version: ERR!"),
        {"n1/0": "?"},
        "",
    ),
    "MIG waits for a reset": (
        table((A100, "On", "81920", "Disabled*")),
        {"n1/0": "off"},
        "waits for a reset",
    ),
    "MIG could not be turned on": (gpus() + BUSY + "\n", {"n1/0": "?"}, "pending enable state"),
    "no permission": (
        gpus() + "Failed to display compute instances: Insufficient Permissions\n",
        {"n1/0": "?"},
        "Insufficient Permissions",
    ),
    "a driver older than MIG": (
        gpus("A100-SXM4-40GB") + '# nvidia-smi mig -lgi\nOption "mig" is not recognized.\n',
        {"n1/0": "?"},
        "not recognized",
    ),
    "instances made after a listing": (
        WHOLE + MADE.replace("ID  2", "ID  1"),
        {"n1/0": "?"},
        "MIG is on, its instances are not told",
    ),
    "instances gone since": (
        WHOLE + DESTROYED + "$ nvidia-smi mig -lgi\n" + NONE,
        {"n1/0": "none"},
        "",
    ),
    "only some could be made": (
        gpus() + MADE + "Failed to create GPU instances: Insufficient Resources\n",
        {"n1/0": "?"},
        "Insufficient Resources",
    ),
    "compute instances": (
        gpus()
        + "  MIG 1c.3g.40gb  Device  0: (UUID: MIG-a-1)\n"
        + "  MIG 2c.3g.40gb  Device  1: (UUID: MIG-a-2)\n"
        + lgi(ROW_4),
        {"n1/0": "3g.40gb@4"},
        "divided further",
    ),
    "a wider table": (gpus("NVIDIA B200") + SMALL_LGIP, {"n1/0": "none"}, ""),
    "Ansible": (
        f"a | CHANGED | rc=0 >>\n{WHOLE}b | FAILED | rc=127 >>\nnvidia-smi: command not found\n",
        {"a/0": "3g.40gb@4"},
        "b: n1.txt:",
    ),
    "dshbak": (
        f"--------\na\n--------\n{WHOLE}--------\nb7\n--------\n{gpus(mark=9)}",
        {"a/0": "3g.40gb@4", "b7/0": "?"},
        "",
    ),
    "clush -b over alike nodes": (
        f"--------\na1\n--------\n{gpus()}--------\na2\n--------\n{gpus(mark=9)}"
        f"--------\na[1-2] (2)\n--------\n{lgi(ROW_4)}",
        {"a1/0": "3g.40gb@4", "a2/0": "3g.40gb@4"},
        "",
    ),
    "kubectl logs with times": (stamped(WHOLE), {"n1/0": "3g.40gb@4"}, ""),
    "a container sees a part": (
        "root@3f2a1b9c8d7e:/# nvidia-smi -L\n"
        + gpus()
        + "  MIG 4g.40gb     Device  0: (UUID: MIG-a-1)\n",
        {"n1/0": "?"},
        "inside a container",
    ),
    "kubectl exec": (
        "$ kubectl exec ds/driver -- nvidia-smi -L\n"
        'Defaulted container "ctr" out of: ctr, init (init)\n' + gpus(A30),
        {"n1/0": "?"},
        "inside a container",
    ),
    "commands without prompts": (
        "nvidia-smi -L\n" + gpus(count=2) + "sudo nvidia-smi mig -lgi -i 1\n" + NONE,
        {"n1/0": "?", "n1/1": "none"},
        "",
    ),
    "prompts without a machine": (
        f"sh-4.4# nvidia-smi -L\n{gpus()}[gpu6 ~]# ls\nfoo bar\n~ # nvidia-smi mig -lgi\n"
        + lgi(ROW_4),
        {"n1/0": "3g.40gb@4"},
        "",
    ),
    "a pod's prompt": (
        "root@driver-daemonset-8mp6n:/drivers# nvidia-smi -L\n" + gpus(),
        {"n1/0": "?"},
        "inside a container",
    ),
    "quoted": (quoted("```\n" + WHOLE + "```\n", "> "), {"n1/0": "3g.40gb@4"}, ""),
    "quoted twice, closely": (quoted(WHOLE, ">>"), {"n1/0": "3g.40gb@4"}, ""),
    "as code in a line": (f"`{gpus().strip()}`\n", {"n1/0": "?"}, ""),
    "as HTML": (f"<pre>\n{WHOLE}</pre>\n", {"n1/0": "3g.40gb@4"}, ""),
    "colours and CRLF": (
        ("\x1b[?2004h\x1b[32mroot@n9\x1b[0m:\x1b(B~# nvidia-smi -L\n" + WHOLE).replace(
            "\n", "\r\n"
        ),
        {"n9/0": "3g.40gb@4"},
        "",
    ),
    "bare CR": (WHOLE.replace("\n", "\r"), {"n1/0": "3g.40gb@4"}, ""),
    "tabs for spaces": (gpus().replace(" ", "\t"), {"n1/0": "?"}, ""),
    "indented": (quoted(WHOLE, "        "), {"n1/0": "3g.40gb@4"}, ""),
    "watch": (f"Every 1.0s: nvidia-smi -L    n1: Tue\n\n{WHOLE}", {"n1/0": "3g.40gb@4"}, ""),
    "topology beside": (
        f"root@n1:~# nvidia-smi -L\n{gpus(count=2)}root@n1:~# nvidia-smi topo -m\n"
        "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV12\t0-47\nGPU1\tNV12\t X \t0-47\n",
        {"n1/0": "?", "n1/1": "?"},
        "",
    ),
}
REFUSED = {
    "vGPU": (gpus("GRID A100D-40C"), "no datasheet of 1 x GRID A100D-40C"),
    "a product of one market": (gpus("NVIDIA A800-SXM4-80GB", 8), "no datasheet of 8 x"),
    "wrapped at the terminal's edge": (
        re.sub(r"-2222-", "\n-2222-", gpus(f"{RTX} Server Edition")),
        "cut off",
    ),
    "a wrapped placement": (
        gpus() + "GPU  0 Profile ID 19 Placements: {0,1,2,3,\n4,5,6}:1\n",
        "cut off",
    ),
    "rows that grep left": (gpus() + f"| {ROW_4} |\n", "stands in no table"),
    "WSL with GPUs it cannot open": (
        "Unable to determine the device handle for GPU0: 0000:C1:00.0: Unknown Error\n"
        "No devices were found\n",
        "does not answer",
    ),
    "a crash": ("Segmentation fault (core dumped)\n", "not understood"),
    "a spreadsheet's semicolons": ("index;uuid;name\n0;GPU-1;NVIDIA A30\n", "not understood"),
    "AMD's tool": ("GPU[0]\t\t: Card series: AMD Instinct MI300X\n", "not understood"),
    "DCGM's tool": ("| 0      | Name: NVIDIA A100-SXM4-80GB |\n", "not understood"),
    "a task's number in front": (quoted(gpus(), "0: "), "not understood"),
    "a number with two points": (
        gpus(A30)
        + "| GPU instance profiles:   |\n"
        + "|   0  MIG 1g.6gb  14   4/4   5.85.81   No   14  1  0   |\n",
        "not whole",
    ),
    "a line without end": (gpus().replace("GPU 0", "GPU " + "9" * 5000), "more than a line"),
    "an index beyond any node": (gpus().replace("GPU 0", "GPU 99999999"), "more than a node has"),
}


@pytest.mark.parametrize(("text", "expected", "note"), ODD.values(), ids=ODD)
def test_odd_captures_are_read_right(text, expected, note):
    found = read(text)
    assert layouts(found) == expected
    assert note in told(found)


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_odd_captures_are_refused_with_the_reason(text, reason):
    with pytest.raises(CannotRead) as refused:
        read(text)
    assert reason in "\n".join(refused.value.reasons)


# Damage at random ---------------------------------------------------------------------------------

SMI = ("a100-r450.txt", "a30.txt", "h100-q.txt", "h100-sxm.txt", "h200-qx.xml", "rtx-pro-6000.txt")
MARKS = "|+-:;,.{}()<>/\\\"' \t\r\n\x00\x1b\u00a0é0123456789GMIgb"


@st.composite
def damaged(draw, names: tuple[str, ...]) -> tuple[str, str, str]:
    """A capture's name, its text, and that with some characters lost, doubled or replaced."""
    name = draw(st.sampled_from(names))
    text = whole = (CAPTURES / name).read_text("utf-8")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        end = at + draw(st.sampled_from([0, 0, 1, 1, 3, 80, 400]))
        put = draw(st.text(MARKS, max_size=4)) if draw(st.booleans()) else text[at:end] * 2
        text = text[:at] + put + text[end:]
    return name, whole, text


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(damaged(SMI))
def test_damaged_captures_are_answered_or_refused(case):
    """Never an error of ours; what is read is legal, and of no product that was not there."""
    name, whole, text = case
    products = {n["gpu"] for n in read(whole, name=name).documents[0].data["nodes"]}
    try:
        found = read(text, name=name)
    except CannotRead:
        return
    for node in found.documents[0].data["nodes"]:
        assert node["gpu"] in products
        gpu = next(g for g in GPUS if g.name == node["gpu"])
        for device in node.get("devices", {}).values():
            placed = {(p["profile"], p["start"]) for p in device.get("layout", ())}
            for profile, start in placed:
                assert start in gpu.mig.profile(profile).starts


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.sampled_from(SMI), st.integers(0, 10_000))
def test_captures_cut_off_lose_facts_and_gain_none(name, end):
    whole = (CAPTURES / name).read_text("utf-8")
    truth = layouts(read(whole, name=name))
    try:
        found = layouts(read(whole[: end % len(whole)], name=name))
    except CannotRead:
        return
    for gpu, said in found.items():
        assert said in ("?", "closed", truth.get(gpu, "?")), (gpu, said, truth.get(gpu))


# Where a field may hold anything at all.
JUNK = st.sampled_from(
    ["null", "-1", "0", "1e30", "1.5", "true", '""', '"x"', "[]", "{}", "[null]"]
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.data())
def test_objects_with_any_field_exchanged_are_answered_or_refused(data):
    whole = json.loads((CAPTURES / "kubernetes.json").read_text("utf-8"))
    for _ in range(data.draw(st.integers(1, 3))):
        value = whole
        for _ in range(data.draw(st.integers(1, 8))):
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if not isinstance(value[key], dict | list) or data.draw(st.integers(0, 5)) == 0:
                value[key] = json.loads(data.draw(JUNK))
                break
            value = value[key]
    try:
        found = read(json.dumps(whole), "kubernetes", "k.json")
    except CannotRead:
        return
    for node in found.documents[0].data["nodes"]:
        assert 1 <= node["gpus"] <= 1024


@settings(max_examples=100, deadline=None, derandomize=True)
@given(damaged(("kubernetes.json",)))
def test_damaged_json_is_answered_or_refused(case):
    try:
        read(case[2], "kubernetes", "k.json")
    except CannotRead:
        return
