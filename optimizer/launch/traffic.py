"""The router of a run as an actor on Ray: who serves is told by the launcher, where they listen is
asked of the copies themselves, since an engine that starts again has another port."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from optimizer.launch import cluster
from optimizer.launch.journal import Copy, CopyState
from optimizer.launch.router import Router, Upstream
from optimizer.launch.session import NAMESPACE
from optimizer.launch.values import Row, State, copy_of

TRAFFIC = "fleetslice-traffic"  # Ray's namespace of routers, apart from that of replicas
HOST = "127.0.0.1"
FIRST_PORT, PORTS = 18000, 2000
LOOK_EVERY_S = 0.5
UP_S = 60.0

Table = Mapping[str, Sequence[str]]  # deployment -> actors of its copies that serve


class RouterActor:
    """Listens at one port for all deployments of a run."""

    def __init__(self, fleet: str, run: str) -> None:
        self._fleet, self._run = fleet, run
        self._router = Router()
        self._names: Table | None = None
        self._known: dict[str, Upstream] = {}
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        # The same port again when Ray starts this actor anew.
        port = FIRST_PORT + int(run, 16) % PORTS
        starting = asyncio.run_coroutine_threadsafe(self._router.start(HOST, port), self._loop)
        self._address = f"http://{HOST}:{starting.result(UP_S)}"
        threading.Thread(target=self._look, daemon=True).start()

    def address(self) -> str:
        """Before ``/<deployment>/v1``; a stable one while the run lasts."""
        return self._address

    def run(self) -> str:
        """Whose it is."""
        return self._run

    def serve(self, table: Table) -> list[str]:
        """From now on these copies get the traffic; those of them that can be reached."""
        self._names = table
        self._refresh()
        return sorted(self._known)

    def in_flight(self, name: str) -> int:
        """Requests that it has passed to a copy and are not answered."""
        return self._router.in_flight(name)

    def _look(self) -> None:
        while True:
            self._refresh()
            time.sleep(LOOK_EVERY_S)

    def _refresh(self) -> None:
        import ray

        with self._lock:
            names = self._names
            table = self._all(ray) if names is None else names
            rows = self._rows(ray, [name for copies in table.values() for name in copies])
            known = {}
            for name, row in rows.items():
                if row is None and name in self._known:
                    known[name] = self._known[name]  # busy, not gone
                elif row is not None and _is_near(row):
                    url = urlsplit(row["url"])
                    known[name] = Upstream(name, str(url.hostname), int(url.port or 80))
            self._known = known
            routes = {
                deployment: [known[name] for name in copies if name in known]
                for deployment, copies in table.items()
            }
            self._loop.call_soon_threadsafe(self._router.route, routes)

    def _all(self, ray: Any) -> Table:
        """After a crash nobody has told who serves yet: all that are ready."""
        found: dict[str, list[str]] = {}
        for name in sorted(cluster.named(ray)):
            fleet, _, copy = name.partition("/")
            if fleet == self._fleet:
                found.setdefault(copy_of(copy)[0].rpartition("/")[0], []).append(name)
        return found

    def _rows(self, ray: Any, names: Iterable[str]) -> dict[str, Any]:
        handles = {}
        for name in names:
            try:
                handles[name] = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                continue  # it ended
        answers = cluster.ask(ray, {n: h.report for n, h in handles.items()}, within_s=2.0)
        return {name: answers.get(name) for name in handles}


def _is_near(row: Row) -> bool:
    """Whether it serves, and on this machine: engines listen on loopback only."""
    here = row["host"] == socket.gethostname()
    return bool(here and row["state"] == State.READY and row["url"])


def find(ray: Any, fleet: str, run: str) -> Any:
    """The router of a run; None when it has none."""
    try:
        handle = ray.get_actor(fleet, namespace=TRAFFIC)
    except ValueError:
        return None
    whose = cluster.ask(ray, {fleet: handle.run}, within_s=UP_S).get(fleet)
    return handle if whose == run else None


def start(ray: Any, fleet: str, run: str) -> Any:
    """The router of a run, on the node of whoever asks; started if it has none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return find(ray, fleet, run) or ray.remote(RouterActor).options(
        name=fleet,
        namespace=TRAFFIC,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=4,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    ).remote(fleet, run)


def publish(
    ray: Any, fleet: str, run: str, copies: Iterable[Copy], create: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Tell the router who serves; its address, and the copies that it does not reach.

    ``create`` starts it where there is none.
    """
    handle = start(ray, fleet, run) if create else find(ray, fleet, run)
    if handle is None:
        return None, ()
    table = table_of(copies)
    reached = ray.get(handle.serve.remote(table), timeout=UP_S)
    wanted = {name for names in table.values() for name in names}
    return address(ray, handle), tuple(sorted(wanted.difference(reached)))


def address(ray: Any, handle: Any) -> str | None:
    """Where a router listens; None without one."""
    return None if handle is None else str(ray.get(handle.address.remote(), timeout=UP_S))


def end(ray: Any, fleet: str, run: str) -> None:
    """No more traffic."""
    handle = find(ray, fleet, run)
    if handle is not None:
        ray.kill(handle, no_restart=True)


def table_of(copies: Iterable[Copy]) -> dict[str, list[str]]:
    """Who gets traffic; a deployment without anybody is known all the same."""
    found: dict[str, list[str]] = {}
    for copy in copies:
        names = found.setdefault(copy.spec.deployment, [])
        if copy.state is CopyState.SERVING:
            names.append(copy.spec.actor_name)
    return found
