"""A client with a steady rate: so many requests a second over deployments, every other streamed.

    python launch_client.py ENDPOINT RATE DEPLOYMENT...

Asks until its standard input ends, then prints JSON: requests, failures by what was wrong, and
milliseconds to the end at the median and the 99th percentile.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

WITHIN_S = 60.0
TOKENS = 5


async def ask(host: str, port: int, deployment: str, number: int) -> str | None:
    """One request; None, or what was wrong with the answer."""
    stream = number % 2 == 0
    said = {"model": deployment, "max_tokens": TOKENS, "stream": stream}
    body = json.dumps({**said, "messages": [{"role": "user", "content": "hello"}]}).encode()
    head = f"POST /{deployment}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
    except OSError as error:
        return type(error).__name__
    status = answer.partition(b"\r\n")[0].decode("latin-1")
    if " 200 " not in status:
        return status or "no answer"
    whole = b"data: [DONE]" in answer if stream else b'"choices"' in answer
    return None if whole else "cut off"


async def play(endpoint: str, rate: float, deployments: list[str]) -> None:
    """Ask in turn, each when it is due whatever became of those before."""
    host, port = str(urlsplit(endpoint).hostname), int(urlsplit(endpoint).port or 80)
    over = asyncio.Event()
    asyncio.get_running_loop().run_in_executor(None, sys.stdin.read).add_done_callback(
        lambda done: over.set()
    )
    wrong: Counter[str] = Counter()
    took: list[float] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        try:
            fault = await asyncio.wait_for(
                ask(host, port, deployments[number % len(deployments)], number), WITHIN_S
            )
        except TimeoutError:
            fault = "no answer in time"
        took.append((time.monotonic() - began) * 1000)
        if fault is not None:
            wrong[fault] += 1

    tasks = set()
    began = time.monotonic()
    number = 0
    while not over.is_set():
        tasks.add(task := asyncio.create_task(one(number)))
        task.add_done_callback(tasks.discard)
        number += 1
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
    seconds = time.monotonic() - began
    await asyncio.gather(*tasks)
    took.sort()
    print(
        json.dumps(
            {
                "requests": len(took),
                "per_second": round(number / seconds, 1),
                "failed": dict(wrong),
                "median_ms": round(took[len(took) // 2]),
                "p99_ms": round(took[len(took) * 99 // 100]),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(play(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
