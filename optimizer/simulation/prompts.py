"""Replicas of embedding models, batch by batch: prompts in, vectors out."""

from array import array
from collections import deque

import numpy as np

from optimizer.simulation.server import ServerSpec
from optimizer.simulation.traffic import Times


class PromptServer:
    """One replica: it takes what waits, as far as a step holds it, and nothing else till the end.

    Columns instead of requests: an hour of a search service is millions of prompts.
    """

    __slots__ = (
        "_at",
        "_ends",
        "_sizes",
        "_taken",
        "busy_s",
        "due",
        "now",
        "outstanding",
        "seconds",
        "spec",
        "waiting",
    )

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self.now = 0.0
        self.due = np.inf  # when something next happens without a new prompt
        self.outstanding = 0
        self.busy_s = 0.0
        self.waiting: deque[tuple[int, int]] = deque()  # tokens, and those of them not cached
        self.seconds: dict[tuple[int, int], float] = {}  # by tokens and prompts of a step
        self._at = array("d")
        self._ends = array("d")
        self._sizes = array("q")

    def ask(self, at: float, tokens: int, output: int, cached: int) -> None:
        """A prompt arrives; none may arrive before an earlier one."""
        del output
        tokens = max(1, tokens)
        new = tokens - min(max(0, cached), tokens - 1)
        if self.due <= at:
            self.advance(at)
        if self.now < at:
            self.now = at
        self._at.append(at)
        self.waiting.append((tokens, new))
        self.outstanding += 1
        self.due = self.now

    def advance(self, until: float) -> None:
        """Every batch that begins up to that time."""
        waiting, chunk, most = self.waiting, self.spec.chunk, self.spec.max_num_seqs
        while waiting and self.now <= until:
            size, taken, prompts = 0, 0, 0
            while waiting and size < most:
                tokens, new = waiting[0]
                if size and taken + tokens > chunk:
                    break
                waiting.popleft()
                size, taken, prompts = size + 1, taken + tokens, prompts + new
            seconds = self.seconds.get((prompts, size))
            if seconds is None:
                seconds = self.spec.step.prefill_batch(prompts, max(1.0, prompts / size))
                self.seconds[prompts, size] = seconds
            self.now += seconds
            self.busy_s += seconds
            self.outstanding -= size
            self._ends.append(self.now)
            self._sizes.append(size)
        self.due = self.now if waiting else np.inf

    @property
    def latencies_s(self) -> Times:
        """From arrival to vector, without the front end, of every prompt that is done."""
        ends = np.repeat(np.frombuffer(self._ends), np.frombuffer(self._sizes, dtype=np.int64))
        return ends - np.frombuffer(self._at)[: len(ends)]
