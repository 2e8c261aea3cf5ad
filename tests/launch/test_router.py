"""The router: whom it asks, what it passes on, and what it does when a copy is gone."""

import asyncio
import json
from dataclasses import replace

from optimizer.launch.router import Router, Upstream
from optimizer.launch.simulated.http import Request, Response, as_json, serve_connection

COMPLETIONS = "/v1/chat/completions"


def request(path: str, **body: object) -> Request:
    return Request("POST", path, {"content-type": "application/json"}, json.dumps(body).encode())


async def engine(handle) -> int:
    """The port of a server that answers so."""
    server = await asyncio.start_server(lambda r, w: serve_connection(handle, r, w), "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


async def whole(response: Response) -> str:
    """Its body, or its stream, after which it is finished."""
    parts = [response.body]
    if response.events is not None:
        parts += [part async for part in response.events]
    if response.finish is not None:
        response.finish()
    return b"".join(parts).decode()


async def echo(asked: Request) -> Response:
    return as_json({"path": asked.path, "body": json.loads(asked.body)})


async def stream(asked: Request) -> Response:
    async def events():
        for part in (b"data: one\n\n", b"data: [DONE]\n\n"):
            yield part

    return Response(content_type="text/event-stream", events=events())


async def _hangs_up(reader, writer) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


def test_a_deployment_goes_by_its_path_or_its_model():
    async def play():
        router = Router()
        port = await engine(echo)
        router.route({"chat": [Upstream("chat/0", "127.0.0.1", port)], "code": []})
        by_path = await router.handle(request(f"/chat{COMPLETIONS}", model="x"))
        by_model = await router.handle(request(COMPLETIONS, model="chat"))
        assert router.in_flight("chat/0") == 2
        told = [json.loads(await whole(r))["path"] for r in (by_path, by_model)]
        assert told == [COMPLETIONS, COMPLETIONS]
        assert router.in_flight("chat/0") == 0
        assert (await router.handle(request(COMPLETIONS, model="code"))).status == 503
        assert (await router.handle(request(COMPLETIONS, model="other"))).status == 404

    asyncio.run(play())


def test_only_who_bears_the_token_is_answered_and_no_copy_sees_it():
    async def play():
        seen = []

        async def engine_asked(asked: Request) -> Response:
            seen.append(asked.headers)
            return as_json({})

        router = Router("secret")
        router.route({"chat": [Upstream("chat/0", "127.0.0.1", await engine(engine_asked))]})
        asked = request(COMPLETIONS, model="chat")
        assert (await router.handle(asked)).status == 401
        for said, status in (("Bearer wrong", 401), ("secret", 401), ("Bearer secret", 200)):
            headers = {**asked.headers, "authorization": said}
            answer = await router.handle(replace(asked, headers=headers))
            assert answer.status == status
            await whole(answer)
        [headers] = seen
        assert "authorization" not in headers

    asyncio.run(play())


def test_a_copy_behind_a_gate_is_asked_with_its_token_or_passed_over():
    async def play():
        gate, router = Router("secret"), Router()
        port, gate_port = await engine(echo), await engine(gate.handle)
        behind = Upstream("toy/chat/0", "127.0.0.1", gate_port, "/toy%2Fchat%2F0", "secret")
        router.route({"chat": [behind, Upstream("toy/chat/1", "127.0.0.1", port)]})
        # The gate does not know it, then knows it at a port where nobody listens, then well.
        gone = await asyncio.start_server(_hangs_up, "127.0.0.1", 0)
        dead = gone.sockets[0].getsockname()[1]
        gone.close()
        for known in ({}, {"toy%2Fchat%2F0": [Upstream("toy/chat/0", "127.0.0.1", dead)]}):
            gate.route(known)
            answer = await router.handle(request(f"/chat{COMPLETIONS}", model="x"))
            assert json.loads(await whole(answer))["path"] == COMPLETIONS
        router.route({"chat": [behind]})
        assert (await router.handle(request(f"/chat{COMPLETIONS}", model="x"))).status == 503
        gate.route({"toy%2Fchat%2F0": [Upstream("toy/chat/0", "127.0.0.1", port)]})
        answer = await router.handle(request(f"/chat{COMPLETIONS}", model="x"))
        assert json.loads(await whole(answer))["path"] == COMPLETIONS
        assert router.in_flight("toy/chat/0") == 0

    asyncio.run(play())


def test_a_copy_that_is_gone_or_hangs_up_is_passed_over():
    async def play():
        router = Router()
        port = await engine(stream)
        silent = await asyncio.start_server(_hangs_up, "127.0.0.1", 0)
        gone = await asyncio.start_server(_hangs_up, "127.0.0.1", 0)
        gone_port = gone.sockets[0].getsockname()[1]
        gone.close()
        ports = {
            "chat/0": gone_port,
            "chat/1": silent.sockets[0].getsockname()[1],
            "chat/2": port,
        }
        router.route({"chat": [Upstream(n, "127.0.0.1", p) for n, p in ports.items()]})
        answer = await router.handle(request(COMPLETIONS, model="chat", stream=True))
        assert answer.content_type == "text/event-stream"
        assert [router.in_flight(name) for name in ports] == [0, 0, 1]
        # Those on their way end where they are, also when the table has changed.
        router.route({"chat": []})
        assert await whole(answer) == "data: one\n\ndata: [DONE]\n\n"
        assert router.in_flight("chat/2") == 0
        assert (await router.handle(request(COMPLETIONS, model="chat"))).status == 503

    asyncio.run(play())
