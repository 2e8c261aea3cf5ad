"""Measured points against predictions: one factor for decoding steps, one for prompts.

For each engine, GPU and model the factors are those for which the median of measured over
predicted is one, TPOT (or throughput) first, then TTFT. Medians, because one bad run should not
count; factors, because most of a prediction's error is the same for all of its points.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.domain.engine import Correction, EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.sizing.single import SizeOptions, size_model

_SMALLEST, _LARGEST = 0.2, 5.0
_HALVINGS = 16
_ROUNDS = 2  # prompts take part of the time between tokens, and steps part of TTFT
Cards = Mapping[str, EngineCard]


@dataclass(frozen=True, slots=True)
class Point:
    """One measured point: how it ran, and what was measured. ``place``: where it is written."""

    place: str
    model: ServedModel
    gpu: Gpu
    options: SizeOptions
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    output_tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A correction, and the errors in percent (p90) before it and of points left out in turn."""

    correction: Correction
    before_percent: float
    error_percent: float


def calibrate(
    points: Sequence[Point], engines: Cards
) -> tuple[list[Calibrated], list[tuple[str, str]]]:
    """A correction for each engine, GPU and model; and points that say nothing, with the reason."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    useless: list[tuple[str, str]] = []
    for point in points:
        reason = _useless(point, engines)
        if reason is not None:
            useless.append((point.place, reason))
            continue
        key = (str(point.options.engine), point.gpu.name, point.model.name)
        groups.setdefault(key, []).append(point)
    return [_calibrated(key, group, engines) for key, group in sorted(groups.items())], useless


def _useless(point: Point, engines: Cards) -> str | None:
    if not any((point.tpot_ms, point.ttft_ms, point.output_tokens_per_second)):
        return "neither TPOT, TTFT nor throughput"
    found = size_model(point.model, {point.gpu.name: point.gpu}, engines, point.options)
    return found.refused[0].refusal if found.refused else None


def _calibrated(key: tuple[str, str, str], points: Sequence[Point], engines: Cards) -> Calibrated:
    correction = Correction(*key, step=1.0, prompt=1.0, points=len(points))
    before = _errors(points, engines, correction)
    for _ in range(_ROUNDS):
        correction = _fitted(points, engines, correction, "step", _decoding)
        correction = _fitted(points, engines, correction, "prompt", _first)
    decoding = _decoding(points, engines, correction)
    first = _first(points, engines, correction)
    return Calibrated(correction, _p90(before), _p90(_left_out(decoding) + _left_out(first)))


def _fitted(
    points: Sequence[Point],
    engines: Cards,
    correction: Correction,
    field: str,
    ratios: Callable[[Sequence[Point], Cards, Correction], list[float]],
) -> Correction:
    """The factor for which the median of measured over predicted is one; 1 where none is known."""
    if not ratios(points, engines, correction):
        return correction
    low, high = _SMALLEST, _LARGEST
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        tried = replace(correction, **{field: middle})
        if statistics.median(ratios(points, engines, tried)) > 1:
            low = middle
        else:
            high = middle
    return replace(correction, **{field: round((low * high) ** 0.5, 4)})


def _decoding(points: Sequence[Point], engines: Cards, by: Correction) -> list[float]:
    """Measured over predicted time between tokens; of points with throughput only, of that."""
    found = []
    for point in points:
        tpot, _, speed = _predicted(point, engines, by)
        if point.tpot_ms and tpot:
            found.append(point.tpot_ms / tpot)
        elif point.output_tokens_per_second and speed:
            found.append(speed / point.output_tokens_per_second)
    return found


def _first(points: Sequence[Point], engines: Cards, by: Correction) -> list[float]:
    """Measured over predicted TTFT."""
    told = [(p.ttft_ms, _predicted(p, engines, by)[1]) for p in points if p.ttft_ms]
    return [measured / ttft for measured, ttft in told if measured and ttft]


def _predicted(
    point: Point, engines: Cards, by: Correction
) -> tuple[float | None, float | None, float | None]:
    """TPOT, TTFT and output tokens per second under a correction."""
    name = str(point.options.engine)
    cards = {name: replace(engines[name], corrections=(by,))}
    found = size_model(point.model, {point.gpu.name: point.gpu}, cards, point.options)
    if not found.candidates or found.candidates[0].performance is None:
        return None, None, None
    told = found.candidates[0].performance
    return told.tpot_ms, told.ttft_ms, told.outlook.output_tokens_per_second


def _errors(points: Sequence[Point], engines: Cards, by: Correction) -> list[float]:
    ratios = _decoding(points, engines, by) + _first(points, engines, by)
    return [abs(1 / r - 1) * 100 for r in ratios]


def _left_out(ratios: Sequence[float]) -> list[float]:
    """The error of each point when the others alone set the factor."""
    if len(ratios) < 2:
        return []
    found = []
    for index, ratio in enumerate(ratios):
        others = [*ratios[:index], *ratios[index + 1 :]]
        found.append(abs(statistics.median(others) / ratio - 1) * 100)
    return found


def _p90(errors: Sequence[float]) -> float:
    """0 where a single point says nothing of its own error."""
    ordered = sorted(errors)
    return round(ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)], 1) if ordered else 0.0


_FIRST_NAMES = {
    "precision": ("precision", "weights"),
    "kv_precision": ("kv_precision", "kv"),
    "tensor_parallel": ("tensor_parallel", "tp"),
    "pipeline_parallel": ("pipeline_parallel", "pp"),
    "input_tokens": ("input_tokens", "isl"),
    "output_tokens": ("output_tokens", "osl"),
    "output_tokens_per_second": ("output_tokens_per_second", "out_tok_s"),
}


def point_of(
    place: str,
    row: Mapping[str, str],
    model: ServedModel,
    packed: str | None,
    gpu: Gpu,
    engine: str,
) -> Point:
    """A row of measurements: columns as ``size`` names them, or in the benchmarks' short names.

    The load is ``concurrency``, ``request_rate`` or, without either, offline; ``load_kind``
    ``static_batch`` makes concurrency a batch. Raises ValueError for what is not a number.
    """

    def text(name: str) -> str | None:
        names = _FIRST_NAMES.get(name, (name,))
        return next((row[n].strip() for n in names if (row.get(n) or "").strip()), None)

    def number(name: str) -> float | None:
        said = text(name)
        return float(said) if said else None

    replicas = int(number("replicas") or 1)
    prompt, output = round(number("input_tokens") or 0), round(number("output_tokens") or 1)
    users, rate, speed = (
        number("concurrency"),
        number("request_rate"),
        number("output_tokens_per_second"),
    )
    static = text("load_kind") == "static_batch"
    kv = text("kv_precision")
    options = SizeOptions(
        gpu=gpu.name,
        mig_profile=(text("mig_profile") or "").split(" ")[0] or None,
        precision=text("precision") or packed,
        kv_precision={"auto": None, "fp16": "bf16"}.get(kv or "auto", kv),
        engine=engine,
        engine_version=text("engine_version"),
        tensor_parallel=int(number("tensor_parallel") or 1),
        pipeline_parallel=int(number("pipeline_parallel") or 1),
        max_model_len=round(number("max_model_len") or prompt + output),
        input_tokens=prompt,
        output_tokens=output,
        batch=round(users) if users and static else None,
        concurrency=max(1, round(users / replicas)) if users and not static else None,
        request_rate=rate / replicas if rate and not users else None,
        offline=not users and not rate,
    )
    return Point(
        place,
        model,
        gpu,
        options,
        number("tpot_ms"),
        number("ttft_ms"),
        speed / replicas if speed else None,
    )
