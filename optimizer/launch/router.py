"""One stable address for each deployment, whatever copies serve it behind.

``http://HOST:PORT/<deployment>/v1/...`` goes to the copy of the deployment with the fewest requests
in flight; ``/v1/...`` asks the request's ``model``. A copy that cannot be reached before it answers
is passed over for another. Engines listen on the loopback interface of their nodes; those of other
nodes are reached through a gate there, which is a router of copies that asks for a token.
"""

import asyncio
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.launch.simulated.http import (
    HEAD_BYTES,
    Request,
    Response,
    as_error,
    serve_connection,
)

CONNECT_S = 5.0
# Of a gate's own answer, not of a copy's: who passed the request to it tries another copy.
MISSED = "x-fleetslice-missed"
# Headers of one connection, not of the request or answer.
HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
UNREACHABLE = (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A copy that serves, and where; behind a gate under ``prefix``, with the gate's token."""

    name: str
    host: str
    port: int
    prefix: str = ""
    token: str | None = None


class Missed(OSError):
    """A gate does not reach the copy."""


class Router:
    """Forwards requests by a table that may change at any time.

    With a ``token`` only those who bear it are answered (``Authorization: Bearer TOKEN``).
    """

    def __init__(self, token: str | None = None) -> None:
        self._token = token
        self._table: dict[str, tuple[Upstream, ...]] = {}
        self._busy: Counter[str] = Counter()

    def route(self, table: Mapping[str, Sequence[Upstream]]) -> None:
        """From now on new requests go so; those in flight end where they are."""
        self._table = {deployment: tuple(copies) for deployment, copies in table.items()}

    def in_flight(self, name: str) -> int:
        """Requests that a copy is at work on."""
        return self._busy[name]

    async def start(self, host: str, port: int) -> int:
        """Listen, on any free port when that one is taken; the port."""
        for wanted in (port, 0):
            try:
                server = await asyncio.start_server(
                    lambda reader, writer: serve_connection(self.handle, reader, writer),
                    host,
                    wanted,
                    limit=HEAD_BYTES,
                )
            except OSError:
                if wanted == 0:
                    raise
                continue
            return int(server.sockets[0].getsockname()[1])
        raise AssertionError  # the loop returns or raises

    async def handle(self, request: Request) -> Response:
        """The answer of a copy, or why there is none."""
        if self._token is not None:
            if not _bears(request, self._token):
                return as_error(401, "say who you are: Authorization: Bearer TOKEN")
            kept = {n: v for n, v in request.headers.items() if n != "authorization"}
            request = replace(request, headers=kept)
        deployment, request = self._meant(request)
        if deployment is None:
            known = ", ".join(sorted(self._table)) or "none"
            return as_error(404, f"no such deployment; there are: {known}", ((MISSED, "1"),))
        tried: set[str] = set()
        while True:
            free = [u for u in self._table.get(deployment, ()) if u.name not in tried]
            if not free:
                why = f"no replica of {deployment} can be reached"
                return as_error(503, why, (("Retry-After", "1"), (MISSED, "1")))
            upstream = min(free, key=lambda u: self._busy[u.name])
            tried.add(upstream.name)
            self._busy[upstream.name] += 1
            try:
                answer = await forward(upstream, request)
            except UNREACHABLE:
                self._busy[upstream.name] -= 1
                continue
            except BaseException:
                self._busy[upstream.name] -= 1
                raise
            return replace(answer, finish=self._finisher(upstream, answer))

    def _finisher(self, upstream: Upstream, answer: Response) -> Callable[[], None]:
        def finish() -> None:
            self._busy[upstream.name] -= 1
            if answer.finish is not None:
                answer.finish()

        return finish

    def _meant(self, request: Request) -> tuple[str | None, Request]:
        first, _, rest = request.path.removeprefix("/").partition("/")
        if first in self._table:
            return first, replace(request, path=f"/{rest}")
        try:
            model = json.loads(request.body or b"null")
        except ValueError:
            return None, request
        named = model.get("model") if isinstance(model, dict) else None
        return (named if named in self._table else None), request


def _bears(request: Request, token: str) -> bool:
    said = request.headers.get("authorization", "").encode()
    return hmac.compare_digest(said, f"Bearer {token}".encode())


async def forward(upstream: Upstream, request: Request) -> Response:
    """Send it on; the answer, of which a stream is passed on as it comes."""
    reader, writer = await asyncio.wait_for(
        asyncio.open_connection(upstream.host, upstream.port, limit=HEAD_BYTES), CONNECT_S
    )
    try:
        writer.write(_head(upstream, request) + request.body)
        await writer.drain()
        status, headers = _read_head(await reader.readuntil(b"\r\n\r\n"))
        if upstream.token is not None and MISSED in headers:
            raise Missed(upstream.name)
        passed = tuple((n, v) for n, v in headers.items() if n not in (*HOP, "content-type"))
        answer = Response(
            status, b"", headers.get("content-type", "application/json"), passed, None, writer.close
        )
        if headers.get("transfer-encoding") == "chunked":
            return replace(answer, events=_chunks(reader))
        length = headers.get("content-length")
        body = await (reader.read() if length is None else reader.readexactly(int(length)))
        return replace(answer, body=body)
    except BaseException:
        writer.close()
        raise


def _head(upstream: Upstream, request: Request) -> bytes:
    path = upstream.prefix + request.path
    lines = [f"{request.method} {path} HTTP/1.1", f"Host: {upstream.host}:{upstream.port}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items() if name not in HOP]
    if upstream.token is not None:
        lines.append(f"Authorization: Bearer {upstream.token}")
    lines += [f"Content-Length: {len(request.body)}", "Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    return int(first.split(" ")[1]), dict(_pairs(lines))


def _pairs(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip().lower(), value.strip()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
