"""Broken documents: every fault at once, at its place, with a way out.

``tests/data/broken`` holds them by kind, each named by its fault, with the faults expected beside
it; FLEETSLICE_UPDATE_GOLDEN=1 writes those anew. The documents in ``tests/data/good`` go with them.
"""

import os
import re
from pathlib import Path

import pytest

from optimizer.documents import DocumentFaults, load

DATA = Path(__file__).parents[1] / "data"
BESIDE = {
    "files": (),
    "fleet": ("workloads",),
    "workloads": ("fleet",),
    "state": ("fleet", "workloads"),
    "scenarios": ("fleet", "workloads"),
    "prices": ("fleet", "workloads"),
    "plan": (),
}
NEED = {"files": ("Fleet",), "plan": ("Plan",)}
BROKEN = sorted(p for p in (DATA / "broken").glob("*/*") if p.suffix in (".yaml", ".json"))
# file:line:column: path: message, where a whole file or document has no path.
PLACED = re.compile(r"\S+:\d+:\d+: .+\Z")


def faults_of(*files: str, need: tuple[str, ...] = ("Fleet", "Workloads")) -> list[str]:
    with pytest.raises(DocumentFaults) as told:
        load(files, need=need, strict_scenarios=True)
    return [str(fault) for fault in told.value.faults]


@pytest.mark.parametrize("path", BROKEN, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_fault_is_told_at_its_place(path, monkeypatch):
    monkeypatch.chdir(DATA)
    kind = path.parent.name
    beside = [f"good/{name}.yaml" for name in BESIDE[kind]]
    need = NEED.get(kind, ("Fleet", "Workloads"))
    found = faults_of(*beside, str(path.relative_to(DATA)), need=need)
    golden = path.with_name(f"{path.name}.txt")
    if os.environ.get("FLEETSLICE_UPDATE_GOLDEN"):
        golden.write_text("".join(f"{line}\n" for line in found), "utf-8")
    assert found == golden.read_text("utf-8").splitlines()
    assert any(PLACED.match(line) for line in found)


def test_no_golden_file_is_left_over():
    wanted = {path.with_name(f"{path.name}.txt") for path in BROKEN}
    assert set((DATA / "broken").glob("*/*.txt")) == wanted
    assert len(wanted) >= 20


def test_the_good_documents_are_good(monkeypatch):
    monkeypatch.chdir(DATA)
    load(["good"], need=("Fleet", "Workloads", "State", "Scenarios"), strict_scenarios=True)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "fleet.yaml").write_text("kind: Fleet\nversion: 1\nnodes: []\n")
    assert faults_of("empty", "flet.yaml") == [
        "empty: no .yaml, .yml or .json file in this folder",
        'flet.yaml: no such file; did you mean "fleet.yaml"?',
    ]


def test_kinds_that_are_needed_and_missing(monkeypatch):
    monkeypatch.chdir(DATA)
    assert faults_of("good/fleet.yaml", need=("Fleet", "Workloads", "State")) == [
        "good/fleet.yaml: no State among the documents; name the file that says what runs now, "
        "or an earlier plan, with --state",
        "good/fleet.yaml: no Workloads among the documents; name the file that lists the "
        "deployments",
    ]


def test_nesting_without_end_and_aliases_without_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("deep.yaml").write_text("a: " + "[" * 5000)
    Path("deep.json").write_text("[" * 200000)
    laughs = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    Path("laughs.yaml").write_text("\n".join(laughs))
    told = faults_of("deep.yaml", "deep.json", "laughs.yaml")
    assert [line.split(": ")[-1] for line in told if "nested" in line] == [
        "nested more than 60 deep",
        "nested more than 60 deep",
    ]
    assert any("more than 2,000,000 values in one file" in line for line in told)
