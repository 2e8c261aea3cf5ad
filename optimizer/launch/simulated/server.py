"""The server of a simulated engine: its command line, its life and its faults on demand."""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.launch.simulated.api import Api
from optimizer.launch.simulated.behaviour import Behaviour
from optimizer.launch.simulated.group import Leader, follow
from optimizer.launch.simulated.http import HEAD_BYTES, serve_connection

HOST = "127.0.0.1"
GRACE_S = 5.0
FAULTS = "never-ready | exit | exit-after:SECONDS | unhealthy-after:SECONDS"


@dataclass(frozen=True, slots=True)
class Rank:
    """One of several nodes that run the engine together, and where they meet."""

    nodes: int
    rank: int
    host: str
    port: int


def parse(argv: Sequence[str]) -> tuple[str, int, Behaviour, Rank | None]:
    """Host, port, behaviour and rank of a command line; no rank: it runs in one node."""
    plain = Behaviour()
    parser = argparse.ArgumentParser(prog="python3 -m optimizer.launch.simulated")
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--served-model-name", dest="model", default=plain.model)
    parser.add_argument("--task", choices=("generate", "embed", "predict", "any"), default="any")
    parser.add_argument("--ttft-ms", type=float, default=plain.ttft_ms)
    parser.add_argument("--tpot-ms", type=float, default=plain.tpot_ms)
    parser.add_argument("--output-tokens", type=int, default=plain.output_tokens)
    parser.add_argument("--max-num-seqs", type=int, default=plain.max_num_seqs)
    parser.add_argument("--max-model-len", type=int, default=plain.max_model_len)
    parser.add_argument("--kv-tokens", type=int, default=None)
    parser.add_argument("--queue", type=int, default=plain.queue)
    parser.add_argument("--fault", default=None, help=FAULTS)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--master", default=f"{HOST}:0", metavar="HOST:PORT")
    said = vars(parser.parse_args(argv))
    nodes, rank = said.pop("nnodes"), said.pop("node_rank")
    master, _, meeting = said.pop("master").rpartition(":")
    group = Rank(nodes, rank, master, int(meeting)) if nodes > 1 else None
    return said.pop("host"), said.pop("port"), Behaviour(**said), group


async def serve(host: str, port: int, behaviour: Behaviour, group: Rank | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs; the exit code."""
    if behaviour.fault_after("exit") is not None:
        print("fault on demand: exit at start", file=sys.stderr)
        return 3
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    leader = None
    if group is not None and group.rank > 0:
        return 0 if await follow(group.host, group.port, group.rank, stopping) else 3
    if group is not None:
        leader = Leader(group.nodes - 1)
        await leader.listen(group.host, group.port)
        if not await _first(leader.whole, stopping):
            return 0
    api = Api(behaviour)
    busy: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        busy.add(writer)
        try:
            await serve_connection(api.handle, reader, writer)
        finally:
            busy.discard(writer)

    server = await asyncio.start_server(connected, host, port, limit=HEAD_BYTES)
    bound = server.sockets[0].getsockname()
    print(f"simulated engine of {behaviour.model} on http://{bound[0]}:{bound[1]}", flush=True)
    code = await _until(stopping, behaviour, leader)
    server.close()
    deadline = time.monotonic() + GRACE_S
    while api.admission.running and time.monotonic() < deadline and code == 0:
        await asyncio.sleep(0.02)
    print("stopped", flush=True)
    return code


async def _first(one: asyncio.Event, other: asyncio.Event) -> bool:
    """Whether it is the one that comes first."""
    tasks = [asyncio.create_task(event.wait()) for event in (one, other)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    return one.is_set()


async def _until(stopping: asyncio.Event, behaviour: Behaviour, leader: Leader | None) -> int:
    """Wait for the end: asked for (0), another rank is gone, or a fault on demand (3)."""
    after = behaviour.fault_after("exit-after")
    lost = asyncio.Event() if leader is None else leader.lost
    with contextlib.suppress(TimeoutError):
        return 0 if await asyncio.wait_for(_first(stopping, lost), after) else 3
    print(f"fault on demand: exit after {after:g} s", file=sys.stderr)
    return 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; the process's exit code."""
    host, port, behaviour, group = parse(sys.argv[1:] if argv is None else argv)
    return asyncio.run(serve(host, port, behaviour, group))
