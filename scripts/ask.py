#!/usr/bin/env python3
"""Send a chat request to two replicas, as told by ``status -o json`` on stdin; loopback only."""

import json
import sys
import time
import urllib.request

ASKED = 2
QUESTION = {"messages": [{"role": "user", "content": "Which GPU am I on?"}], "max_tokens": 16}


def ask(row: dict[str, str]) -> None:
    """Print what the replica answers, and after how long."""
    with urllib.request.urlopen(f"{row['url']}/v1/models", timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = json.dumps({**QUESTION, "model": model}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{row['url']}/v1/chat/completions", body, headers)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.load(answer)
    text = said["choices"][0]["message"]["content"].strip()
    took = (time.monotonic() - began) * 1000
    print(f"{row['replica']} ({model}) on {' '.join(row['devices'])}: {text[:60]!r}, {took:.0f} ms")


ready = [row for row in json.load(sys.stdin)["replicas"] if row["state"] == "ready" and row["url"]]
for one in ready[:ASKED]:
    ask(one)
sys.exit(0 if ready else 1)
