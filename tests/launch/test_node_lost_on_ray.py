"""A node that dies while a rebalance goes on: what was lost is said, and the rest serves."""

import pytest
from rebalances import AFTER, BEFORE, plan_of, rebalance_plan

from emulated import cluster
from leftovers import left_behind
from optimizer.launch import SIMULATED, Patience, launch, status, stop
from optimizer.launch.devices import device
from optimizer.launch.differences import differences
from optimizer.launch.run import read

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(240)]

QUICK = Patience(ready_s=60, health_every_s=0.2, backoff_s=0.1, backoff_most_s=0.5, grace_s=5)
PLAN = rebalance_plan()


def test_what_a_dead_node_takes_is_said_and_nothing_else_is_touched(tmp_path):
    folder = tmp_path / "run"
    with cluster(plan_of(*BEFORE), tmp_path) as ray:
        said = {"engine": SIMULATED, "patience": QUICK, "run_dir": folder, "address": ray.address}
        assert not launch(plan_of(*BEFORE), **said).partial
        killed = []

        def watch(event) -> None:
            if event.state == "shift_traffic" and not killed:
                ray.kill_node(1)  # n2: of code, of vision, and all that comes there
                killed.append(event.replica)

        result = launch(PLAN, **said, progress=watch, deadline_s=15)
        assert result.partial
        assert {f.step for f in result.failed}.isdisjoint(result.blocked)
        assert all(f.reason for f in result.failed)
        rows = status(folder)
        serve = {row["replica"]: row["devices"] for row in rows if row["state"] == "ready"}
        assert {"chat/0", "chat/1"} <= set(serve)
        assert not any(d.startswith("n2/") for devices in serve.values() for d in devices)
        wanted = {r.id: [device(r, gpu) for gpu in r.gpus] for r in AFTER}
        as_planned = {name for name, devices in serve.items() if wanted.get(name) == devices}
        told = {one.replica for one in differences(PLAN, rows)}
        assert told >= set(wanted) - as_planned
        assert {"code/0", "vision/1"} <= told
        run = read(folder).id
        assert stop(folder).left == ()
        assert left_behind(run) == []
