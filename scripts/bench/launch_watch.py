"""What the launch show looks at, where it can be helped without the code that it judges."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leftovers import processes_with
from optimizer.domain.placement import Replica, node_of
from optimizer.launch import Patience, status
from optimizer.launch.devices import device
from optimizer.launch.journal import JOURNAL
from optimizer.launch.run import read
from optimizer.launch.session import NAMESPACE

QUICK = Patience(ready_s=90, health_every_s=1.0, backoff_s=0.2, backoff_most_s=1.0, grace_s=5)


class Broken(Exception):
    """The show does not hold; the message says where."""


def places(replicas: Iterable[Replica]) -> dict[str, list[str]]:
    """Where each replica is to run."""
    return {r.id: [device(r, gpu) for gpu in r.gpus] for r in replicas}


def runs(folder: Path, wanted: Iterable[Replica]) -> None:
    """Each replica serves where it is wanted, once, and nothing else runs. Raises Broken."""
    rows = status(folder)
    found = {row["replica"]: row["devices"] for row in rows if row["state"] == "ready"}
    goal = places(wanted)
    if found != goal or len(rows) != len(goal):
        lost = {name: (found.get(name), goal.get(name)) for name in {*found, *goal}}
        raise Broken(f"not as planned: { {n: w for n, w in lost.items() if w[0] != w[1]} }")
    run = read(folder)
    ranks = sum(len(r.nodes) for r in wanted)
    engines = [p for p in processes_with(run.id if run else "?") if "guard.py" in p]
    if len(engines) != ranks:
        raise Broken(f"{len(engines)} engines run for {ranks} that should")


def check_devices(ray: Any, replicas: Iterable[Replica]) -> int:
    """What each actor says of its own environment and node against the plan. Raises Broken."""
    hosts = {
        node["NodeID"]: next((r[5:] for r in node["Resources"] if r.startswith("host:")), None)
        for node in ray.nodes()
    }
    checked = 0
    for replica in replicas:
        handle = ray.get_actor(f"show/{replica.id}", namespace=NAMESPACE)
        for seen in ray.get(handle.environments.remote()):
            host = hosts[seen["node"]]
            here = [gpu for gpu in replica.gpus if node_of(gpu) == host]
            told = [device(replica, gpu) for gpu in here]
            visible = told if replica.mig else [gpu.rpartition("/")[2] for gpu in here]
            if not here or seen["FLEETSLICE_DEVICES"] != ",".join(told):
                raise Broken(f"{replica.id} on {host} holds {seen['FLEETSLICE_DEVICES']}")
            if seen["CUDA_VISIBLE_DEVICES"] != ",".join(visible):
                raise Broken(f"{replica.id} on {host} sees {seen['CUDA_VISIBLE_DEVICES']}")
            checked += 1
    return checked


@contextmanager
def load(endpoint: str, rate: float, deployments: Iterable[str]) -> Iterator[list[str]]:
    """A client of its own process meanwhile; what it printed is there afterwards."""
    client = Path(__file__).with_name("launch_client.py")
    argv = [sys.executable, str(client), endpoint, str(rate), *deployments]
    told: list[str] = []
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield told
        finally:
            told.append(process.communicate("")[0])


class Floors:
    """The fewest copies that served of each deployment, as the journal had it all the while."""

    def __init__(self, folder: Path) -> None:
        self.fewest: dict[str, int] = {}
        self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(folder / JOURNAL,))

    def __enter__(self) -> "Floors":
        self._thread.start()
        return self

    def __exit__(self, *said: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self, path: Path) -> None:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)
        said = "SELECT replica FROM copies WHERE state = 'serving'"
        while not self._over.is_set():
            now = Counter(name.partition("/")[0] for (name,) in db.execute(said))
            self.looks += 1
            for name, count in now.items():
                self.fewest[name] = min(count, self.fewest.get(name, count))
            for name in set(self.fewest) - set(now):
                self.fewest[name] = 0
            time.sleep(0.02)
        db.close()
