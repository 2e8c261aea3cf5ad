"""What a simulated engine answers: OpenAI's API, timed as predicted."""

import asyncio
import base64
import hashlib
import json
import math
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from optimizer.launch.simulated.admission import Admission, QueueFull
from optimizer.launch.simulated.behaviour import Behaviour
from optimizer.launch.simulated.http import (
    BadRequest,
    Request,
    Response,
    as_error,
    as_json,
    read_json,
)

WORDS = ("this", "answer", "is", "simulated", "and", "timed", "as", "the", "plan", "predicts")
CHARACTERS_PER_TOKEN = 4
EMBEDDING_SIZE = 64
TASKS = {
    "/v1/chat/completions": "generate",
    "/v1/completions": "generate",
    "/v1/embeddings": "embed",
    "/predict": "predict",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for tokens."""

    id: str
    chat: bool
    prompt_tokens: int
    output_tokens: int
    stream: bool
    include_usage: bool
    created: int

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's count of tokens."""
        total = self.prompt_tokens + self.output_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": total,
        }


class Api:
    """Handles requests of one engine."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._how = behaviour
        self._began = time.monotonic()
        self._served = 0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self.admission = Admission(behaviour.max_num_seqs, behaviour.kv_tokens, behaviour.queue)

    async def handle(self, request: Request) -> Response:
        """The answer to one request; streamed answers hold their place until they end."""
        match request.method, request.path:
            case "GET", "/health" | "/ping":
                return self._health()
            case "GET", "/v1/models":
                return as_json({"object": "list", "data": [self._card()]})
            case "GET", "/metrics":
                return Response(body=self._metrics(), content_type="text/plain; version=0.0.4")
            case "POST", path if path in TASKS:
                return await self._post(path, read_json(request))
            case _, path if path in TASKS or path in ("/health", "/v1/models", "/metrics"):
                return as_error(405, f"{request.method} is not served on {path}")
        return as_error(404, f"nothing at {request.path}")

    async def _post(self, path: str, body: dict[str, Any]) -> Response:
        if self._how.task not in ("any", TASKS[path]):
            raise BadRequest(404, f"{self._how.model} does not serve {path}")
        if path != "/predict" and body.get("model", self._how.model) != self._how.model:
            raise BadRequest(404, f"no model {body['model']!r} here, only {self._how.model!r}")
        try:
            if TASKS[path] == "generate":
                return await self._generate(self._asked(path, body))
            return await self._embed(path, body)
        except QueueFull:
            waiting = f"{self.admission.waiting} requests wait already"
            return as_error(429, waiting, headers=(("Retry-After", "1"),))

    def _health(self) -> Response:
        lasted = time.monotonic() - self._began
        sick = self._how.fault_after("unhealthy-after")
        never = self._how.fault_after("never-ready") is not None
        if never or (sick is not None and lasted >= sick):
            return as_error(503, "fault on demand: not ready")
        return Response()

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._how.model,
            "object": "model",
            "created": int(time.time() - (time.monotonic() - self._began)),
            "owned_by": "fleetslice",
            "max_model_len": self._how.max_model_len,
        }

    def _metrics(self) -> bytes:
        label = json.dumps(self._how.model)
        counts = {
            ("vllm:num_requests_running", "gauge"): self.admission.running,
            ("vllm:num_requests_waiting", "gauge"): self.admission.waiting,
            ("vllm:kv_cache_usage_perc", "gauge"): self.admission.cache_use,
            ("vllm:request_success_total", "counter"): self._served,
            ("vllm:prompt_tokens_total", "counter"): self._prompt_tokens,
            ("vllm:generation_tokens_total", "counter"): self._output_tokens,
        }
        lines = []
        for (name, kind), value in counts.items():
            lines += [f"# TYPE {name} {kind}", f"{name}{{model_name={label}}} {value:g}"]
        return ("\n".join(lines) + "\n").encode()

    def _asked(self, path: str, body: dict[str, Any]) -> Asked:
        """The tokens that a request asks for. Raises BadRequest as an engine would."""
        chat = path == "/v1/chat/completions"
        key = "messages" if chat else "prompt"
        if not body.get(key):
            raise BadRequest(400, f"{key} is missing")
        if body.get("n", 1) != 1:
            raise BadRequest(400, "n must be 1")
        prompt = count_tokens(body[key])
        room = self._how.max_model_len - prompt
        wanted = body.get("max_completion_tokens") or body.get("max_tokens")
        if wanted is None:
            wanted = min(self._how.output_tokens, max(1, room))
        if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
            raise BadRequest(400, "max_tokens must be a whole number above 0")
        if wanted > room or not self.admission.fits_ever(prompt + wanted):
            raise BadRequest(
                400,
                f"{prompt} input and {wanted} output tokens are beyond the model's context of "
                f"{self._how.max_model_len} tokens",
            )
        options = body.get("stream_options") or {}
        created = time.time()
        return Asked(
            id=f"{'chatcmpl' if chat else 'cmpl'}-{int(created * 1e6):x}",
            chat=chat,
            prompt_tokens=prompt,
            output_tokens=wanted,
            stream=bool(body.get("stream")),
            include_usage=bool(options.get("include_usage")),
            created=int(created),
        )

    async def _generate(self, asked: Asked) -> Response:
        tokens = asked.prompt_tokens + asked.output_tokens
        await self.admission.enter(tokens)
        began = asyncio.get_running_loop().time()
        if asked.stream:
            return Response(
                content_type="text/event-stream",
                events=self._stream(asked, began),
                finish=partial(self.admission.leave, tokens),
            )
        try:
            await _until(self._due(began, asked.output_tokens - 1))
            self._count(asked.prompt_tokens, asked.output_tokens)
        finally:
            self.admission.leave(tokens)
        text = " ".join(word(i) for i in range(asked.output_tokens))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "logprobs": None}
        if asked.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        answer = self._frame(asked, "chat.completion" if asked.chat else "text_completion")
        return as_json(answer | {"choices": [choice], "usage": asked.usage})

    async def _stream(self, asked: Asked, began: float) -> AsyncIterator[bytes]:
        """One server-sent event a token, each when it is due."""
        frame = self._frame(asked, "chat.completion.chunk" if asked.chat else "text_completion")
        for i in range(asked.output_tokens):
            await _until(self._due(began, i))
            text = word(i) if i == 0 else f" {word(i)}"
            choice: dict[str, Any] = {"index": 0, "finish_reason": None, "logprobs": None}
            if i == asked.output_tokens - 1:
                choice["finish_reason"] = "length"
            if asked.chat:
                role = {"role": "assistant"} if i == 0 else {}
                choice["delta"] = {**role, "content": text}
            else:
                choice["text"] = text
            yield event(frame | {"choices": [choice]})
        self._count(asked.prompt_tokens, asked.output_tokens)
        if asked.include_usage:
            yield event(frame | {"choices": [], "usage": asked.usage})
        yield b"data: [DONE]\n\n"

    async def _embed(self, path: str, body: dict[str, Any]) -> Response:
        """Vectors, or an echo for what is no LLM, after one TTFT."""
        given = body.get("input") if path == "/v1/embeddings" else body
        if not given and path == "/v1/embeddings":
            raise BadRequest(400, "input is missing")
        tokens = count_tokens(given)
        await self.admission.enter(tokens)
        try:
            await _until(self._due(asyncio.get_running_loop().time(), 0))
            self._count(tokens, 0)
        finally:
            self.admission.leave(tokens)
        if path == "/predict":
            return as_json({"model": self._how.model, "outputs": []})
        texts = [given] if isinstance(given, str) or _is_tokens(given) else list(given or ())
        size = body.get("dimensions") or EMBEDDING_SIZE
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(vector(repr(t), size), body)}
            for i, t in enumerate(texts)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return as_json({"object": "list", "data": data, "model": self._how.model, "usage": usage})

    def _due(self, began: float, index: int) -> float:
        """When the token of that index is out, on the loop's clock."""
        return began + (self._how.ttft_ms + index * self._how.tpot_ms) / 1000

    def _frame(self, asked: Asked, kind: str) -> dict[str, Any]:
        return {
            "id": asked.id,
            "object": kind,
            "created": asked.created,
            "model": self._how.model,
        }

    def _count(self, prompt_tokens: int, output_tokens: int) -> None:
        self._served += 1
        self._prompt_tokens += prompt_tokens
        self._output_tokens += output_tokens


async def _until(due: float) -> None:
    """Sleep until the loop's clock says ``due``: never early, and lateness does not add up."""
    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))


def word(index: int) -> str:
    """The token of that index."""
    return WORDS[index % len(WORDS)]


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def count_tokens(given: object) -> int:
    """Tokens of a prompt: token ids counted, text at four characters a token."""
    if _is_tokens(given):
        assert isinstance(given, list)
        return max(1, len(given))
    return max(1, math.ceil(_characters(given) / CHARACTERS_PER_TOKEN))


def _characters(given: object) -> int:
    if isinstance(given, str):
        return len(given)
    if isinstance(given, dict):
        return _characters(given.get("content", given.get("text", "")))
    if isinstance(given, list):
        if _is_tokens(given):
            return CHARACTERS_PER_TOKEN * len(given)
        return sum(_characters(part) for part in given)
    return 0


def _is_tokens(given: object) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(t, int) for t in given)


def vector(text: str, size: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    raw = hashlib.shake_256(text.encode()).digest(2 * size)
    values = [v / 32768 - 1 for v in struct.unpack(f"<{size}H", raw)]
    length = math.sqrt(sum(v * v for v in values)) or 1.0
    return [v / length for v in values]


def _encoded(values: list[float], body: dict[str, Any]) -> list[float] | str:
    if body.get("encoding_format") == "base64":
        return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    return values
