"""What is skipped changes nothing: servers against a naive one that takes every step by itself."""

import math
import random

import pytest
from simulation_examples import H100, LLAMA_8B, vllm

from optimizer.domain.workload import Slo
from optimizer.simulation import (
    Arrivals,
    Job,
    Routing,
    Served,
    Server,
    ServerSpec,
    replay_deployment,
)
from optimizer.sizing.compatibility import runs
from optimizer.sizing.performance import Device, StepModel, step_model

SEED, ROOMY = 20, 1e9


def step() -> StepModel:
    card = vllm()
    how = runs(card, card.default_version, H100, LLAMA_8B, "bf16", "bf16")
    found = step_model(LLAMA_8B, card, card.default_version, Device(H100, 3350), how, "bf16")
    assert found is not None
    return found


STEP = step()


def drawn(count: int, rate: float) -> list[tuple[float, int, int]]:
    """When, prompt and output: some together, some far apart."""
    dice, now, found = random.Random(SEED), 0.0, []
    for _ in range(count):
        now += dice.expovariate(rate) * dice.choice((1e-3, 1, 3))
        found.append((now, dice.randint(1, 3000), dice.randint(1, 60)))
    return found


def step_by_step(asked: list[tuple[float, int, int]], places: int, chunk: int) -> list[list[float]]:
    """First and last token of each request, every step taken by itself."""
    now, new, times = 0.0, list(range(len(asked))), [[math.nan, math.nan] for _ in asked]
    prompts: dict[int, int] = {}  # tokens computed so far, in order of arrival
    running: dict[int, int] = {}  # tokens said so far
    while new or prompts or running:
        while new and asked[new[0]][0] <= now and len(prompts) + len(running) < places:
            prompts[new.pop(0)] = 0
        if not prompts and not running:
            now = asked[new[0]][0]
            continue
        batch = len(running)
        context = sum(asked[i][1] + said for i, said in running.items()) / batch if batch else 0
        room, attention, taken = max(1, chunk - batch), 0.0, 0
        for i in list(prompts):
            part = min(asked[i][1] - prompts[i], room - taken)
            if part:
                attention += STEP.attention(prompts[i] + part, prompts[i])
            prompts[i], taken = prompts[i] + part, taken + part
        sequence = STEP.sequence(context) if batch else 0.0
        if taken:
            now += sum(STEP.decode_and_prompt(batch, sequence, taken, taken)) + attention
        else:
            now += STEP.decode(batch, sequence)
        running = {i: said + 1 for i, said in running.items()}
        for i in [i for i, done in prompts.items() if done == asked[i][1]]:
            del prompts[i]
            times[i][0], running[i] = now, 1
        for i in [i for i, said in running.items() if said == asked[i][2]]:
            del running[i]
            times[i][1] = now
    return times


@pytest.mark.parametrize("rate", [4.0, 60.0], ids=["quiet", "crowded"])
@pytest.mark.parametrize(("places", "chunk"), [(256, 2048), (3, 512)], ids=["roomy", "tight"])
def test_every_step_taken_by_itself_ends_alike(rate: float, places: int, chunk: int):
    asked = drawn(120, rate)
    server = Server(ServerSpec(STEP, 0.0, places, chunk, ROOMY), lambda job: None)
    jobs = [Job(*one) for one in asked]
    for job in jobs:
        server.offer(job)
    server.advance(math.inf)
    for job, (first, last) in zip(jobs, step_by_step(asked, places, chunk), strict=True):
        assert job.first == pytest.approx(first, rel=1e-9)
        assert job.end == pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize(("places", "chunk"), [(64, 8192), (2, 8192), (64, 1024)])
def test_prompts_of_an_embedding_model_end_as_one_by_one(places: int, chunk: int):
    asked = drawn(200, 40.0)
    now, left, late = 0.0, [(at, prompt) for at, prompt, _ in asked], []
    while left:
        now = max(now, left[0][0])
        batch = [left.pop(0)]
        while left and left[0][0] < now and len(batch) < places:
            if sum(prompt for _, prompt in batch) + left[0][1] > chunk:
                break
            batch.append(left.pop(0))
        tokens = sum(prompt for _, prompt in batch)
        now += STEP.prefill_batch(tokens, tokens / len(batch))
        late += [now - at for at, _ in batch]
    spec = ServerSpec(STEP, 0.0, places, chunk, ROOMY, decodes=False)
    found = replay_deployment(
        "d", [Served("d/0", spec, 1.0)], [columns(asked)], Slo(percentile=90), Routing.ROUND_ROBIN
    )
    assert found.ttft.mean_ms == pytest.approx(1e3 * math.fsum(late) / len(late), rel=1e-9)
    assert found.ttft.slo_ms == pytest.approx(1e3 * sorted(late)[179], rel=1e-9)
    assert found.requests == len(late) == 200


def columns(asked: list[tuple[float, int, int]]) -> Arrivals:
    from optimizer.domain.trace import Request

    return Arrivals.of([Request(at, prompt, output) for at, prompt, output in asked])
