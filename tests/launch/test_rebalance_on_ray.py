"""Rebalancing plans carried out on a real Ray of two emulated nodes, engines simulated."""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from rebalances import AFTER, BEFORE, plan_of, rebalance_plan

from emulated import Emulated, cluster
from leftovers import left_behind, processes_with
from optimizer.launch import (
    SIMULATED,
    LaunchRefused,
    Patience,
    PlanStale,
    launch,
    rollback,
    status,
    stop,
)
from optimizer.launch.devices import device
from optimizer.launch.journal import Journal
from optimizer.launch.run import read

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(180)]

QUICK = Patience(ready_s=60, health_every_s=0.2, backoff_s=0.1, backoff_most_s=0.5, grace_s=5)
FIRST = plan_of(*BEFORE)
PLAN = rebalance_plan()


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory) -> Iterator[Emulated]:
    with cluster(FIRST, tmp_path_factory.mktemp("ray")) as one:
        yield one


@pytest.fixture
def put(two_nodes, tmp_path):
    """Launches on the two nodes; what still runs after the test is stopped, and nothing is left."""
    folder = tmp_path / "run"

    def start(plan, **said):
        said = {"engine": SIMULATED, "patience": QUICK, "run_dir": folder, **said}
        return launch(plan, address=two_nodes.address, **said)

    yield start
    run = read(folder)
    if run is not None:
        stop(folder)
        assert left_behind(run.id) == []


def places(replicas) -> dict[str, list[str]]:
    return {r.id: [device(r, gpu) for gpu in r.gpus] for r in replicas}


def runs(folder) -> dict[str, list[str]]:
    """Where each replica runs; all must serve, and once."""
    rows = status(folder)
    assert [row["state"] for row in rows] == ["ready"] * len(rows), rows
    assert all(row["planned"] == row["devices"] for row in rows)
    found = {row["replica"]: row["devices"] for row in rows}
    assert len(found) == len(rows)
    engines = [p for p in processes_with(read(folder).id) if "guard.py" in p]
    assert len(engines) == len(rows)
    return found


@contextmanager
def load(endpoint: str, *deployments: str) -> Iterator[list[tuple[str, int | str]]]:
    """Steady requests to each deployment's address, every other one streamed; their ends."""
    over, ends = threading.Event(), []

    def ask(deployment: str, number: int) -> int | str:
        connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=60)
        said = {"model": deployment, "max_tokens": 5, "stream": number % 2 == 0}
        body = json.dumps({**said, "messages": [{"role": "user", "content": "hello"}]})
        try:
            connection.request("POST", f"/{deployment}/v1/chat/completions", body)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return repr(error)
        finally:
            connection.close()
        whole = b"[DONE]" in text if said["stream"] else b"choices" in text
        return answer.status if whole else f"cut off: {text!r}"

    def client(deployment: str) -> None:
        number = 0
        while not over.wait(0.1):
            number += 1
            ends.append((deployment, ask(deployment, number)))

    clients = [threading.Thread(target=client, args=(d,)) for d in 2 * deployments]
    for one in clients:
        one.start()
    try:
        yield ends
    finally:
        over.set()
        for one in clients:
            one.join()


def test_a_rebalance_there_and_back_under_load(put, tmp_path):
    endpoint = put(FIRST, router=True).endpoint
    with load(endpoint, "chat", "code") as ends:
        result = put(PLAN)
    assert result.endpoint == endpoint
    assert {deployment for deployment, _ in ends} == {"chat", "code"}
    assert len(ends) > 20
    assert [end for end in ends if end[1] != 200] == []
    assert not result.partial
    assert result.done == tuple(step.id for step in PLAN.steps)
    assert runs(tmp_path / "run") == places(AFTER)
    with Journal(tmp_path / "run", read(tmp_path / "run").id) as journal:
        assert journal.layout("n1/0") == {0: "2g.20gb"}
    again = put(PLAN)
    assert again.started == ()
    assert again.kept == tuple(sorted(r.id for r in AFTER))

    back = rollback(tmp_path / "run")
    assert not back.partial
    assert runs(tmp_path / "run") == places(BEFORE)
    with pytest.raises(LaunchRefused, match="the last good placement runs already"):
        rollback(tmp_path / "run")


@pytest.mark.parametrize("mended", [True, False], ids=["mended", "undone"])
def test_a_failed_step_holds_up_only_what_needs_it(put, tmp_path, mended):
    put(FIRST)
    short = Patience(ready_s=2, backoff_s=0.1, backoff_most_s=0.1, grace_s=5)
    result = put(PLAN, faults={"code/0": "never-ready"}, patience=short)
    [failed] = result.failed
    started = next(s.id for s in PLAN.steps if s.replica == "code/0" and s.action == "start")
    assert (failed.replica, failed.step) == ("code/0", started)
    assert "never ready in 3 starts: not ready within 2 s" in failed.reason
    assert any(line.startswith("simulated engine of code") for line in failed.log)
    # What needs it is not begun; the old copy serves on, and the rest has moved.
    blocked = {s.id for s in PLAN.steps if s.replica in ("code/0", "vision/1")} - {started}
    assert set(result.blocked) == blocked
    serve = {row["replica"]: row["devices"] for row in status(tmp_path / "run")}
    planned = {row["replica"]: row["planned"] for row in status(tmp_path / "run")}
    assert planned["code/0"] == places(AFTER)["code/0"]
    moved = [r for r in AFTER if r.deployment == "chat"]
    assert serve == places([*moved, *(r for r in BEFORE if r.id == "code/0")])

    if mended:
        result = put(PLAN, host="127.0.0.1")  # a router that is asked for only now is started
        assert not result.partial
        assert result.endpoint is not None
    else:
        assert not rollback(tmp_path / "run").partial
    assert runs(tmp_path / "run") == places(AFTER if mended else BEFORE)


def test_a_stale_plan_is_refused_with_what_differs(put, tmp_path):
    with pytest.raises(PlanStale, match="chat/0 does not run, the plan was made with it on n1/0"):
        put(PLAN)
    put(FIRST)
    stop(tmp_path / "run", only="chat/1")
    with pytest.raises(PlanStale) as refused:
        put(PLAN)
    assert refused.value.differences == (
        "chat/1 does not run, the plan was made with it on n1/0:3g.40gb@0",
    )


# A launch or rollback that is killed at its n-th write to the journal, before or after it.
KILLED = """
import os, signal, sys
from optimizer.launch import SIMULATED, Patience, journal, launch, rollback
from rebalances import rebalance_plan
left = int(sys.argv[3])
def counted(write):
    def doing(*said, **more):
        global left
        left -= 1
        if left == 0 and sys.argv[4] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = write(*said, **more)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return doing
for name in ("mark", "set_copy", "begin", "record"):
    setattr(journal.Journal, name, counted(getattr(journal.Journal, name)))
if sys.argv[5] == "rollback":
    rollback(sys.argv[2])
else:
    quick = Patience(ready_s=60, health_every_s=0.2, backoff_s=0.1, backoff_most_s=0.5, grace_s=5)
    launch(rebalance_plan(), engine=SIMULATED, address=sys.argv[1], run_dir=sys.argv[2],
           patience=quick)
"""


def kill(address, folder, write, when, what="launch") -> None:
    argv = [sys.executable, "-c", KILLED, address, str(folder), str(write), when, what]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_killed_at_any_point_it_goes_on(put, two_nodes, tmp_path):
    dice = random.Random(8)
    folder = tmp_path / "run"
    put(FIRST)
    for write in sorted(dice.sample(range(1, 40), 4)):
        kill(two_nodes.address, folder, write, dice.choice(("before", "after")))
    assert not put(PLAN).partial
    assert runs(folder) == places(AFTER)

    kill(two_nodes.address, folder, dice.randrange(10, 40), "after", "rollback")
    with pytest.raises(LaunchRefused, match="launch --rollback goes on with it"):
        put(PLAN)
    assert not rollback(folder).partial
    assert runs(folder) == places(BEFORE)
