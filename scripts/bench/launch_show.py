"""The launch show: a real Ray of four emulated nodes with eight devices each, engines simulated.

25 replicas (MIG slices, shares, a TP4 group, a pipeline over two nodes) are launched each on its
planned device; 17 moves are carried out under load; engines and actors crash, an engine is never
ready, the launcher is killed again and again, a node is lost; others' actors live on. Every part
says what it found, and the show ends with 1 when one does not hold.

    scripts/bench/launch [--parts PARTS] [--rate R] [--kills N] [--seed S]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emulated import Emulated, cluster
from leftovers import left_behind, until
from optimizer.launch import SIMULATED, LaunchResult, drift, launch, rollback, status, stop
from optimizer.launch.journal import Journal, StepState
from optimizer.launch.run import read
from optimizer.launch.session import session
from scripts.bench.launch_plans import AFTER, BEFORE, TENANTS, show_plan
from scripts.bench.launch_watch import QUICK, Broken, Floors, check_devices, load, places, runs

Told = dict[str, Any]
FIRST, NEXT = show_plan(BEFORE), show_plan(AFTER, BEFORE)
FLOOR = {name: sum(r.deployment == name for r in BEFORE) for name in TENANTS}
LOADED = ("chat", "code", "small", "vision", "big", "wide")


def main() -> None:
    """Play the parts in their order; exits with 1 when one is broken."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=8)
    asked = parser.parse_args()
    broken = 0
    with tempfile.TemporaryDirectory(prefix="show-") as temp:
        folder = Path(temp)
        with cluster(FIRST, folder) as ray:
            show = Show(ray, folder / "run", asked)
            for name in asked.parts.split(","):
                began = time.monotonic()
                try:
                    told = PARTS[name](show)
                except Broken as why:
                    told, broken = {"broken": str(why)}, broken + 1
                told["seconds"] = round(time.monotonic() - began, 1)
                print(json.dumps({"part": name, **told}), flush=True)
            show.end()
    sys.exit(1 if broken else 0)


class Show:
    """One cluster with whatever is launched on it."""

    def __init__(self, ray: Emulated, folder: Path, asked: argparse.Namespace) -> None:
        self.ray, self.folder, self.asked = ray, folder, asked
        self.endpoint: str | None = None

    def put(self, plan: Any, **said: Any) -> LaunchResult:
        """Launch on the cluster."""
        said = {"engine": SIMULATED, "patience": QUICK, "run_dir": self.folder, **said}
        return launch(plan, address=self.ray.address, deadline_s=240.0, **said)

    def ready(self) -> None:
        """The first placement runs, whatever ran before."""
        if read(self.folder) is None:
            result = self.put(FIRST, router=True)
            if result.partial:
                raise Broken(f"launch: {result.failed}")
            self.endpoint = result.endpoint
        runs(self.folder, BEFORE)

    def end(self) -> None:
        """Take down what is left."""
        if read(self.folder) is not None:
            stop(self.folder)


def first(show: Show) -> Told:
    """1: every replica on its planned device, told by the actors themselves."""
    began = time.monotonic()
    show.ready()
    took = time.monotonic() - began
    with session(show.ray.address, None, ours=False) as ray:
        checked = check_devices(ray, BEFORE)
    if drift(FIRST, show.folder):
        raise Broken("drift finds differences")
    return {"replicas": len(BEFORE), "ranks_checked": checked, "launch_s": round(took, 1)}


def loaded(show: Show) -> Told:
    """2: moves under load and back again; nobody is failed, no floor is broken."""
    show.ready()
    found: Told = {"moves": len(NEXT.moves), "steps": len(NEXT.steps)}
    for what, goal in (("there", AFTER), ("back", BEFORE)):
        began = time.monotonic()
        with (
            Floors(show.folder) as floors,
            load(str(show.endpoint), show.asked.rate, LOADED) as told,
        ):
            result = show.put(NEXT) if what == "there" else rollback(show.folder)
        found[what] = json.loads(told[0]) | {"rebalance_s": round(time.monotonic() - began, 1)}
        found[what]["journal_looks"] = floors.looks
        if result.partial or result.blocked:
            raise Broken(f"{what}: {result.failed} {result.blocked}")
        if found[what]["failed"]:
            raise Broken(f"{what}: {found[what]}")
        under = {n: c for n, c in floors.fewest.items() if c < FLOOR[n]}
        if under or set(floors.fewest) != set(FLOOR):
            raise Broken(f"{what}: under the floor: {under}")
        runs(show.folder, goal)
        found[what]["steps_done"] = _all_done(show)
        with session(show.ray.address, None, ours=False) as ray:
            _devices_after(ray, show, goal)
    return found


def _all_done(show: Show) -> int:
    run = read(show.folder)
    with Journal(show.folder, run.id if run else "") as journal:
        latest = journal.latest()
        entries = journal.entries(latest.id) if latest else ()
    if not entries or any(e.state is not StepState.DONE for e in entries):
        raise Broken("not every step is done in the journal")
    return len(entries)


def _devices_after(ray: Any, show: Show, goal: Any) -> None:
    """The newest copies by their own environment."""
    rows = {r["replica"]: r for r in status(show.folder)}
    still = [r for r in goal if rows[r.id]["generation"] == 0]
    check_devices(ray, still)


def crashes(show: Show) -> Told:
    """3a: an engine, a rank of the pipeline and an actor are killed; all come back."""
    show.ready()

    def row(name: str) -> Told:
        return next(r for r in status(show.folder) if r["replica"] == name)

    found: Told = {}
    for name in ("chat/0", "big/0", "wide/0"):
        old = row(name)
        generations = (old["generation"], old["restarts"])
        began = time.monotonic()
        os.kill(old["pid"], signal.SIGKILL)
        if not until(
            lambda n=name, o=old: row(n)["restarts"] > o["restarts"] and row(n)["state"] == "ready",
            60,
        ):
            raise Broken(f"{name} did not come back: {row(name)} after {generations}")
        found[name] = round(time.monotonic() - began, 1)
    old = row("code/0")
    stat = Path(f"/proc/{old['pid']}/stat").read_text(encoding="utf-8")
    began = time.monotonic()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
    if not until(lambda: row("code/0")["pid"] not in (None, old["pid"]), 90) or not until(
        lambda: row("code/0")["state"] == "ready", 60
    ):
        raise Broken(f"code/0's actor did not come back: {row('code/0')}")
    found["actor of code/0"] = round(time.monotonic() - began, 1)
    if not until(lambda: _engines_as_planned(show), 30):
        runs(show.folder, BEFORE)
    return {"back_after_s": found}


def _engines_as_planned(show: Show) -> bool:
    try:
        runs(show.folder, BEFORE)
    except Broken:
        return False
    return True


def never_ready(show: Show) -> Told:
    """3b: a step fails with its engine's last lines; the floor holds; rollback undoes the rest."""
    show.ready()
    short = type(QUICK)(ready_s=4, backoff_s=0.1, backoff_most_s=0.1, grace_s=5)
    with Floors(show.folder) as floors:
        result = show.put(NEXT, faults={"chat/2": "never-ready"}, patience=short)
    if [f.replica for f in result.failed] != ["chat/2"] or not result.failed[0].log:
        raise Broken(f"failed: {result.failed}")
    if under := {n: c for n, c in floors.fewest.items() if c < FLOOR[n]}:
        raise Broken(f"under the floor: {under}")
    back = rollback(show.folder)
    if back.partial:
        raise Broken(f"rollback: {back.failed}")
    runs(show.folder, BEFORE)
    [failed] = result.failed
    return {
        "step": failed.step,
        "reason": failed.reason,
        "log": failed.log[-1],
        "done": len(result.done),
        "blocked": len(result.blocked),
    }


def killed(show: Show) -> Told:
    """3c: the launcher is killed at seeded points and resumed; nothing lost, doubled, left over."""
    show.ready()
    dice = random.Random(show.asked.seed)
    kills, rounds = 0, 0
    forward = True
    while kills < show.asked.kills:
        kind = dice.choice(("writes", "writes", "seconds"))
        point = dice.randrange(1, 40) if kind == "writes" else round(dice.uniform(1.5, 6.0), 2)
        what = "rebalance" if forward else "rollback"
        argv = [sys.executable, "-m", "scripts.bench.launch_killed", show.ray.address]
        argv += [str(show.folder), what, kind, str(point)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
        if done.returncode == -signal.SIGKILL:
            kills += 1
        elif done.returncode == 0:
            runs(show.folder, AFTER if forward else BEFORE)
            rounds, forward = rounds + 1, not forward
        else:
            raise Broken(f"{what} after {kills} kills: {done.stderr[-2000:]}")
    result = show.put(NEXT) if forward else rollback(show.folder)
    if result.partial:
        raise Broken(f"resumed: {result.failed}")
    runs(show.folder, AFTER if forward else BEFORE)
    if forward and rollback(show.folder).partial:
        raise Broken("the way back")
    runs(show.folder, BEFORE)
    return {"kills": kills, "whole_rebalances_between": rounds}


def strangers(show: Show) -> Told:
    """4: actors of others live through launch, drift, rebalance and stop."""

    class Stranger:
        def pid(self) -> int:
            return os.getpid()

    show.end()
    theirs = {"show/chat/0": {}, "holder": {"dev:n1/6": 1.0}}
    with session(show.ray.address, None, ours=False) as ray:
        pids = {}
        for name, held in theirs.items():
            kind = ray.remote(Stranger).options(
                name=name,
                namespace="theirs",
                lifetime="detached",
                num_cpus=0,
                resources=held,
            )
            pids[name] = ray.get(kind.remote().pid.remote())
    show.ready()
    if drift(FIRST, show.folder) or show.put(NEXT).partial or rollback(show.folder).partial:
        raise Broken("with strangers there something differs or fails")
    run = read(show.folder)
    stop(show.folder)
    if run is not None and (left := left_behind(run.id)):
        raise Broken(f"left behind: {left}")
    with session(show.ray.address, None, ours=False) as ray:
        for name, pid in pids.items():
            handle = ray.get_actor(name, namespace="theirs")
            if ray.get(handle.pid.remote()) != pid:
                raise Broken(f"{name} is another process")
            ray.kill(handle)
    return {"untouched": len(pids)}


def node_lost(show: Show) -> Told:
    """3d: a node is killed in mid-rebalance; what cannot be done and what is missing is said."""
    show.ready()
    killed_at: list[str] = []

    def watch(event: Any) -> None:
        if not killed_at and event.state == "shift_traffic":
            show.ray.kill_node(0)  # n1: nine replicas of ours come from it or go to it
            killed_at.append(event.detail)

    began = time.monotonic()
    plan_s = 40.0
    result = launch(
        NEXT,
        engine=SIMULATED,
        patience=QUICK,
        run_dir=show.folder,
        address=show.ray.address,
        deadline_s=plan_s,
        progress=watch,
    )
    rows = status(show.folder)
    serve = {r["replica"] for r in rows if r["state"] == "ready"}
    there = {row["replica"]: row["devices"] for row in rows if row["state"] == "ready"}
    for name, devices in there.items():
        if any(d.startswith("n1/") for d in devices):
            raise Broken(f"{name} is said to serve on the dead node")
    gone = {one.replica for one in drift(NEXT, show.folder)}
    wanted = places(AFTER)
    lost = {n for n, devices in wanted.items() if any(d.startswith("n1/") for d in devices)}
    alive = {n for n in wanted if n not in lost and there.get(n) == wanted[n]}
    if gone != set(wanted) - alive - (lost & serve & alive):
        raise Broken(f"drift says {sorted(gone)}, serving as planned are {sorted(alive)}")
    if not result.partial:
        raise Broken("all is said to be done")
    took = round(time.monotonic() - began, 1)
    stopped = stop(show.folder)
    return {
        "killed_at": killed_at,
        "rebalance_s": took,
        "failed": len(result.failed),
        "blocked": len(result.blocked),
        "why": [f"{f.step} {f.replica}: {f.reason}" for f in result.failed],
        "serving": len(serve),
        "reported_missing_or_elsewhere": len(gone),
        "left": list(stopped.left),
    }


PARTS: dict[str, Callable[[Show], Told]] = {
    "first": first,
    "loaded": loaded,
    "crashes": crashes,
    "never_ready": never_ready,
    "killed": killed,
    "strangers": strangers,
    "node_lost": node_lost,
}


if __name__ == "__main__":
    main()
