"""A simulated engine over loopback: OpenAI's API, never faster than predicted."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from optimizer.launch.environment import with_package

TTFT_MS, TPOT_MS = 40, 5
ASK = {"model": "chat", "messages": [{"role": "user", "content": "eight characters each"}]}


@contextmanager
def engine(*flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running engine and its port; ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "optimizer.launch.simulated", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=with_package(os.environ),
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        match = re.search(r":(\d+)$", said.strip())
        assert match, said
        yield process, int(match[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def chat() -> Iterator[int]:
    with engine(
        *("--served-model-name", "chat", "--task", "generate", "--output-tokens", "4"),
        *("--ttft-ms", str(TTFT_MS), "--tpot-ms", str(TPOT_MS), "--max-model-len", "100"),
    ) as (_, port):
        yield port


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def post(port: int, path: str, body: object) -> dict[str, object]:
    status, answer = ask(port, "POST", path, body)
    assert status == 200, answer
    return json.loads(answer)


def test_health_and_models(chat):
    assert ask(chat, "GET", "/health") == (200, b"")
    models = json.loads(ask(chat, "GET", "/v1/models")[1])
    assert [(m["id"], m["max_model_len"]) for m in models["data"]] == [("chat", 100)]


def test_chat(chat):
    began = time.monotonic()
    answer = post(chat, "/v1/chat/completions", ASK | {"max_tokens": 10})
    took_ms = (time.monotonic() - began) * 1000
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 10, "total_tokens": 16}
    assert len(answer["choices"][0]["message"]["content"].split()) == 10
    assert took_ms >= TTFT_MS + 9 * TPOT_MS


def test_chat_streams_each_token_when_it_is_due(chat):
    connection = http.client.HTTPConnection("127.0.0.1", chat, timeout=30)
    began = time.monotonic()
    said = ASK | {"stream": True, "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/chat/completions", json.dumps(said))
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "text/event-stream"
    arrivals, events = [], []
    for line in response:
        if line.strip():
            arrivals.append((time.monotonic() - began) * 1000)
            events.append(line.removeprefix(b"data: ").strip())
    connection.close()
    assert events.pop() == b"[DONE]"
    *tokens, usage = map(json.loads, events)
    text = "".join(t["choices"][0]["delta"]["content"] for t in tokens)
    assert text == "this answer is simulated"
    assert [t["choices"][0]["finish_reason"] for t in tokens] == [None, None, None, "length"]
    assert usage["usage"]["completion_tokens"] == 4
    assert all(ms >= TTFT_MS + i * TPOT_MS for i, ms in enumerate(arrivals[:4]))


def test_completions_of_token_ids(chat):
    answer = post(chat, "/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 2})
    assert answer["choices"][0]["text"] == "this answer"
    assert answer["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v1/chat/completions", ASK | {"model": "other"}, 404, "no model 'other'"),
        ("/v1/chat/completions", {"model": "chat"}, 400, "messages is missing"),
        ("/v1/chat/completions", ASK | {"max_tokens": 0.5}, 400, "whole number"),
        ("/v1/chat/completions", ASK | {"max_tokens": 94}, 200, "length"),
        ("/v1/chat/completions", ASK | {"max_tokens": 95}, 400, "context of 100"),
        ("/v1/embeddings", {"input": "x"}, 404, "does not serve"),
        ("/v1/chat/completions", [1], 400, "JSON object"),
        ("/nowhere", {}, 404, "nothing at"),
    ],
)
def test_requests_are_refused_as_an_engine_would(chat, path, body, status, told):
    got, answer = ask(chat, "POST", path, body)
    assert (got, told in answer.decode()) == (status, True)


def test_metrics_count_what_was_served(chat):
    def served() -> int:
        text = ask(chat, "GET", "/metrics")[1].decode()
        return int(float(re.search(r"^vllm:request_success_total\{.*\} (\S+)$", text, re.M)[1]))

    before = served()
    post(chat, "/v1/chat/completions", ASK)
    assert served() == before + 1


def test_embeddings_of_equal_texts_are_equal():
    with engine("--task", "embed", "--ttft-ms", "1") as (_, port):
        answer = post(port, "/v1/embeddings", {"input": ["a", "b", "a"], "dimensions": 8})
        a, b, again = (d["embedding"] for d in answer["data"])
        assert len(a) == 8
        assert a == again != b


def test_what_runs_is_finished_before_the_end():
    with engine("--ttft-ms", "300", "--output-tokens", "1") as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "x"}))
        while b'running{model_name="model"} 0' in ask(port, "GET", "/metrics")[1]:
            time.sleep(0.01)
        process.terminate()
        assert connection.getresponse().status == 200
        connection.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize(("fault", "status"), [("never-ready", 503), ("unhealthy-after:0", 503)])
def test_faults_on_demand(fault, status):
    with engine("--fault", fault) as (_, port):
        assert ask(port, "GET", "/health")[0] == status
