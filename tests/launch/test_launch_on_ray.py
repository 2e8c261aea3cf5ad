"""Plans carried out on a real Ray of two emulated nodes, engines simulated."""

import http.client
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from emulated import Emulated, cluster
from launchplans import (
    GROUP,
    MIG_SLICES,
    REPLICAS,
    SHARES,
    TPOT_MS,
    TTFT_MS,
    WHOLE,
    at,
    launch_plan,
)
from leftovers import left_behind, processes_with, until
from optimizer.documents import plan_json, read_plan, write_json
from optimizer.launch import (
    SIMULATED,
    LaunchRefused,
    Patience,
    launch,
    live_state,
    status,
    stop,
)
from optimizer.launch.run import read
from optimizer.launch.session import NAMESPACE, session

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(120)]

QUICK = Patience(ready_s=60, health_every_s=0.2, backoff_s=0.1, backoff_most_s=0.5, grace_s=5)
PLAN = launch_plan()
# A lambda travels to the actor by value; the workers cannot import this file.
NODE_OF_ACTOR = lambda actor: __import__("ray").get_runtime_context().get_node_id()  # noqa: E731


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory) -> Iterator[Emulated]:
    with cluster(PLAN, tmp_path_factory.mktemp("ray")) as one:
        yield one


@pytest.fixture
def put(two_nodes, tmp_path):
    """Launches on the two nodes; what still runs after the test is stopped."""
    runs = set()

    def start(plan=PLAN, **said):
        said = {"engine": SIMULATED, "patience": QUICK, "run_dir": tmp_path / "run", **said}
        runs.add(said["run_dir"])
        return launch(plan, address=two_nodes.address, **said)

    yield start
    for folder in runs:
        if read(folder) is not None:
            stop(folder)


def ask(url: str, model: str) -> tuple[str, float]:
    """The answer to a chat of five tokens, and the milliseconds it took."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    began = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["choices"][0]["message"]["content"], (time.monotonic() - began) * 1000


def seen_by_actors(address: str) -> dict[str, dict[str, str]]:
    """By replica, what its actor says of its own environment and of the Ray node it is on."""
    with session(address, None, ours=False) as ray:
        nodes = {n["NodeID"]: n["Resources"] for n in ray.nodes()}
        found = {}
        for name in (a["name"] for a in ray.util.list_named_actors(all_namespaces=True)):
            handle = ray.get_actor(name, namespace=NAMESPACE)
            there = ray.get(handle.__ray_call__.remote(NODE_OF_ACTOR))
            [host] = [r.removeprefix("host:") for r in nodes[there] if r.startswith("host:")]
            found[name.partition("/")[2]] = {**ray.get(handle.environment.remote()), "host": host}
        return found


def test_every_replica_runs_where_the_plan_says_and_answers_as_predicted(put, two_nodes, tmp_path):
    result = put()
    assert result.ready == result.started == tuple(r.id for r in sorted(REPLICAS, key=_id))
    assert not result.partial
    seen = seen_by_actors(two_nodes.address)
    for replica in REPLICAS:
        assert seen[replica.id]["host"] == replica.nodes[0]
    assert seen["big/0"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert seen["chat/0"]["FLEETSLICE_DEVICES"] == "n1/0:3g.40gb@4"
    assert [seen[r.id]["CUDA_VISIBLE_DEVICES"] for r in SHARES] == ["2", "3", "3", "2"]

    rows = {row["replica"]: row for row in status(tmp_path / "run")}
    assert {row["state"] for row in rows.values()} == {"ready"}
    assert rows["big/0"]["devices"] == ["n2/0", "n2/1"]
    for name in ("big/0", "vision/3"):
        text, took_ms = ask(rows[name]["url"], rows[name]["deployment"])
        assert len(text.split()) == 5
        assert took_ms >= TTFT_MS + 4 * TPOT_MS

    run = read(tmp_path / "run").id
    stopped = stop(tmp_path / "run")
    assert stopped.stopped == result.started
    assert not stopped.partial
    assert left_behind(run) == []
    assert seen_by_actors(two_nodes.address) == {}


def _id(replica):
    return replica.id


def test_launching_again_keeps_what_runs_and_adds_what_is_missing(put, tmp_path):
    first = put(only="chat")
    again = put(only="acme")
    assert first.started == again.kept == ("chat/0", "chat/1")
    assert again.started == ("big/0",)
    pids = {row["replica"]: row["pid"] for row in first.rows}
    assert all(row["pid"] == pids.get(row["replica"], row["pid"]) for row in again.rows)

    assert stop(tmp_path / "run", only="chat").stopped == ("chat/0", "chat/1")
    assert [row["replica"] for row in status(tmp_path / "run")] == ["big/0"]


# A launch that is killed after some seconds, at whatever it is then.
KILLED = """
import os, signal, sys, threading
from launchplans import launch_plan
from optimizer.launch import launch
threading.Timer(float(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
launch(launch_plan(), engine="simulated", address=sys.argv[1], run_dir=sys.argv[2])
"""


def test_a_launch_that_was_killed_is_taken_up_again(put, two_nodes, tmp_path):
    points = random.Random(20).sample([0.1 * i for i in range(10, 50)], 3)
    for number, seconds in enumerate(points):
        folder = tmp_path / str(number)
        argv = [sys.executable, "-c", KILLED, two_nodes.address, str(folder), str(seconds)]
        path = os.pathsep.join(p for p in sys.path if p)
        killed = subprocess.run(argv, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
        assert killed.returncode in (0, -signal.SIGKILL)
        # The limits are another's than in the killed launch, and are no reason to start again.
        result = put(run_dir=folder)
        assert len(result.ready) == len(REPLICAS)
        assert sorted((*result.started, *result.kept)) == sorted(r.id for r in REPLICAS)
        run = read(folder).id
        engines = [p for p in processes_with(run) if "guard.py" in p]
        assert len(engines) == len(REPLICAS)
        stop(folder)
        assert left_behind(run) == []
    assert seen_by_actors(two_nodes.address) == {}


def test_one_engine_crashes_and_another_is_never_ready(put, tmp_path):
    faults = {"chat/0": "exit", "chat/1": "never-ready"}
    result = put(
        launch_plan([*MIG_SLICES, WHOLE]),
        faults=faults,
        deadline_s=30,
        patience=Patience(ready_s=3, backoff_s=0.1, backoff_most_s=0.1, grace_s=5),
    )
    assert result.partial
    assert result.ready == ("code/0",)
    crashed, never = result.failed
    assert crashed.replica == "chat/0"
    assert "never ready in 3 starts: its engine ended with exit code 3" in crashed.reason
    assert "fault on demand: exit at start" in crashed.log
    assert never.replica == "chat/1"
    assert "not ready within 3 s" in never.reason
    assert any(line.startswith("simulated engine of chat") for line in never.log)
    states = {row["replica"]: row["state"] for row in status(tmp_path / "run")}
    assert states["code/0"] == "ready"
    assert states["chat/0"] != "ready"


def test_a_crashed_engine_and_a_crashed_actor_come_back(put, tmp_path):
    put(only="code")

    def row():
        return status(tmp_path / "run")[0]

    os.kill(row()["pid"], signal.SIGKILL)
    assert until(lambda: row()["restarts"] == 1 and row()["state"] == "ready")
    engine = row()["pid"]
    said = Path(f"/proc/{engine}/stat").read_text()
    parent = int(said.rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    assert until(lambda: row()["state"] == "ready" and row()["pid"] != engine, within_s=60)
    # The guard ends the orphan within its grace; nobody may have asked yet how it ended.
    assert until(lambda: ended(engine), within_s=30)


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for somebody to ask how it ended."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return said.rpartition(")")[2].split()[0] == "Z"


def test_strangers_are_left_alone(put, two_nodes, tmp_path):
    class Stranger:
        def hello(self) -> str:
            return "hello"

    with session(two_nodes.address, None, ours=False) as ray:
        other = ray.remote(Stranger).options(
            name="toy/chat/0", namespace="theirs", lifetime="detached", num_cpus=0
        )
        handle = other.remote()
        assert ray.get(handle.hello.remote()) == "hello"
    put(only="chat")
    stop(tmp_path / "run")
    with session(two_nodes.address, None, ours=False) as ray:
        handle = ray.get_actor("toy/chat/0", namespace="theirs")
        assert ray.get(handle.hello.remote()) == "hello"
        ray.kill(handle)


def test_another_launch_of_the_same_fleet_is_not_taken_over(put, tmp_path):
    put(only="code")
    with pytest.raises(LaunchRefused, match="code/0 runs already, started by another launch"):
        put(only="code", run_dir=tmp_path / "other")
    assert stop(tmp_path / "run").stopped == ("code/0",)


@pytest.mark.parametrize(
    ("replicas", "told"),
    [
        ([at("code/0", "n1/0")], "n1/0 is taken: code/0 would need 1 of it, 0.25 is free"),
        ([at("big/1", "n2/0")], "n2/0 is taken: big/1 would need 1 of it, 0 is free"),
    ],
    ids=["a slice of it is used", "it is used whole"],
)
def test_a_taken_device_is_named_and_nothing_hangs(put, tmp_path, replicas, told):
    put(launch_plan([GROUP, *MIG_SLICES]))
    other = launch_plan(replicas, name="other")
    with pytest.raises(LaunchRefused, match=told):
        put(other, run_dir=tmp_path / "other")
    assert read(tmp_path / "other") is None


def test_a_node_that_is_not_there_is_named(put):
    plan = launch_plan([WHOLE])
    gone = replace(plan.gpus[0], id="n9/0")
    plan = replace(
        plan,
        gpus=(*plan.gpus, gone),
        placement=replace(plan.placement, replicas=(at("code/0", "n9/0"),)),
    )
    with pytest.raises(LaunchRefused, match="node n9 is not on the cluster"):
        put(plan)


def test_the_live_state_is_what_was_placed_and_what_others_hold(put, two_nodes, tmp_path):
    plan = launch_plan([GROUP, *MIG_SLICES])
    put(plan)

    class Stranger:
        def hello(self) -> str:
            return "hello"

    with session(two_nodes.address, None, ours=False) as ray:
        kind = ray.remote(Stranger)
        other = kind.options(
            name="theirs", namespace="other", num_cpus=0, resources={"dev:n2/3": 0.5}
        ).remote()
        ray.get(other.hello.remote())
        for live in (live_state(tmp_path / "run"), live_state(address=two_nodes.address)):
            assert live.fleet == "toy"
            assert live.placement.replicas == plan.placement.replicas
            assert [r.gpus for r in live.foreign] == [("n2/3",)]
            assert list(live.by.values()) == ["theirs"]
            assert live.doubts == ()
        assert ray.get(other.hello.remote()) == "hello"


def test_a_pipeline_over_two_nodes_lives_and_ends_as_one(put, two_nodes, tmp_path):
    sizes = replace(GROUP.config, tensor_parallel=1, pipeline_parallel=2)
    wide = at("big/0", "n1/1", "n2/3", config=sizes)
    plan = launch_plan([wide, *SHARES[:1]])
    # The hand-written plan is one that the plan reader takes.
    write_json(tmp_path / "wide.json", plan_json(plan))
    result = put(read_plan(tmp_path / "wide.json"))
    assert not result.partial
    name, where = "toy/big/0", {"n1": "n1/1", "n2": "n2/3"}
    with session(two_nodes.address, None, ours=False) as ray:
        hosts = {
            n["NodeID"]: host.removeprefix("host:")
            for n in ray.nodes()
            for host in n["Resources"]
            if host.startswith("host:")
        }
        handle = ray.get_actor(name, namespace=NAMESPACE)
        ranks = ray.get(handle.environments.remote())
        assert {hosts[r["node"]]: r["FLEETSLICE_DEVICES"] for r in ranks} == where
        [group] = [g for g in ray.util.placement_group_table().values() if g["name"] == name]
        assert len(group["bundles"]) == 2

    def row():
        return next(r for r in status(tmp_path / "run") if r["replica"] == "big/0")

    text, _ = ask(row()["url"], "big")
    assert len(text.split()) == 5
    run = read(tmp_path / "run").id
    guards = [p for p in processes_with(run) if "guard.py" in p and "--node-rank" in p]
    other = next(int(p.partition(":")[0]) for p in guards if not p.startswith(str(row()["pid"])))
    os.kill(other, signal.SIGKILL)
    assert until(lambda: row()["restarts"] == 1 and row()["state"] == "ready")
    assert "rank 1" in row()["last_end"] or "exit code 3" in row()["last_end"]
    assert len([p for p in processes_with(run) if "guard.py" in p]) == 3
    stop(tmp_path / "run")
    assert left_behind(run) == []
    with session(two_nodes.address, None, ours=False) as ray:
        states = {g["name"]: g["state"] for g in ray.util.placement_group_table().values()}
        assert states[name] == "REMOVED"


def test_a_router_at_a_named_address_asks_for_its_token_and_reaches_every_node(put, tmp_path):
    result = put(launch_plan([MIG_SLICES[0], WHOLE, SHARES[0]]), host="127.0.0.1")
    assert not result.partial
    token = tmp_path / "run" / "traffic.token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600

    def status_of(deployment: str, **headers: str) -> int:
        connection = http.client.HTTPConnection(urlsplit(result.endpoint).netloc, timeout=30)
        said = [{"role": "user", "content": "hello"}]
        body = {"model": deployment, "max_tokens": 2, "stream": True, "messages": said}
        path = f"/{deployment}/v1/chat/completions"
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        whole = b"[DONE]" in answer.read()
        connection.close()
        return answer.status if whole or answer.status != 200 else 0

    bearing = {"Authorization": f"Bearer {token.read_text().strip()}"}
    for deployment in ("chat", "code", "vision"):  # on two nodes, neither of them the router's
        assert status_of(deployment) == 401
        assert status_of(deployment, **bearing) == 200
    stop(tmp_path / "run")
    assert not token.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Serve's own making
def test_each_deployment_is_a_serve_application_that_goes_with_the_run(put, two_nodes, tmp_path):
    result = put(launch_plan([MIG_SLICES[0], WHOLE]), serve=True)
    assert not result.partial
    for deployment in ("chat", "code"):
        for stream in (False, True):
            connection = http.client.HTTPConnection(urlsplit(result.serve).netloc, timeout=30)
            said = [{"role": "user", "content": "hello"}]
            body = {"model": deployment, "max_tokens": 3, "stream": stream, "messages": said}
            path = f"/{deployment}/v1/chat/completions"
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
            connection.close()
            assert answer.status == 200, text
            assert (b"[DONE]" in text) is stream
    assert read(tmp_path / "run").applications == ("toy.chat", "toy.code")
    stop(tmp_path / "run")
    with session(two_nodes.address, None, ours=False) as ray:
        assert ray.util.list_named_actors(all_namespaces=True) == []
