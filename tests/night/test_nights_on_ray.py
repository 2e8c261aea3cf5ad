"""Nights on a real Ray of three emulated nodes, engines simulated: killed, and week after week.

FLEETSLICE_TEST_KILLS and FLEETSLICE_TEST_NIGHTS say how many; ``scripts/bench/nightly`` asks for 50
and 7.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from nightly_documents import paths, put
from prometheus_client.parser import text_string_to_metric_families

from emulated import Emulated, cluster
from leftovers import left_behind, processes_with
from optimizer.documents import load, read_plan
from optimizer.domain.outcome import Limits
from optimizer.launch import status, stop
from optimizer.launch.devices import device
from optimizer.launch.run import read
from optimizer.night import Code, Order, nightly
from optimizer.optimize import Inputs, optimize

KILLS = int(os.environ.get("FLEETSLICE_TEST_KILLS", "4"))
NIGHTS = int(os.environ.get("FLEETSLICE_TEST_NIGHTS", "3"))
SECONDS = 300 + 90 * KILLS + 120 * NIGHTS
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(SECONDS)]

# What is asked of each deployment on each day; the factors go up and down, and fit four GPUs.
DAYS = [
    {"chat": 400, "code": 90},
    {"chat": 750, "code": 40},
    {"chat": 300, "code": 140},
    {"chat": 600, "code": 50},
    {"chat": 350, "code": 200, "batch": 2},
    {"chat": 700, "code": 90},
    {"chat": 200, "code": 90, "batch": 2},
]
DIES, RETURNS = (3, 5) if NIGHTS >= 5 else (2, 3)
LOST = 1  # the number of n2, the cheapest, so that something always runs there


@pytest.fixture
def three_nodes(tmp_path) -> Iterator[Emulated]:
    put(tmp_path)
    found = load(paths(tmp_path))
    engines = {card.name: card for card in found.catalogue.engine_cards()}
    plan = optimize(Inputs(found.fleet, found.workloads, engines), Limits(effort=5)).plan
    with cluster(plan, tmp_path) as one:
        yield one
        if read(tmp_path / "run") is not None:
            run = read(tmp_path / "run").id
            stop(tmp_path / "run")
            assert left_behind(run) == []


def command(folder: Path, address: str) -> list[str]:
    said = ["--address", address, "--run-dir", str(folder / "run"), "--effort", "5"]
    said += ["--engine", "simulated", "--deadline", "60", *map(str, paths(folder))]
    return [sys.executable, "-m", "optimizer", "nightly", *said]


def start(folder: Path, address: str) -> subprocess.Popen[str]:
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(folder, address), start_new_session=True, **quiet)


def ended(night: subprocess.Popen[str], *codes: int) -> str:
    said, _ = night.communicate(timeout=300)
    assert night.returncode in codes, said
    return said


def runs(folder: Path) -> dict[str, list[str]]:
    """Where each replica runs; all must serve, once, and nothing else may be there."""
    rows = status(folder)
    assert [row["state"] for row in rows] == ["ready"] * len(rows), rows
    found = {row["replica"]: row["devices"] for row in rows}
    assert len(found) == len(rows)
    engines = [p for p in processes_with(read(folder).id) if "guard.py" in p]
    assert len(engines) == len(rows)
    return found


def planned(night: Path) -> dict[str, list[str]]:
    replicas = read_plan(night / "plan.json").placement.replicas
    return {r.id: [device(r, gpu) for gpu in r.gpus] for r in replicas}


def nights(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "run" / "nights").iterdir() if p.is_dir())


def complete(night: Path, *outcomes: str) -> dict[str, object]:
    """What its journal says; all that a person reads in the morning must be there."""
    said = json.loads((night / "night.json").read_text())
    assert said["outcome"] in outcomes
    assert said["reported"]
    assert "</html>" in (night / "report.html").read_text()
    assert "## Phases" in (night / "report.md").read_text()
    assert len(list((night / "inputs").iterdir())) == 3
    families = text_string_to_metric_families((night / "metrics.prom").read_text())
    values = {sample.name: sample.value for one in families for sample in one.samples}
    assert values["fleetslice_night_exit_code"] == said["code"]
    assert values["fleetslice_night_gap"] == 0
    assert values["fleetslice_night_duration_seconds"] > 0
    assert not [p for p in night.rglob(".*") if p.is_file()]  # nothing half-written
    return said


def expected(folder: Path, address: str, number: int) -> dict[str, list[str]]:
    """The placement that a night which nobody disturbs would come to."""
    order = Order(
        load(paths(folder), need=("Policy", "Fleet", "Workloads")),
        Limits(gap=0, effort=5, time_limit_s=300, workers=2, seed=0),
        folder / "looked" / str(number),
        folder / "run",
        address=address,
        engine="simulated",
        dry_run=True,
    )
    ending = nightly(order)
    assert ending.code is Code.CHANGED
    return planned(ending.folder)


def test_killed_at_any_moment_the_next_start_ends_it(three_nodes, tmp_path):
    dice = random.Random(9)
    address = three_nodes.address
    ended(start(tmp_path, address), 0)
    lasts, killed, in_phase = 20.0, 0, Counter()
    for trial in range(3 * KILLS):
        put(tmp_path, **DAYS[(trial + 1) % len(DAYS)])
        wanted = expected(tmp_path, address, trial)
        moment = dice.uniform(1.0, lasts)
        began = time.monotonic()
        while True:
            night = start(tmp_path, address)
            try:
                night.wait(moment)
                break
            except subprocess.TimeoutExpired:
                night.send_signal(signal.SIGKILL)
                night.wait()
                killed += 1
                last = json.loads((nights(tmp_path)[-1] / "night.json").read_text())
                in_phase[last["phases"][-1]["phase"] if last["phases"] else "begin"] += 1
                # Some then go on undisturbed, others are killed again while they go on.
                moment = 300.0 if dice.random() < 0.4 else dice.uniform(1.0, lasts)
        assert night.returncode == 0, night.communicate()[0]
        night.communicate()
        if moment != 300.0:
            lasts = time.monotonic() - began
        assert runs(tmp_path / "run") == wanted
        complete(nights(tmp_path)[-1], "done", "nothing")
        print(f"{killed} kills, by phase {dict(in_phase)}", flush=True)
        if killed >= KILLS:
            break
    assert killed >= KILLS


def test_night_after_night(three_nodes, tmp_path):
    address = three_nodes.address
    folder = tmp_path / "run"
    for number in range(1, NIGHTS + 1):
        put(tmp_path, **DAYS[(number - 1) % len(DAYS)])
        if number == DIES:
            three_nodes.kill_node(LOST)
            time.sleep(3)  # until Ray knows
        if number == RETURNS:
            three_nodes.bring_back(LOST)
        before = serving(folder) if read(folder) is not None else Counter()
        lowest: Counter[str] = Counter(before)
        night = start(tmp_path, address)
        while night.poll() is None:
            if before:
                lowest &= serving(folder)
            time.sleep(0.5)
        said = ended(night, 0)
        after = serving(folder)
        # A deployment never has fewer copies that serve than before or after, whichever is less.
        assert all(lowest[name] >= min(before[name], after[name]) for name in before), said
        found = complete(nights(tmp_path)[-1], "done", "nothing")
        there = runs(folder)
        assert there == planned(nights(tmp_path)[-1])
        on_lost = [r for r, devices in there.items() if any(d.startswith("n2/") for d in devices)]
        if DIES <= number < RETURNS:
            assert on_lost == []
        else:
            assert on_lost
        print(f"night {number}: {found['lines'][0]}")

        again = ended(start(tmp_path, address), 0)
        assert "nothing worth doing" in again
        complete(nights(tmp_path)[-1], "nothing")
        assert runs(folder) == there
    began = [
        datetime.fromisoformat(json.loads((p / "night.json").read_text())["began"])
        for p in nights(tmp_path)
    ]
    assert began == sorted(began)


def serving(folder: Path) -> Counter[str]:
    return Counter(row["deployment"] for row in status(folder) if row["state"] == "ready")
