"""The command line as a user meets it: outputs, faults, exit codes, files."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from optimizer.cli.app import run
from optimizer.cli.terminal import Verbosity

GOLDEN = Path(__file__).parent / "golden"
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("FLEETSLICE_", "XDG_"))}


class Said(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, in which commands run without any settings of the person who tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def fleetslice(*arguments: str, **environment: str) -> Said:
    """Run the command in this process, in an environment without settings of whoever tests."""
    Verbosity.level = 0
    told = {**ENVIRONMENT, "HOME": os.getcwd(), "NO_COLOR": "1", **environment}
    with (
        mock.patch.dict(os.environ, told, clear=True),
        mock.patch.object(sys, "argv", ["fleetslice", *arguments]),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        code = run()
    return Said(code, out.getvalue(), err.getvalue())


def fleetslice_anew(*arguments: str, **environment: str) -> Said:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "optimizer", *arguments],
        env={**ENVIRONMENT, "HOME": os.getcwd(), "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def golden(name: str, text: str) -> None:
    """Compare with the stored file; FLEETSLICE_UPDATE_GOLDEN=1 writes it anew."""
    path = GOLDEN / name
    if os.environ.get("FLEETSLICE_UPDATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


@pytest.fixture
def starter(folder):
    """The documents of ``init``."""
    assert fleetslice("init").code == 0
    return ["fleet.yaml", "workloads.yaml"]


@pytest.mark.parametrize(
    "command",
    ["", "init", "validate", "size", "plan", "rebalance", "verify", "explain", "diff", "report"]
    + ["launch", "status", "stop", "whatif", "catalogue"],
)
def test_help_of_each_command_has_an_example(folder, command):
    said = fleetslice(*command.split(), "--help")
    assert said.code == 0
    assert "Usage: fleetslice" in said.out
    if command != "catalogue":
        assert f"\n    fleetslice {command}".rstrip() in said.out


def test_validate(starter):
    said = fleetslice("validate", *starter)
    assert said == Said(0, "fleet.yaml: Fleet: valid\nworkloads.yaml: Workloads: valid\n", "")


def test_init_replaces_nothing(starter):
    Path("fleet.yaml").write_text("mine")
    said = fleetslice("init")
    assert said.code == 2
    assert "fleet.yaml: is there already" in said.err
    assert Path("fleet.yaml").read_text() == "mine"


def test_every_fault_is_told_at_its_place(starter):
    fleet = Path("fleet.yaml")
    fleet.write_text(fleet.read_text().replace("gpu: l40s", "gpu: l40z").replace("0.90", "-1"))
    said = fleetslice("plan", *starter)
    assert said.code == 2
    assert said.out == ""
    golden("faults.txt", said.err)
    same = fleetslice("validate", *starter, "-o", "json")
    assert (same.code, same.err) == (2, "")
    faults = json.loads(same.out)["faults"]
    assert said.err.endswith(f"{len(faults)} faults\n")
    assert all(fault["line"] and fault["message"] for fault in faults)


def test_size_says_what_it_assumes(folder):
    flags = ["--gpu", "l40s", "--tensor-parallel-size", "1", "--precision", "bf16"]
    said = fleetslice("size", "llama-3.1-8b", *flags, "--engine", "vllm@99.1")
    assert said.code == 0
    assert "note: vllm 99.1 is newer than what is known here" in said.err
    said = fleetslice("size", "llama-3.1-8b", *flags, "--engine", "vllm", "--concurrency", "2")
    assert "bound by --concurrency 2: nobody waits for a place" in said.out
    said = fleetslice("size", "llama-3.1-8b", *flags, "--swa-full-tokens-ratio", "0.5")
    assert "is a flag of sglang" in said.err
    assert "llama-3.1-8b has no sliding window" in said.err


def test_quiet_and_verbose_stand_before_or_after_the_command(starter):
    for flags in (["-q", "plan"], ["plan", "-q"]):
        assert fleetslice(*flags, *starter, "--out", "a.json").err == ""
    assert "wrote a.json" in fleetslice("plan", *starter, "--out", "a.json", "-v").err


def test_flags_are_listed_by_group(folder):
    said = fleetslice("plan", "--help")
    assert said.out.index("Options:") < said.out.index("What is shown and written:")
    assert said.out.index("What is shown and written:") < said.out.index("Limits of the search:")


def test_profiles(folder):
    said = fleetslice("catalogue", "profiles", "h100-80gb-sxm")
    assert said.code == 0
    golden("profiles.txt", said.out)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["size", "bge-m3", "--tpot-ms", "9"], 2, "limit --ttft-ms"),
        (["size", "gemma-3-4b", "--engine", "vllm", "--swa-full-tokens-ratio", "1"], 2, "sglang"),
        (["size", "llama-3.1-8b", "--attention", "flash"], 2, "no attention kernel"),
        (["size", "llama-3.1-8b", "--price", "l4=-1"], 2, "write GPU=PRICE"),
        (["explain", "p.json", "-o", "html"], 2, "not a form of this command"),
        (["size", "lama-3.1-8b"], 2, 'did you mean "llama-3.1-8b"?'),
        (["size", "llama-3.1-8b", "--gpu", "h100"], 2, 'did you mean "h100-80gb-pcie", '),
        (["size", "llama-3.1-8b", "--batch", "2", "--offline"], 2, "give one"),
        (["size", "llama-3.1-8b", "--mig-profile", "1g.10gb"], 2, "add --gpu"),
        (["size", "bge-m3", "--gpu", "l40s", "--mig-profile", "1g.10gb"], 2, "has no MIG"),
        (["size", "bge-m3", "--gpu", "h100-80gb-sxm", "--mig-profile", "1g"], 2, "no profile of"),
        (["size", "llama-3.1-8b", "--engine", "vllm@x"], 2, "is no version"),
        (["plan", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["plan"], 2, "Missing argument"),
        (["report", "nowhere.json"], 2, "nowhere.json"),
        (["catalogue", "schema", "Flet"], 2, 'did you mean "Fleet"?'),
        (["status", "-o", "markdown"], 2, "not a form of this command"),
        (["catalogue", "profiles", "l40s"], 2, "has no MIG"),
    ],
)
def test_wrong_usage_is_told_with_a_way_out(folder, arguments, code, told):
    said = fleetslice(*arguments)
    assert said.code == code
    assert told in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    command = f"{sys.executable} -m optimizer catalogue models | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_a_reader_that_has_seen_enough_does_not_change_the_exit_code(starter):
    text = Path("workloads.yaml").read_text()
    more = re.sub(r"requests_per_second: [\d.]+", "requests_per_second: 9000", text)
    Path("workloads.yaml").write_text(more)
    command = f"{sys.executable} -m optimizer plan {' '.join(starter)} --effort 5"
    piped = f"{command} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "3"
    assert done.stderr == ""


def test_size_of_what_fits_nowhere(folder):
    said = fleetslice("size", "llama-3.1-405b", "--gpu", "l4", "-o", "json")
    data = json.loads(said.out)
    assert said.code == 3
    assert data["candidates"] == []
    assert all(entry["reason"] for entry in data["refused"])


def test_size_with_all_given_is_one_entry(folder):
    flags = ["--gpu", "h100-80gb-sxm", "--tensor-parallel-size", "2", "--precision", "fp8"]
    said = fleetslice("size", "llama-3.1-70b", *flags, "--engine", "vllm@0.11.0", "-o", "json")
    data = json.loads(said.out)
    assert said.code == 0
    assert len(data["candidates"]) + len(data["refused"]) == 1
    memory = data["candidates"][0]["memory"]
    parts = ("weights", "activation", "runtime", "kv_cache")
    inside = sum(memory[f"{part}_mib"] for part in parts)
    inside += memory["cuda_graphs_mib"] if memory["cuda_graphs_inside_budget"] else 0
    assert abs(inside - memory["budget_mib"]) <= len(parts)


def test_plan_is_written_judged_explained_and_reported(starter):
    said = fleetslice("plan", *starter, "--out", "a.json")
    assert said.code == 0, said.err
    assert "Plan for my-fleet: proved optimal" in said.out
    assert "\x1b" not in said.out
    judged = fleetslice("verify", *starter, "a.json")
    assert judged.code == 0
    assert judged.out.startswith("The plan holds")
    data = json.loads(fleetslice("verify", *starter, "a.json", "-o", "json").out)
    assert (data["holds"], data["violations"]) == (True, [])
    assert fleetslice("report", "a.json").out == said.out
    short = fleetslice("report", "a.json", "--summary")
    assert len(short.out.splitlines()) <= 10
    why = fleetslice("explain", "a.json", "chat")
    assert why.code == 0
    assert "chat (acme) runs" in why.out
    told = json.loads(fleetslice("explain", "a.json", "chat", "-o", "json").out)
    assert told["sentences"] == why.out.splitlines()
    (price,) = told["marginal_prices"]["requests_per_second"]
    assert price["deployment"] == "chat"
    assert 0 <= price["low"] <= price["high"]
    again = fleetslice("rebalance", *starter, "--state", "a.json", "--detailed-exitcode")
    assert again.code == 0
    assert "Nothing to move" in again.out
    assert fleetslice("diff", "a.json", "a.json").code == 0


def test_verify_refuses_a_tampered_plan(starter):
    fleetslice("plan", *starter, "--out", "a.json")
    plan = json.loads(Path("a.json").read_text())
    plan["replicas"][0]["gpus"] = ["l40s-01/1"]
    Path("b.json").write_text(json.dumps(plan))
    assert fleetslice("verify", *starter, "b.json").code == 7
    said = fleetslice("verify", *starter, "b.json", "-o", "json")
    assert said.code == 7
    assert json.loads(said.out)["violations"][0]["rule"]
    assert fleetslice("diff", "a.json", "b.json").code == 10


@pytest.mark.parametrize("place", [("price_per_hour",), ("outcome", "objectives", 1, "gap")])
def test_verify_refuses_figures_that_contradict_others(starter, place):
    fleetslice("plan", *starter, "--out", "a.json")
    plan = inner = json.loads(Path("a.json").read_text())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] += 0.01
    Path("b.json").write_text(json.dumps(plan))
    said = fleetslice("verify", *starter, "b.json", "-o", "json")
    assert said.code == 7
    assert [one["rule"] for one in json.loads(said.out)["violations"]] == ["document"]


def test_verify_says_what_the_certificate_proves(starter):
    fleetslice("plan", *starter, "--out", "a.json")
    plan = json.loads(Path("a.json").read_text())
    bound = plan["certificate"]["bound_micros"] / 1e6
    judged = fleetslice("verify", *starter, "a.json")
    assert f"no plan that serves all costs less than {bound:.2f}" in judged.out
    plan["certificate"] = {}
    Path("b.json").write_text(json.dumps(plan))
    assert "carries no certificate" in fleetslice("verify", *starter, "b.json").out


def test_a_plan_says_when_its_inputs_have_changed(starter):
    fleetslice("plan", *starter, "--out", "a.json")
    with Path("fleet.yaml").open("a") as fleet:
        fleet.write("# more\n")
    assert "fleet.yaml has changed" in fleetslice("explain", "a.json").err
    Path("fleet.yaml").unlink()
    lost = fleetslice("explain", "a.json")
    assert lost.code == 2
    assert "--with" in lost.err


def test_the_same_plan_byte_for_byte_under_other_hash_seeds(starter):
    plans = []
    for seed in ("1", "2"):
        fleetslice_anew("plan", *starter, "--out", "a.json", PYTHONHASHSEED=seed)
        plan = json.loads(Path("a.json").read_text())
        del plan["outcome"]["run"]
        plans.append(json.dumps(plan))
    assert plans[0] == plans[1]


def test_out_must_be_writable_before_the_work(starter):
    said = fleetslice("plan", *starter, "--out", "no/such/folder.json")
    assert said.code == 2
    assert "there is no folder" in said.err
    assert said.out == ""


def test_flags_over_environment_over_config_file(starter):
    Path("fleetslice.toml").write_text('output = "json"\n[diff]\noutput = "yaml"\n')
    assert json.loads(fleetslice("plan", *starter).out)["fleet"] == "my-fleet"
    assert fleetslice("plan", *starter, FLEETSLICE_OUTPUT="markdown").out.startswith("## Plan")
    said = fleetslice("plan", *starter, "-o", "table", FLEETSLICE_OUTPUT="markdown")
    assert said.out.startswith("Plan for")


def test_config_file_with_an_unknown_flag_is_refused(folder):
    Path("fleetslice.toml").write_text("colour = true\n[plan]\nspeed = 3\n")
    said = fleetslice("catalogue", "gpus")
    assert said.code == 2
    golden("config.txt", said.err)


def test_launch_refuses_a_plan_whose_inputs_have_changed(starter):
    fleetslice("plan", *starter, "--out", "a.json")
    with Path("workloads.yaml").open("a") as workloads:
        workloads.write("# more\n")
    asked = ["launch", "a.json", "--engine", "simulated", "--dry-run"]
    said = fleetslice(*asked)
    assert said.code == 5
    assert "workloads.yaml has changed" in said.err
    assert fleetslice(*asked, "--changed-inputs").code == 0


def test_launch_asks_and_nobody_answers(starter):
    fleetslice("plan", *starter, "--out", "a.json")
    said = fleetslice("launch", "a.json", "--engine", "simulated")
    assert said.code == 2
    assert "--yes" in said.err
    shown = fleetslice("launch", "a.json", "--engine", "simulated", "--dry-run", "--only", "acme")
    assert shown.code == 0
    assert "start chat/0 on" in shown.out
    assert "ocr/0" not in shown.out
