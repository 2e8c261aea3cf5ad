"""The closed form of a replica under traffic beside its simulation, state by state.

A seeded sample of a grid: GPU or slice, prompt and output lengths, burstiness of arrivals,
variation of lengths, part of the largest rate. ``scripts/bench/performance`` prints its line.
"""

import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optimizer.documents import catalogue
from optimizer.domain.workload import Demand, Slo
from optimizer.simulation import Served, ServerSpec, replay_deployment, synthetic
from optimizer.sizing.batching import Load, continuous
from optimizer.sizing.compatibility import runs
from optimizer.sizing.performance import Device, StepModel, step_model

FRONT_S, PLACES, CHUNK, ROOMY = 0.041, 256, 8192, 1e9
LENGTHS = ((400, 500), (900, 220), (1500, 100), (4000, 200))
ARRIVAL_CVS, LENGTH_CVS, LOADS = (1.0, 2.0, 3.0), (0.0, 0.5, 1.0), (0.3, 0.5, 0.7, 0.85)
PERCENTILES = (95.0, 99.0)
SEED, STATES, REQUESTS = 1, 120, 8000


@dataclass(frozen=True, slots=True)
class Compared:
    """Predicted over simulated in one state: means, and TTFT and TPOT at each percentile."""

    state: tuple[str, int, int, float, float, float]
    ttft: float
    tpot: float
    late: tuple[float, ...]
    slow: tuple[float, ...]


def steps() -> dict[str, StepModel]:
    """Llama 3.1 8B on a whole H100 and on a quarter of one, and Qwen3 30B A3B on a whole one."""
    cards = catalogue()
    card = next(c for c in cards.engine_cards() if c.name == "vllm")
    gpu = cards.gpu("h100-80gb-sxm")
    assert gpu is not None
    whole, slice_ = Device(gpu, 3350), Device(gpu, 3350 / 4, 26 / 132)
    found = {}
    for name, model_name, device in (
        ("whole", "llama-3.1-8b", whole),
        ("slice", "llama-3.1-8b", slice_),
        ("experts", "qwen3-30b-a3b", whole),
    ):
        model = cards.model(model_name)
        assert model is not None
        version = card.default_version
        how = runs(card, version, gpu, model[0], "bf16", "bf16")
        step = step_model(model[0], card, version, device, how, "bf16")
        assert step is not None
        found[name] = step
    return found


def compared(states: int = STATES, requests: int = REQUESTS) -> Iterator[Compared]:
    """So many states of the grid, each simulated over so many requests."""
    known = steps()
    grid = list(itertools.product(sorted(known), LENGTHS, ARRIVAL_CVS, LENGTH_CVS, LOADS))
    for name, (prompt, output), arrival_cv, length_cv, part in random.Random(SEED).sample(
        grid, states
    ):
        state = (name, prompt, output, arrival_cv, length_cv, part)
        yield _compared(known[name], state, requests)


def _compared(
    step: StepModel, state: tuple[str, int, int, float, float, float], requests: int
) -> Compared:
    _, prompt, output, arrival_cv, length_cv, part = state
    load = Load(prompt, output, arrival_cv=arrival_cv, length_cv=length_cv)
    most = continuous(step, load, PLACES, CHUNK, FRONT_S).largest(None, None)
    assert most is not None
    rate = round(most.rate * part * 1000)
    demand = Demand(rate, prompt, output, arrival_cv=arrival_cv, length_cv=length_cv)
    spec = ServerSpec(step, FRONT_S, PLACES, CHUNK, ROOMY)
    late, slow = [], []
    for percentile in PERCENTILES:
        serving = continuous(
            step,
            Load(prompt, output, arrival_cv, length_cv, percentile=percentile),
            PLACES,
            CHUNK,
            FRONT_S,
        )
        told = serving.at_rate(rate / 1000)
        assert told is not None
        traffic = synthetic(demand, requests * 1000 / rate, repr(state))
        seen = replay_deployment(
            "d", [Served("d/0", spec, 1.0)], traffic, Slo(percentile=percentile)
        )
        ttft, tpot = serving.ratios(told)
        late.append(told.ttft_ms * ttft / seen.ttft.slo_ms)
        slow.append(told.tpot_ms * tpot / seen.tpot.slo_ms)
    means = told.ttft_ms / seen.ttft.mean_ms, told.tpot_ms / seen.tpot.mean_ms
    return Compared(state, *means, tuple(late), tuple(slow))


def median_error(ratios: Sequence[float]) -> float:
    """In percent."""
    return 100 * statistics.median(abs(ratio - 1) for ratio in ratios)


def kept(ratios: Sequence[float]) -> float:
    """The part of states, in percent, in which the prediction is not below the simulation."""
    return 100 * sum(ratio >= 1 for ratio in ratios) / len(ratios)


def report(found: Sequence[Compared]) -> Iterator[str]:
    """What ``scripts/bench/performance`` prints."""
    yield f"closed form against simulation, {len(found)} states up to {LOADS[-1]:.0%} load"
    ttft, tpot = [c.ttft for c in found], [c.tpot for c in found]
    yield f"  mean, median error: TTFT {median_error(ttft):.1f} %, TPOT {median_error(tpot):.1f} %"
    for index, percentile in enumerate(PERCENTILES):
        late, slow = ([c.late[index] for c in found], [c.slow[index] for c in found])
        yield (
            f"  p{percentile:g} at or above the simulation: TTFT in {kept(late):.0f} % of states, "
            f"median x{statistics.median(late):.2f}; TPOT in {kept(slow):.0f} %, "
            f"median x{statistics.median(slow):.2f}"
        )
