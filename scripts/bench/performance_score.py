"""Scores the performance model on published measurements, beside the textbook roofline.

Run ``scripts/bench/performance``; ``--rows`` lists every row. Each row is asked as a user asks it:
``fleetslice size MODEL --gpu ... --engine ...@... --precision ... --concurrency ...``. The data and
what its columns mean: ``data/throughput_measurements.md``.
"""

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import performance_queues

from optimizer.documents import Catalogue, catalogue
from optimizer.domain.engine import EngineCard, version_key
from optimizer.domain.model import ServedModel
from optimizer.sizing.single import SizeEntry, SizeOptions, size_model

DATA = Path(__file__).parent / "data" / "throughput_measurements.csv"
Row = dict[str, str]

# Medians and 90th percentiles of the absolute error, in percent, that rows of quality A and B keep.
BARS = {
    "tpot dense": (10, 24),
    "tpot moe": (15, 45),
    "offline dense": (8, 25),
    "ttft": (28, 62),
}
GPUS = {
    "A100-PCIe-80GB": "a100-80gb-pcie",
    "A100-SXM-40GB": "a100-40gb-sxm",
    "A100-SXM-80GB": "a100-80gb-sxm",
    "B200-SXM": "b200-180gb-sxm",
    "GB200": "gb200-186gb",
    "GH200-96GB": "gh200-96gb",
    "H100-NVL-94GB": "h100-94gb-nvl",
    "H100-SXM": "h100-80gb-sxm",
    "H200-NVL-141GB": "h200-141gb-nvl",
    "H200-SXM": "h200-141gb-sxm",
    "L40S": "l40s",
    "RTX-PRO-6000-SE": "rtx-pro-6000-blackwell-server",
}
ENGINES = {"TensorRT-LLM": "tensorrt-llm", "vLLM": "vllm", "vLLM (modified)": "vllm"}
# The release of the day where a row does not say its version.
VERSIONS = {
    "MLPerf Inference v4.1": {"tensorrt-llm": "0.11.0", "vllm": "0.5.4"},
    "MLPerf Inference v5.1": {"tensorrt-llm": "1.0.0", "vllm": "0.10.0"},
    "LLM-Inference-Bench": {"tensorrt-llm": "0.9.0", "vllm": "0.4.2"},
    "Splitwise": {"vllm": "0.2.0"},
    "InferenceX": {"tensorrt-llm": "1.0.0", "vllm": "0.11.0"},
    "TensorRT-LLM perf-overview v1.x": {"tensorrt-llm": "1.2.0"},
}
# MLPerf's logs do not hold prompt lengths: the means of its published data sets.
MLPERF_PROMPTS = {"OpenOrca,": 260, "OpenOrca+GSM8K+MBXP": 150, "long-context": 9400}
LENGTH_OF_INFERENCEX = 0.9  # it draws lengths uniformly between 0.8 and 1.0 of the nominal ones


@dataclass(frozen=True, slots=True)
class Score:
    """One row, and how far each predicted quantity lies off, in percent."""

    row: Row
    group: str  # dense | moe
    errors: tuple[tuple[str, float], ...] = ()
    refusal: str | None = None

    @property
    def kind(self) -> str:
        """The row's kind of load; MLPerf apart, since its prompt lengths are assumed."""
        if self.row["source"].startswith("MLPerf"):
            return "mlperf"
        kinds = {"offline_max": "offline", "static_batch": "static"}
        return kinds.get(self.row["load_kind"], "load")


def number(row: Row, name: str) -> float | None:
    return float(row[name]) if row[name] else None


def version_of(row: Row, engine: str) -> str:
    """The version printed, else the release of the source's day."""
    try:
        version_key(row["engine_version"])
    except ValueError:
        pass
    else:
        if row["engine_version"] != "2023" and not row["engine_version"].startswith(
            ("2024", "1.x")
        ):
            return row["engine_version"]
    return next(v[engine] for source, v in VERSIONS.items() if row["source"].startswith(source))


def lengths(row: Row) -> tuple[int, int]:
    """Mean prompt and output tokens."""
    part = LENGTH_OF_INFERENCEX if row["source"].startswith("InferenceX") else 1.0
    prompt = number(row, "isl")
    if prompt is None:
        prompt = next((n for word, n in MLPERF_PROMPTS.items() if word in row["notes"]), None)
    if prompt is None:
        raise LookupError("nobody says how long the prompts are")
    return round(prompt * part), max(1, round(float(row["osl"]) * part))


def options_of(row: Row, model: ServedModel) -> SizeOptions:
    """The flags of ``fleetslice size`` that ask for this row. Raises LookupError where none do."""
    if not row["tp"] or not row["weights"]:
        raise LookupError("the row does not say its parallel sizes or precision")
    engine = ENGINES.get(row["engine"], row["engine"].lower())
    if engine == "cuda 12.2":
        engine = "tensorrt-llm"
    prompt, output = lengths(row)
    replicas = int(row["replicas"] or 1)
    nominal = max(prompt + output, int(float(row["isl"] or prompt) + float(row["osl"])))
    options = SizeOptions(
        gpu=GPUS[row["gpu"]],
        precision=row["weights"],
        kv_precision={"fp8": "fp8", "fp16": "bf16"}.get(row["kv"]),
        engine=engine,
        engine_version=version_of(row, engine),
        tensor_parallel=int(row["tp"]),
        pipeline_parallel=int(row["pp"] or 1),
        max_model_len=min(nominal, model.max_position_embeddings or nominal),
        input_tokens=prompt,
        output_tokens=output,
    )
    users = number(row, "concurrency")
    match row["load_kind"]:
        case "offline_max":
            return replace(options, offline=True)
        case "static_batch":
            assert users is not None
            return replace(options, batch=int(users))
        case "closed_loop_concurrency":
            assert users is not None
            return replace(options, concurrency=max(1, int(users) // replicas))
        case _:
            rate = number(row, "request_rate")
            assert rate is not None
            return replace(options, request_rate=rate / replicas)


def measured(row: Row) -> Iterator[tuple[str, float]]:
    """The quantities of the row that its kind of load gives a meaning."""
    replicas = int(row["replicas"] or 1)
    out, tpot, ttft = number(row, "out_tok_s"), number(row, "tpot_ms"), number(row, "ttft_ms")
    if row["load_kind"] == "offline_max" and out:
        yield "offline", out / replicas
    elif row["load_kind"] == "static_batch":
        if e2e := number(row, "e2e_ms"):
            yield "static e2e", e2e
        elif tpot:
            yield "static tpot", tpot
    else:
        if tpot:
            yield "tpot", tpot
        if ttft:
            yield "ttft", ttft


def predicted(entry: SizeEntry, options: SizeOptions) -> Mapping[str, float]:
    """What ``size`` prints of those quantities."""
    assert entry.performance is not None
    outlook = entry.performance.outlook
    found = {
        "offline": outlook.output_tokens_per_second,
        "tpot": outlook.tpot_ms,
        "ttft": outlook.ttft_ms,
        "static tpot": outlook.tpot_ms,
    }
    if options.batch is not None:
        found["static e2e"] = options.batch / outlook.rate * 1e3
        if options.output_tokens == 1:
            found["static e2e"] = outlook.ttft_ms
    return found


def score(row: Row, cards: Catalogue, engines: Mapping[str, EngineCard]) -> Score:
    """The row's errors, or why it has none."""
    found = cards.model(row["model"])
    if found is None:
        return Score(row, "unknown", refusal="no card of that model")
    model, _ = found
    group = "moe" if model.moe is not None else "dense"
    try:
        options = options_of(row, model)
    except LookupError as reason:
        return Score(row, group, refusal=str(reason.args[0]))
    gpu = cards.gpu(GPUS[row["gpu"]])
    assert gpu is not None
    result = size_model(model, {gpu.name: gpu}, engines, options)
    if result.refused:
        return Score(row, group, refusal=result.refused[0].refusal)
    told = predicted(result.candidates[0], options)
    errors = [(name, (told[name] / value - 1) * 100) for name, value in measured(row)]
    return Score(row, group, tuple(errors))


def textbook(card: EngineCard) -> EngineCard:
    """The roofline of textbooks: the larger of full bandwidth and full dense peak, nothing else."""
    sharp = 16.0  # (a^p + b^p)^(1/p): close to max(a, b)
    return replace(
        card,
        rates=replace(
            card.rates,
            sum_power=sharp,
            kv_bandwidth=1.0,
            prompt_attention=1.0,
            moe_gemm=1.0,
            fp4_gemm=1.0,
            nvlink_latency_us=0.0,
            pcie_latency_us=0.0,
            nvlink_efficiency=1.0,
            pcie_efficiency=1.0,
        ),
        efficiencies=tuple(replace(e, bandwidth=1.0, compute=1.0) for e in card.efficiencies),
        versions=tuple(
            replace(
                v,
                host=replace(
                    v.host, layer_us=0, moe_layer_us=0, step_us=0, sequence_us=0, front_end_ms=0
                ),
            )
            for v in card.versions
        ),
    )


def errors_by(
    scores: Sequence[Score], key: Callable[[Score, str], str | None]
) -> dict[str, list[tuple[Score, float]]]:
    """Signed errors gathered under the names that ``key`` gives a row and a quantity."""
    found = defaultdict(list)
    for s in scores:
        for quantity, error in s.errors:
            if (name := key(s, quantity)) is not None:
                found[name].append((s, error))
    return dict(sorted(found.items()))


def spread(errors: Sequence[float]) -> tuple[float, float]:
    """Median and 90th percentile of the absolute errors."""
    known = sorted(abs(e) for e in errors)
    return statistics.median(known), known[min(len(known) - 1, len(known) * 9 // 10)]


def barred(s: Score, quantity: str) -> str | None:
    """The group that a bar speaks of, and the others, so that nothing is hidden."""
    if s.kind == "mlperf":
        return f"{quantity} {s.group} (MLPerf, prompts assumed)"
    if quantity == "ttft":
        return "ttft"
    return f"{quantity} {s.group}"


def table(
    title: str, ours: Mapping[str, list[tuple[Score, float]]], theirs: Mapping[str, float]
) -> Iterator[str]:
    """One line a group: count, median and p90, signed median, roofline's median and p90."""
    yield title
    for name, found in ours.items():
        errors = [e for _, e in found]
        median, p90 = spread(errors)
        roof = [
            theirs[f"{s.row['row_id']} {_quantity(name)}"]
            for s, _ in found
            if f"{s.row['row_id']} {_quantity(name)}" in theirs
        ]
        textbook_said = "{:5.1f} / {:5.1f}".format(*spread(roof)) if roof else "refused"
        bar = ""
        if name in BARS:
            met = median <= BARS[name][0] and p90 <= BARS[name][1]
            bar = f"  bar {BARS[name][0]} / {BARS[name][1]}: {'met' if met else 'MISSED'}"
        yield (
            f"  {name:55} n {len(errors):4}  {median:5.1f} / {p90:5.1f} %  "
            f"bias {statistics.median(errors):+6.1f}  roofline {textbook_said}{bar}"
        )


def _quantity(name: str) -> str:
    return next(q for q in ("static e2e", "static tpot", "offline", "tpot", "ttft") if q in name)


def scored(qualities: str = "AB", *, roofline: bool = False) -> list[Score]:
    """Every row of those qualities."""
    cards = catalogue()
    engines = {card.name: card for card in cards.engine_cards()}
    if roofline:
        engines = {name: textbook(card) for name, card in engines.items()}
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["quality"] in qualities]
    return [score(row, cards, engines) for row in rows]


def report(scores: Sequence[Score], roof: Sequence[Score]) -> Iterator[str]:
    """The tables by group, then by engine, by GPU and by table of the data, and the refusals."""
    theirs = {f"{s.row['row_id']} {q}": e for s in roof for q, e in s.errors}
    yield from table("by group (median / p90 of |error|)", errors_by(scores, barred), theirs)
    for title, column in (("engine", "engine"), ("GPU", "gpu"), ("table", "table")):

        def key(s: Score, quantity: str, column: str = column) -> str:
            return f"{quantity} {s.group} {s.row[column]}"

        yield from table(f"by {title}", errors_by(scores, key), theirs)
    refusals: dict[str, int] = defaultdict(int)
    for s in scores:
        if s.refusal is not None:
            refusals[f"{s.row['table']}: {s.refusal}"] += 1
    yield f"{sum(refusals.values())} of {len(scores)} rows are refused"
    yield from (f"  {count:4} {reason}" for reason, count in sorted(refusals.items()))


def line(s: Score) -> str:
    row = s.row
    what = [f"{q} {e:+.1f} %" for q, e in s.errors]
    load = row["concurrency"] or row["request_rate"] or "offline"
    return (
        f"{row['row_id']} {row['table']} {row['weights']} tp{row['tp']} {row['isl']}/{row['osl']} "
        f"@{load}: {'  '.join(what) or s.refusal}"
    )


def main() -> int:
    scores = scored()
    if "--rows" in sys.argv:
        print(*map(line, scores), sep="\n")
    print(*report(scores, scored(roofline=True)), sep="\n")
    print(*performance_queues.report(list(performance_queues.compared())), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
