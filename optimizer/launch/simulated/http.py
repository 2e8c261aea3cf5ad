"""Just enough of HTTP/1.1 for a simulated engine: the standard library starts in a tenth of the
time that a web framework takes, and a plan starts one server for each replica."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

HEAD_BYTES = 64 << 10
BODY_BYTES = 32 << 20
IDLE_S = 75.0
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request with its whole body. ``path`` without the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """A status and either a whole body or a stream of server-sent events.

    ``finish`` is called once it is sent, or can no longer be.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    events: AsyncIterator[bytes] | None = None
    finish: Callable[[], None] | None = None


class BadRequest(Exception):
    """The request is answered with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Handler = Callable[[Request], Awaitable[Response]]


def as_json(data: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """A JSON body."""
    return Response(status, json.dumps(data).encode(), headers=headers)


def as_error(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """An error in the form that OpenAI's clients read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": status}
    return as_json({"error": error}, status, headers)


async def serve_connection(
    handle: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer requests on one connection until either side closes it."""
    try:
        while True:
            try:
                request = await asyncio.wait_for(_read(reader, writer), IDLE_S)
            except BadRequest as bad:
                await _write(writer, as_error(bad.status, str(bad)), last=True)
                break
            if request is None:
                break
            last = request.headers.get("connection", "").lower() == "close"
            try:
                response = await handle(request)
            except BadRequest as bad:
                response = as_error(bad.status, str(bad))
            try:
                await _write(writer, response, last)
            finally:
                if response.finish is not None:
                    response.finish()
            if last:
                break
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
        pass  # the client went away, or said nothing for long
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request; None when the client has closed. Raises BadRequest."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise BadRequest(400, "the request breaks off") from None
        return None
    except asyncio.LimitOverrunError:
        raise BadRequest(413, "the request's head is too long") from None
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest(400, "not an HTTP/1.1 request")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "transfer-encoding" in headers:
        raise BadRequest(411, "send a Content-Length; chunked bodies are not read")
    length = headers.get("content-length", "0")
    if not length.isdigit():
        raise BadRequest(400, "Content-Length is no number")
    if int(length) > BODY_BYTES:
        raise BadRequest(413, "the body is too long")
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(length))
    return Request(words[0], words[1].partition("?")[0], headers, body)


async def _write(writer: asyncio.StreamWriter, response: Response, last: bool) -> None:
    lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, '')}"]
    lines.append(f"Content-Type: {response.content_type}")
    lines += [f"{name}: {value}" for name, value in response.headers]
    lines.append(f"Connection: {'close' if last else 'keep-alive'}")
    if response.events is None:
        lines.append(f"Content-Length: {len(response.body)}")
    else:
        lines += ["Cache-Control: no-cache", "Transfer-Encoding: chunked"]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + response.body)
    await writer.drain()
    if response.events is None:
        return
    async for event in response.events:
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises BadRequest."""
    try:
        data = json.loads(request.body)
    except ValueError as error:
        raise BadRequest(400, f"the body is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequest(400, "the body must be a JSON object")
    return data
