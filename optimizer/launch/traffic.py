"""The router of a run as an actor on Ray: who serves is told by the launcher, where they listen is
asked of the copies themselves, since an engine that starts again has another port.

By itself it listens on loopback and reaches the engines of its own machine. Where the user names an
address for it, a token is asked of every client, and every other node that serves gets a gate: a
router on that node's address, with the same token, for the copies of that node alone.
"""

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from optimizer.launch import cluster
from optimizer.launch.journal import Copy, CopyState
from optimizer.launch.router import Router, Upstream
from optimizer.launch.run import TRAFFIC_TOKEN, Run, write_private
from optimizer.launch.session import NAMESPACE
from optimizer.launch.values import Row, State, copy_of

TRAFFIC = "fleetslice-traffic"  # Ray's namespace of routers, apart from that of replicas
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
FIRST_PORT, PORTS = 18000, 2000
LOOK_EVERY_S = 0.5
GATE_S = 10.0
UP_S = 60.0

Table = Mapping[str, Sequence[str]]  # deployment -> actors of its copies that serve


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asked for: the address to listen at, and the token then asked of clients."""

    host: str = LOOPBACK
    token: str | None = None


def asked(run: Run, host: str | None) -> Asked:
    """For a run; the token of an address that was named lies in the run folder, for its owner."""
    if host is None:
        return Asked()
    path = run.folder / TRAFFIC_TOKEN
    with suppress(FileNotFoundError):
        return Asked(host, path.read_text(encoding="utf-8").strip())
    token = secrets.token_hex(32)
    write_private(path, token + "\n")
    return Asked(host, token)


def token_path(run_dir: Path) -> Path | None:
    """Where the token of a run's router lies; None where it asks for none."""
    path = run_dir / TRAFFIC_TOKEN
    return path if path.exists() else None


class _Listening:
    """A router on an event loop of its own thread, in an actor."""

    def __init__(self, host: str, port: int, token: str | None) -> None:
        self._router = Router(token)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        starting = asyncio.run_coroutine_threadsafe(self._router.start(host, port), self._loop)
        self._port = starting.result(UP_S)

    def _route(self, routes: Mapping[str, Sequence[Upstream]]) -> None:
        done = threading.Event()

        def set_and_tell() -> None:
            self._router.route(routes)
            done.set()

        self._loop.call_soon_threadsafe(set_and_tell)
        done.wait(UP_S)


class GateActor(_Listening):
    """Lets a router on another node reach the copies of this one, by their names."""

    def __init__(self, token: str) -> None:
        import ray

        self._here = ray.get_runtime_context().get_node_id()
        self._host = ray.util.get_node_ip_address()
        super().__init__(self._host, 0, token)

    def look(self, names: Sequence[str]) -> tuple[str, int, list[str]]:
        """Pass requests on to those copies; its address, and those of them that it reaches."""
        import ray

        rows = _rows(ray, names)
        near = {n: row for n, row in rows.items() if row is not None and self._is_near(row)}
        self._route({_key(n): [_upstream(n, row)] for n, row in near.items()})
        return self._host, self._port, sorted(near)

    def _is_near(self, row: Row) -> bool:
        return bool(_serves(row) and row["ray_node"] == self._here)


class RouterActor(_Listening):
    """Listens at one port for all deployments of a run."""

    def __init__(self, fleet: str, run: str, how: Asked) -> None:
        import ray

        # The same port again when Ray starts this actor anew.
        super().__init__(how.host, FIRST_PORT + int(run, 16) % PORTS, how.token)
        self._fleet, self._run, self._host, self._token = fleet, run, how.host, how.token
        self._here = ray.get_runtime_context().get_node_id()
        host = ray.util.get_node_ip_address() if how.host in EVERYWHERE else how.host
        self._address = f"http://{host}:{self._port}"
        self._gates: dict[str, Any] = {}
        self._names: Table | None = None
        self._known: dict[str, Upstream] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._look, daemon=True).start()

    def address(self) -> str:
        """Before ``/<deployment>/v1``; a stable one while the run lasts."""
        return self._address

    def host(self) -> str:
        """The address that was asked for."""
        return self._host

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
            rows = _rows(ray, [name for copies in table.values() for name in copies])
            known = {}
            for name, row in rows.items():
                if row is None and name in self._known:
                    known[name] = self._known[name]  # busy, not gone
                elif row is not None and self._is_near(row):
                    known[name] = _upstream(name, row)
            if self._token is not None:
                known |= self._behind_gates(ray, rows)
            self._known = known
            self._route(
                {
                    deployment: [known[name] for name in copies if name in known]
                    for deployment, copies in table.items()
                }
            )

    def _is_near(self, row: Row) -> bool:
        """Whether it serves where this router reaches it: engines listen on loopback only."""
        if self._token is not None:
            return bool(_serves(row) and row["ray_node"] == self._here)
        return bool(_serves(row) and row["host"] == socket.gethostname())

    def _behind_gates(self, ray: Any, rows: Mapping[str, Row | None]) -> dict[str, Upstream]:
        """Copies on other nodes, as far as their gates reach them."""
        far: dict[str, list[str]] = {}
        for name, row in rows.items():
            if row is not None and _serves(row) and row["ray_node"] != self._here:
                far.setdefault(row["ray_node"], []).append(name)
        looks = {node: self._gate(ray, node).look.remote(names) for node, names in far.items()}
        found = {}
        for node, look in looks.items():
            try:
                host, port, reached = ray.get(look, timeout=GATE_S)
            except ray.exceptions.RayError:
                ray.kill(self._gates.pop(node))  # gone or silent: another one the next time
                continue
            for name in reached:
                found[name] = Upstream(name, host, port, f"/{_key(name)}", self._token)
        return found

    def _gate(self, ray: Any, node: str) -> Any:
        """The gate of a node. It belongs to this actor and ends with it."""
        if node not in self._gates:
            kind = ray.remote(GateActor).options(num_cpus=0, **_on(node))
            self._gates[node] = kind.remote(self._token)
        return self._gates[node]

    def _all(self, ray: Any) -> Table:
        """After a crash nobody has told who serves yet: all that are ready."""
        found: dict[str, list[str]] = {}
        for name in sorted(cluster.named(ray)):
            fleet, _, copy = name.partition("/")
            if fleet == self._fleet:
                found.setdefault(copy_of(copy)[0].rpartition("/")[0], []).append(name)
        return found


def _rows(ray: Any, names: Iterable[str]) -> dict[str, Row | None]:
    handles = {}
    for name in names:
        try:
            handles[name] = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            continue  # it ended
    answers = cluster.ask(ray, {n: h.report for n, h in handles.items()}, within_s=2.0)
    return {name: answers.get(name) for name in handles}


def _serves(row: Row) -> bool:
    return bool(row["state"] == State.READY and row["url"])


def _upstream(name: str, row: Row) -> Upstream:
    url = urlsplit(row["url"])
    return Upstream(name, str(url.hostname), int(url.port or 80))


def _key(name: str) -> str:
    """A copy's name as one part of a path."""
    return quote(name, safe="")


def _on(node: str) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def find(ray: Any, fleet: str, run: str) -> Any:
    """The router of a run; None when it has none."""
    try:
        handle = ray.get_actor(fleet, namespace=TRAFFIC)
    except ValueError:
        return None
    whose = cluster.ask(ray, {fleet: handle.run}, within_s=UP_S).get(fleet)
    return handle if whose == run else None


def start(ray: Any, fleet: str, run: str, how: Asked) -> Any:
    """The router of a run, on the node of whoever asks; started if it has none, or one that
    listens elsewhere than at the address that is named now."""
    there = find(ray, fleet, run)
    if there is not None:
        if how.token is None or ray.get(there.host.remote(), timeout=UP_S) == how.host:
            return there
        ray.kill(there, no_restart=True)
        end_at = time.monotonic() + UP_S
        while find(ray, fleet, run) is not None and time.monotonic() < end_at:
            time.sleep(0.1)
    return (
        ray.remote(RouterActor)
        .options(
            name=fleet,
            namespace=TRAFFIC,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=4,
            num_cpus=0,
            **_on(ray.get_runtime_context().get_node_id()),
        )
        .remote(fleet, run, how)
    )


def publish(
    ray: Any, fleet: str, run: str, copies: Iterable[Copy], create: Asked | None = None
) -> tuple[str | None, tuple[str, ...]]:
    """Tell the router who serves; its address, and the copies that it does not reach.

    ``create`` starts it where there is none, as it says.
    """
    handle = find(ray, fleet, run) if create is None else start(ray, fleet, run, create)
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
