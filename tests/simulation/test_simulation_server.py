"""One simulated replica against the step model, the closed form, and its own limits."""

import itertools
import math
import statistics
from dataclasses import replace

import pytest
from simulation_examples import H100, LLAMA_8B, vllm

from optimizer.domain.trace import Request, Trace, Window
from optimizer.domain.workload import Demand, Slo
from optimizer.simulation import (
    Job,
    Routing,
    Served,
    Server,
    ServerSpec,
    fitted,
    one_by_one,
    replay_deployment,
    synthetic,
)
from optimizer.sizing.compatibility import runs
from optimizer.sizing.performance import Device, StepModel, step_model

FRONT_S = 0.041
ROOMY = 1e9


def step(device: Device | None = None) -> StepModel:
    card = vllm()
    device = device or Device(H100, 3350)
    how = runs(card, card.default_version, H100, LLAMA_8B, "bf16", "bf16")
    found = step_model(LLAMA_8B, card, card.default_version, device, how, "bf16")
    assert found is not None
    return found


STEP = step()


def spec(**changes) -> ServerSpec:
    return replace(ServerSpec(STEP, FRONT_S, 256, 8192, ROOMY), **changes)


def served(*jobs: Job, by: ServerSpec | None = None) -> Server:
    server = Server(by or spec(), lambda job: None)
    for job in jobs:
        server.offer(job)
    server.advance(math.inf)
    return server


def test_one_request_alone_takes_its_steps():
    job = Job(1.0, 1000, 101)
    served(job)
    first = STEP.decode_and_prompt(0, 0.0, 1000, 1000)
    prompt = sum(first) + STEP.attention(1000)
    assert job.first - job.at == pytest.approx(prompt)
    decoding = sum(STEP.decode(1, STEP.sequence(1001 + i)) for i in range(100))
    assert job.end - job.first == pytest.approx(decoding, rel=1e-6)


def test_every_request_ends_and_none_twice():
    ended = []
    server = Server(spec(max_num_seqs=4), ended.append)
    jobs = [Job(0.05 * i, 500, 1 + i % 40) for i in range(200)]
    for job in jobs:
        server.offer(job)
    server.advance(math.inf)
    assert sorted(map(id, ended)) == sorted(map(id, jobs))
    assert server.outstanding == 0
    assert all(job.first >= job.at and job.end >= job.first for job in jobs)


@pytest.mark.parametrize(
    ("kv_tokens", "preempted"), [(10_000, False), (2_000, True)], ids=["room", "too little"]
)
def test_a_full_cache_preempts_the_youngest(kv_tokens: float, preempted: bool):
    jobs = [Job(0.0, 400, 400), Job(0.01, 400, 400), Job(0.02, 400, 400)]
    server = served(*jobs, by=spec(kv_tokens=kv_tokens))
    assert (server.preemptions > 0) is preempted
    assert not any(job.failed for job in jobs)
    assert jobs[0].preempted == 0
    assert server.kv_peak <= kv_tokens


def test_a_cache_that_reserves_outputs_never_preempts():
    jobs = [Job(0.0, 400, 400) for _ in range(3)]
    server = served(*jobs, by=spec(kv_tokens=2_000, reserves=True))
    assert server.preemptions == 0
    assert jobs[2].first > jobs[0].end  # the third waits for a place


def test_a_request_longer_than_the_cache_fails():
    long, short = Job(0.0, 3_000, 10), Job(0.0, 100, 10)
    served(long, short, by=spec(kv_tokens=2_000))
    assert long.failed
    assert not short.failed


def test_whole_batches_wait_for_their_longest():
    alone, long, short = Job(0.0, 100, 10), Job(0.001, 100, 300), Job(0.001, 100, 10)
    served(alone, long, short, by=spec(in_flight=False))
    assert long.first > alone.end
    assert short.end == long.end > alone.end


def test_least_loaded_beats_taking_turns():
    demand = Demand(45_000, 900, 220, length_cv=1.5)
    replicas = [Served(f"d/{i}", spec(), 1.0) for i in range(3)]
    late = {}
    for routing in Routing:
        traffic = synthetic(demand, 60, 3)
        found = replay_deployment("d", replicas, traffic, Slo(800, 50), routing)
        late[routing] = found.tpot.p99_ms
        assert found.requests == sum(map(len, synthetic(demand, 60, 3)))
    assert late[Routing.LEAST_LOADED] <= late[Routing.ROUND_ROBIN]


@pytest.mark.parametrize(("tpot_ms", "meets"), [(50.0, True), (1.0, False)])
def test_attainment_is_held_against_the_percentile(tpot_ms: float, meets: bool):
    traffic = synthetic(Demand(5_000, 500, 100), 60, 1)
    found = replay_deployment("d", [Served("d/0", spec(), 1.0)], traffic, Slo(None, tpot_ms))
    assert found.meets is meets
    assert found.tpot.attained == (1.0 if meets else 0.0)


def test_drawn_arrivals_have_the_demand_s_statistics():
    demand = Demand(20_000, 900, 200, arrival_cv=2.0, peak_factor_ppm=1_500_000, length_cv=0.8)
    found = list(one_by_one(synthetic(demand, 3000, 5)))
    assert len(found) / 3000 == pytest.approx(30, rel=0.03)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(found)]
    assert statistics.pstdev(gaps) / statistics.mean(gaps) == pytest.approx(2.0, rel=0.05)
    assert statistics.mean(r.input_tokens for r in found) == pytest.approx(900, rel=0.03)


@pytest.mark.parametrize("times", [0.3, 1.0, 7.5])
def test_a_trace_is_fitted_to_the_demand(times: float):
    requests = tuple(Request(i * 0.5, 100 + 40 * (i % 7), 10 + i % 30) for i in range(2000))
    trace = Trace("t", requests, 1000)
    demand = Demand(round(2000 * times), 700, 90)
    found = list(one_by_one(fitted(trace, demand, 2000, 1)))
    assert len(found) / 2000 == pytest.approx(2 * times, rel=0.06)
    assert [r.at_s for r in found] == sorted(r.at_s for r in found)
    assert {r.input_tokens for r in found} == {700}  # the demand's lengths do not vary
    varied = list(one_by_one(fitted(trace, demand, 500, 1, lengths_vary_as="trace")))
    assert len({r.input_tokens for r in varied}) == 7
    assert all(
        r.input_tokens + r.output_tokens <= 600
        for r in one_by_one(fitted(trace, demand, 500, 1, 600))
    )


def test_windows_keep_their_shares():
    windows = (Window(0, 10, 1, 100, 10), Window(100, 30, 1, 100, 10))
    drawn = fitted(Trace("t", (), 200, windows=windows), Demand(5_000, 50, 5), 200, 1)
    found = list(one_by_one(drawn))
    second = sum(r.at_s >= 100 for r in found)
    assert len(found) / 200 == pytest.approx(5, rel=0.15)
    assert second / len(found) == pytest.approx(0.75, abs=0.06)
