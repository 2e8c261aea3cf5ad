"""How many requests a simulated engine works on at once, as its batch and its KV cache allow."""

import asyncio
from collections import deque


class QueueFull(Exception):
    """Too many requests wait already."""


class Admission:
    """First come, first served: at most ``seqs`` requests and ``kv_tokens`` tokens at once.

    ``kv_tokens`` None: only the number of requests counts. A request that finds ``queue`` others
    waiting is turned away.
    """

    def __init__(self, seqs: int, kv_tokens: int | None = None, queue: int = 1024) -> None:
        self._seqs, self._kv_tokens, self._queue = seqs, kv_tokens, queue
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.running = 0
        self.tokens = 0

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    @property
    def cache_use(self) -> float:
        """The part of the KV cache that running requests may fill."""
        return self.tokens / self._kv_tokens if self._kv_tokens else 0.0

    def fits_ever(self, tokens: int) -> bool:
        """Whether a request of so many tokens can run at all."""
        return self._kv_tokens is None or tokens <= self._kv_tokens

    async def enter(self, tokens: int) -> None:
        """Wait for room for one request of so many tokens. Raises QueueFull at once."""
        if not self._waiting and self._room(tokens):
            self._take(tokens)
            return
        if len(self._waiting) >= self._queue:
            raise QueueFull
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(tokens)
            else:
                self._waiting.remove((tokens, turn))
            raise

    def leave(self, tokens: int) -> None:
        """Give the room of one request back and let the next ones in."""
        self.running -= 1
        self.tokens -= tokens
        while self._waiting and self._room(self._waiting[0][0]):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._take(wanted)
                turn.set_result(None)

    def _room(self, tokens: int) -> bool:
        fits = self._kv_tokens is None or self.tokens + tokens <= self._kv_tokens
        return self.running < self._seqs and fits

    def _take(self, tokens: int) -> None:
        self.running += 1
        self.tokens += tokens
