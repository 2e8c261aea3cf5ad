"""One replica, step by step: prompts in chunks, decoding in batches, a KV cache that fills.

Time moves from one event to the next: while no prompt waits, the steps up to the next finished
request differ only in their context, and are taken together.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from optimizer.sizing.performance import StepModel


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What one replica can do. ``kv_tokens``: what its KV cache holds.

    ``reserves``: a request is admitted when its whole output has room; else running requests may
    be preempted, youngest first, and computed anew.
    """

    step: StepModel
    front_end_s: float
    max_num_seqs: int
    chunk: int
    kv_tokens: float
    reserves: bool = False
    in_flight: bool = True
    decodes: bool = True  # False: an embedding model, prompts only


class Job:
    """One request on its way. Times are absolute seconds; ``failed``: longer than the KV cache."""

    __slots__ = (
        "at",
        "cached",
        "context",
        "done",
        "end",
        "failed",
        "finish_step",
        "first",
        "input",
        "left",
        "output",
        "preempted",
        "turn",
    )

    def __init__(self, at: float, input_tokens: int, output_tokens: int, cached: int = 0) -> None:
        self.at = at
        self.input = max(1, input_tokens)
        self.output = max(1, output_tokens)
        self.cached = min(max(0, cached), self.input - 1)
        self.done = self.cached  # prompt tokens already computed
        self.left = self.output  # tokens still to come
        self.context = 0  # tokens in the KV cache when it last joined the batch
        self.finish_step = 0
        self.turn = 0  # by which it last joined the batch
        self.first = math.nan
        self.end = math.nan
        self.preempted = 0
        self.failed = False

    @property
    def prompt(self) -> int:
        """Tokens to compute before it may decode: after a preemption also what it had said."""
        return self.input + self.output - self.left


class Server:
    """The state of one replica between two steps."""

    __slots__ = (
        "_alive",
        "_first",
        "_growth",
        "_joined",
        "_reserved",
        "_running",
        "_steps",
        "_total",
        "busy_s",
        "due",
        "ended",
        "kv_peak",
        "now",
        "outstanding",
        "preemptions",
        "prefilling",
        "spec",
        "waiting",
    )

    def __init__(self, spec: ServerSpec, ended: Callable[[Job], None]) -> None:
        self.spec = spec
        self.ended = ended  # called with each request that leaves
        self.now = 0.0
        self.due = math.inf  # when something next happens without a new request
        self.outstanding = 0
        self.waiting: deque[Job] = deque()
        self.prefilling: deque[Job] = deque()
        self._running: list[tuple[int, int, Job]] = []  # heap: last step, turn, request
        self._joined = 0
        self._alive = 0
        self._steps = 0
        self._total = 0.0  # context tokens of running requests
        self._first = 0.0  # seconds of the next step, 0: to be worked out,
        self._growth = 0.0  # and what each step adds to the one after
        self._reserved = 0.0  # KV tokens promised to prompts under way, and to outputs if reserved
        self.busy_s = 0.0
        self.kv_peak = 0.0
        self.preemptions = 0

    def ask(self, at: float, prompt: int, output: int, cached: int) -> None:
        """A request of so many tokens arrives."""
        self.offer(Job(at, prompt, output, cached))

    def offer(self, job: Job) -> None:
        """A request arrives; none may arrive before an earlier one."""
        if self.due <= job.at or not self.spec.in_flight:
            self.advance(job.at)
        if self._running and self.now < job.at:
            self._decode(min(self._steps_until(job.at), self._steps_to_event()))
        self.now = max(self.now, job.at)
        self.waiting.append(job)
        self.outstanding += 1
        self.due = self.now

    def advance(self, until: float) -> None:
        """All that happens up to that time; a step under way is finished."""
        if not self.spec.in_flight:
            self._advance_in_batches(until)
            return
        while self.now <= until:
            if self.waiting:
                self._admit()
            if self.prefilling:
                if not self._room_for_a_step():
                    self._preempt()
                    continue
                self._mixed_step()
                continue
            if not self._running:
                self.due = math.inf
                return
            steps = self._steps_to_event()
            if steps < 1:
                self._preempt()
                continue
            after = self.now + self._seconds(steps)
            if after > until:
                self.due = after
                return
            self._decode(steps)
        self.due = self.now

    def _room_for_a_step(self) -> bool:
        """Whether each running request has room for its next token."""
        if self.spec.reserves or not self._alive:
            return True
        return self._held() + self._alive <= self.spec.kv_tokens

    def _held(self) -> float:
        return self._reserved if self.spec.reserves else self._reserved + self._total

    def _need(self, job: Job) -> float:
        return job.input + job.output if self.spec.reserves else job.prompt + 1

    def _admit(self) -> None:
        """First come, first served, while there are places and room in the KV cache."""
        spec = self.spec
        while self.waiting and self._alive + len(self.prefilling) < spec.max_num_seqs:
            job = self.waiting[0]
            need = self._need(job)
            next_tokens = 0 if spec.reserves else self._alive
            if self._held() + need + next_tokens > spec.kv_tokens:
                if self._alive or self.prefilling:
                    return
                self.waiting.popleft()
                self._end(job, failed=True)
                continue
            self.waiting.popleft()
            self._reserved += need
            self.prefilling.append(job)

    def _mixed_step(self) -> None:
        """One step: a token for each running request, and prompts up to the chunk."""
        spec, batch = self.spec, self._alive
        room = max(1, spec.chunk - batch)
        taken, attention, ready = 0, 0.0, []
        while self.prefilling and taken < room:
            job = self.prefilling[0]
            part = min(job.prompt - job.done, room - taken)
            attention += spec.step.attention(job.done + part, job.done)
            job.done += part
            taken += part
            if job.done >= job.prompt:
                ready.append(self.prefilling.popleft())
        sequence = spec.step.sequence(self._total / batch) if batch else 0.0
        step, added = spec.step.decode_and_prompt(batch, sequence, taken, taken)
        self._pass(step + added + attention, 1)
        for job in ready:
            self._join(job)

    def _join(self, job: Job) -> None:
        """Its prompt is computed, and its next token is there."""
        if math.isnan(job.first):
            job.first = self.now
        job.left -= 1
        need = job.input + job.output if self.spec.reserves else job.prompt
        if job.left <= 0:
            self._reserved -= need
            self._end(job)
            return
        job.context = job.prompt
        if not self.spec.reserves:
            self._reserved -= need
        job.finish_step = self._steps + job.left
        self._joined += 1
        job.turn = self._joined
        heappush(self._running, (job.finish_step, job.turn, job))
        self._first = 0.0
        self._alive += 1
        self._total += job.context

    def _steps_to_event(self) -> int:
        """Steps to the next finished request, or until the KV cache is full."""
        steps = self._running[0][0] - self._steps
        if not self.spec.reserves:
            free = self.spec.kv_tokens - self._held()
            steps = min(steps, int(free // self._alive))
        return steps

    def _cost(self) -> None:
        """Seconds of the next step, and what each adds to the one after; kept until it ends."""
        step, batch = self.spec.step, self._alive
        context = self._total / batch
        sequence = step.sequence(context)
        self._growth = (step.sequence(context + 1) - sequence) * max(batch, step.stages)
        self._first = step.decode(batch, sequence)

    def _seconds(self, steps: int) -> float:
        if not self._first:
            self._cost()
        return steps * self._first + self._growth * steps * (steps - 1) / 2

    def _steps_until(self, time: float) -> int:
        """The fewest steps that end at that time or later."""
        if not self._first:
            self._cost()
        first, growth = self._first, self._growth
        wanted = time - self.now
        if growth * wanted < 1e-6 * first * first:
            return math.ceil(wanted / first)
        half = first - growth / 2
        return math.ceil((math.sqrt(half * half + 2 * growth * wanted) - half) / growth)

    def _decode(self, steps: int) -> None:
        if steps >= 1:
            self._pass(self._seconds(steps), steps)

    def _pass(self, seconds: float, steps: int) -> None:
        """Time goes by; each running request gets its tokens, and the finished ones leave."""
        self.now += seconds
        self.busy_s += seconds
        self._steps += steps
        self._total += steps * self._alive
        self._first = 0.0
        held = self._held()
        if held > self.kv_peak:
            self.kv_peak = held
        running = self._running
        while running and running[0][0] <= self._steps:
            job = heappop(running)[2]
            self._leave(job)
            job.left = 0
            self._end(job)
            if self.spec.reserves:
                self._reserved -= job.input + job.output

    def _end(self, job: Job, *, failed: bool = False) -> None:
        job.end = self.now
        job.failed = failed
        self.outstanding -= 1
        self.ended(job)

    def _leave(self, job: Job) -> None:
        grown = job.left - (job.finish_step - self._steps)
        self._total -= job.context + grown
        self._first = 0.0
        self._alive -= 1

    def _preempt(self) -> None:
        """The youngest request gives its cache back and waits first in line to be computed anew."""
        self.preemptions += 1
        if self.prefilling:
            job = self.prefilling.pop()
            self._reserved -= self._need(job)
            job.done = 0 if job.preempted else job.cached
            job.preempted += 1
            self.waiting.appendleft(job)
            return
        entry = max(self._running, key=lambda e: e[1])
        job = entry[2]
        said = job.left - (job.finish_step - self._steps)
        self._leave(job)
        self._running.remove(entry)
        heapify(self._running)
        job.left -= said
        job.done = 0
        job.preempted += 1
        if job.prompt + 1 > self.spec.kv_tokens:
            self._end(job, failed=True)  # alone it is still too long for the cache
            return
        self.waiting.appendleft(job)

    def _advance_in_batches(self, until: float) -> None:
        """Engines that run a batch to its end before the next begins."""
        while self.now <= until and self.waiting:
            batch = self._next_batch()
            start = self.now
            prompts = sum(j.input - j.cached for j in batch)
            longest = max(j.output for j in batch)
            first, whole = self._batch_seconds(batch, prompts, longest)
            for job in batch:
                job.first = start + first
                job.end = start + whole
                job.left = 0
                self.outstanding -= 1
                self.ended(job)
            self.now += whole
            self.busy_s += whole
        self.due = self.now if self.waiting else math.inf

    def _next_batch(self) -> list[Job]:
        """As many as have places and room in the KV cache."""
        batch: list[Job] = []
        tokens = 0
        while self.waiting and len(batch) < self.spec.max_num_seqs:
            need = self.waiting[0].input + self.waiting[0].output
            if batch and tokens + need > self.spec.kv_tokens:
                break
            tokens += need
            batch.append(self.waiting.popleft())
        return batch

    def _batch_seconds(self, batch: list[Job], prompts: int, longest: int) -> tuple[float, float]:
        step, size = self.spec.step, len(batch)
        context = sum(j.input for j in batch) / size + longest / 2
        one = step.decode(size, step.sequence(context))
        first = step.products(0.0, prompts) + sum(step.attention(j.input, j.cached) for j in batch)
        return first + one, first + (longest + 1) * one
