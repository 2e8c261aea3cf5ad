"""Scores the memory model on published engine starts: medians, 90th percentiles, every row.

Run ``scripts/bench/memory``: rows with an error above the bar and its cause; ``--rows`` lists every
row with its errors (in brackets where flags leave it out of the sums) and its flags. The data and
what its columns and flags mean: ``data/engine_memory_logs.md``.
"""

import csv
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optimizer.documents import Catalogue, catalogue
from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.sizing.memory import MemoryBudget, Settings, memory_budget
from optimizer.sizing.precision import known

LOGS = Path(__file__).parent / "data" / "engine_memory_logs.csv"
GIB = 1 << 30
Row = dict[str, str]

NOT_WEIGHTS = {
    "arch_unknown",
    "cpu_offload",
    "engine_bug",
    "exotic_kv",
    "loader_temporaries",
    "quant_scope_unknown",
    "tp_unknown",
}
NOT_KV = {
    "arch_unknown",
    "context_parallel",
    "engine_bug",
    "exotic_kv",
    "kv_fixed_by_run",
    "per_rank_mismatch",
    "tp_unknown",
}
# Rows whose version nobody printed: the middle of their generation; SGLang's are of mid 2026.
UNSAID_VERSION = {"V0": "0.6.0", "V1": "0.15.0", "sglang": "0.5.10", "tensorrt-llm": "0.13.0"}
PRECISIONS = (
    ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
    ("w8a8", "int8"),
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bnb", "bnb-nf4"),
    ("bitsandbytes", "bnb-nf4"),
    ("int4", "int4"),
    ("awq", "int4"),
    ("gptq", "int4"),
)
BARS = {
    "weights": (0.5, 3.0),
    "kv_tokens": (0.05, 0.2),
    "activation": (2.0, 10.0),
    "kv": (1.0, 3.0),
}
# Devices by the data's names: the datasheet, else architecture and CUDA's total in GiB.
SHEETS = {
    "A10": "a10",
    "A100": "a100-80gb-sxm",
    "A100-80GB": "a100-80gb-sxm",
    "A100-SXM4-40GB": "a100-40gb-sxm",
    "A100-SXM4-80GB": "a100-80gb-sxm",
    "A800-80GB": "a100-80gb-sxm",
    "B200": "b200-180gb-sxm",
    "GH200-96GB": "gh200-96gb",
    "H100": "h100-80gb-sxm",
    "H100-80GB": "h100-80gb-sxm",
    "H200": "h200-141gb-sxm",
    "L4": "l4",
    "L40S": "l40s",
    "T4": "t4",
}
OTHERS = {
    "RTX-3090": ("ampere", 23.6),
    "RTX-4090": ("ada", 23.6),
    "RTX-5090": ("blackwell", 31.4),
    "RTX-6000-Ada": ("ada", 47.4),
    "GB10": ("blackwell", 119.7),
}

# Why a row lies above its bar, told by what the row itself says.
CAUSES = (
    (lambda r: number(r, "activation_peak_gib") == 2.12, "sampler not told by the version"),
    (lambda r: "context_parallel" in r["flags"], "tokens divided over ranks by context parallel"),
    (lambda r: "loader_temporaries" in r["flags"], "the figure holds loader temporaries"),
    (lambda r: "cpu_offload" in r["flags"], "part of the weights is in host memory"),
    (lambda r: "quant_scope_unknown" in r["flags"], "which tensors are packed is unknown"),
    (lambda r: "lora" in r["flags"], "adapters of unknown rank and number"),
    (lambda r: "self_inconsistent" in r["flags"], "the log's own terms do not add up"),
    (lambda r: "spec_decode" in r["flags"], "draft layers that the log does not size"),
    (
        lambda r: r["engine_generation"] == "V0" and int(r["tensor_parallel"] or 1) > 1,
        "the GiB are of a rank that does not sample, the blocks the least of all ranks",
    ),
    (lambda r: "online FP8" in r["notes"], "FP8 at load packed the vision tower too"),
    (lambda r: "Qwen3-VL" in r["model"], "text only: the vision tower was not loaded"),
    (lambda r: "multimodal" in r["flags"], "vision tower: size recalled, packed or not unknown"),
    (lambda r: "unified_memory" in r["flags"], "unified memory"),
    (lambda r: (number(r, "kv_cache_gib") or 9) < 2, "rounding of a small figure"),
    (lambda r: (number(r, "activation_peak_gib") or 9) < 0.3, "rounding of a small figure"),
)


@dataclass
class Score:
    """Errors in percent of one log row by quantity, and what was left out of the sums."""

    row: Row
    errors: dict[str, float] = field(default_factory=dict)
    flagged: dict[str, float] = field(default_factory=dict)  # computed, but flagged: not counted
    fits: bool | None = None


def number(row: Row, name: str) -> float | None:
    return float(row[name]) if row[name] else None


def count(row: Row, name: str) -> int | None:
    return int(float(row[name])) if row[name] else None


def precision(row: Row, model: ServedModel, repack: str | None) -> str:
    said = row["quantization"].lower()
    for word, name in PRECISIONS:
        if word in said:
            return name
    return repack or (model.checkpoint_precision if not said else "bf16")


def gpu_of(row: Row, cards: Catalogue) -> Gpu:
    """The device by its datasheet; where the log printed CUDA's total, that total."""
    name = row["gpu"]
    gib = number(row, "gpu_mem_total_gib")
    gpu = cards.gpu(SHEETS.get(name, ""))
    if gpu is None:
        architecture, usual = OTHERS.get(name, ("hopper" if (gib or 0) > 70 else "ada", None))
        gib = gib or usual or number(row, "gpu_mem_nominal_gb") or 80.0
        gpu = Gpu(name, "NVIDIA", architecture, "", gib, 1000)
    return gpu if gib is None else replace(gpu, memory_mib_usable=int(gib * 1024))


def settings_of(row: Row, chosen: str) -> Settings:
    pools = re.search(r"SWA (\d+) tokens.*?full (\d+) tokens", row["notes"])
    return Settings(
        precision=chosen if known(chosen) else "bf16",
        kv_precision="fp8" if "fp8" in row["kv_cache_dtype"] else "bf16",
        tp=count(row, "tensor_parallel") or 1,
        pp=count(row, "pipeline_parallel") or 1,
        max_model_len=count(row, "max_model_len") or 4096,
        max_num_seqs=count(row, "max_num_seqs"),
        max_num_batched_tokens=count(row, "max_num_batched_tokens"),
        fraction=number(row, "gpu_memory_utilization"),
        eager=row["enforce_eager"] == "True",
        draft_layers=1 if "EAGLE" in row["notes"] else 0,
        window_ratio=round(int(pools[1]) / int(pools[2]), 3) if pools else None,
    )


def version_of(row: Row) -> str:
    unsaid = UNSAID_VERSION.get(row["engine_generation"] or row["engine"], "0.15.0")
    return row["engine_version"] or unsaid


def kv_tokens_error(row: Row, b: MemoryBudget) -> float | None:
    """Blocks (or tokens, or concurrency) from the measured KV GiB, against what was logged.

    What was logged as a whole number speaks first; hybrids through their concurrency, because
    versions word the number of tokens differently.
    """
    gib = number(row, "kv_cache_gib")
    if gib is None or gib <= 0:
        return None
    blocks = b.layout.blocks(gib * GIB)
    tokens, logged = number(row, "kv_cache_tokens"), number(row, "num_gpu_blocks")
    concurrency, length = number(row, "max_concurrency"), count(row, "max_concurrency_tokens")
    pooled = len(b.layout.groups) > 1 and not b.layout.separate
    if logged and not pooled:
        return (blocks / logged - 1) * 100
    if concurrency and length and (tokens is None or pooled):
        per_request = b.layout.blocks_per_request(length, b.max_num_batched_tokens)
        return (blocks / per_request / concurrency - 1) * 100
    if not tokens:
        return None if logged is None else (blocks / logged - 1) * 100
    groups = 1 if b.layout.separate else sum(g.count for g in b.layout.groups)
    return (blocks // groups * b.layout.groups[0].block_tokens / tokens - 1) * 100


def score(row: Row, cards: Catalogue, engines: dict[str, EngineCard]) -> Score | None:
    """None where the catalogue has no such model or engine."""
    found, card = cards.model(row["model"]), engines.get(row["engine"])
    if found is None or card is None:
        return None
    model, repack = found
    settings = settings_of(row, precision(row, model, repack))
    b = memory_budget(model, card, gpu_of(row, cards), settings, version=version_of(row))
    # What a device with unified memory has to give depends on the host.
    told_total = bool(row["gpu_mem_total_gib"] or row["gpu"]) and row["gpu"] != "GB10"
    result = Score(row, fits=b.fits if told_total else None)

    def note(name: str, predicted: float, logged: float, *exclude: set[str]) -> None:
        flags = set(row["flags"].split())
        errors = result.flagged if any(flags & s for s in exclude) else result.errors
        errors[name] = (predicted / logged - 1) * 100

    vllm1 = row["engine"] == "vllm" and row["engine_generation"] == "V1"
    if weights := number(row, "weights_gib_per_gpu"):
        note("weights", b.weights.total / GIB, weights, NOT_WEIGHTS)
    if (peak := number(row, "activation_peak_gib")) and vllm1:
        note("activation", b.activation_mib / 1024, peak, NOT_WEIGHTS)
    if (error := kv_tokens_error(row, b)) is not None:
        note("kv_tokens", 1 + error / 100, 1, NOT_KV)
    kv = number(row, "kv_cache_gib")
    configured = row["gpu_mem_total_gib"] and row["gpu_memory_utilization"]
    if vllm1 and kv and kv > 0 and configured:
        note("kv", b.kv_cache_mib / 1024, kv, NOT_WEIGHTS, NOT_KV, {"self_inconsistent"})
    return result


def percentiles(scores: Sequence[Score], name: str) -> tuple[int, float, float, float] | None:
    """How many rows, and the median, 90th percentile and worst of their absolute errors."""
    errors = sorted(abs(s.errors[name]) for s in scores if name in s.errors)
    if not errors:
        return None
    p90 = errors[min(len(errors) - 1, len(errors) * 9 // 10)]
    return len(errors), statistics.median(errors), p90, errors[-1]


def summary(scores: Sequence[Score]) -> Iterator[str]:
    for name, (median_bar, p90_bar) in BARS.items():
        found = percentiles(scores, name)
        if found is None:
            continue
        n, median, p90, worst = found
        met = "met" if median <= median_bar and p90 <= p90_bar else "MISSED"
        yield (
            f"{name:11} n {n:3}  median {median:6.2f} %  p90 {p90:6.2f} %  "
            f"worst {worst:7.2f} %  bar {median_bar:g} / {p90_bar:g}: {met}"
        )


def refused(scores: Sequence[Score]) -> tuple[list[str], list[str]]:
    """Rows that the engine refused for memory, and those of them that the model says fit."""
    rows = [s for s in scores if "infeasible" in s.row["flags"].split() and s.fits is not None]
    return [s.row["id"] for s in rows], [s.row["id"] for s in rows if s.fits]


def started(scores: Sequence[Score]) -> tuple[int, int, list[str]]:
    """Rows that started on a device of printed memory, how many fit, and which are denied."""
    failed, _ = refused(scores)
    rows = [
        s
        for s in scores
        if s.row["gpu_mem_total_gib"]
        and (number(s.row, "kv_cache_gib") or 0) > 0
        and s.row["id"] not in failed
        and not set(s.row["flags"].split()) & (NOT_WEIGHTS | NOT_KV)
    ]
    denied = [s.row["id"] for s in rows if not s.fits]
    return len(rows), len(rows) - len(denied), denied


def starts(scores: Sequence[Score]) -> Iterator[str]:
    """Where the log says that the engine did or did not start, does the model agree."""
    failed, optimistic = refused(scores)
    yield f"refused for memory: {len(failed)} {failed}, said to fit: {optimistic or 'none'}"
    unknown = [
        s.row["id"] for s in scores if "infeasible" in s.row["flags"].split() and s.fits is None
    ]
    yield f"refused, but on a device of unknown memory: {unknown or 'none'}"
    count, _, denied = started(scores)
    yield f"started: {count}, said not to fit: {denied or 'none'}"


def cause(s: Score) -> str:
    """Why an error is above the 90th percentile allowed."""
    worst = [n for n, e in {**s.errors, **s.flagged}.items() if abs(e) > BARS[n][1]]
    if not worst:
        return ""
    told = next((why for test, why in CAUSES if test(s.row)), "unexplained")
    return f"  <- {', '.join(worst)}: {told}"


def line(s: Score) -> str:
    row = s.row
    errors = [f"{name} {error:+.2f} %" for name, error in s.errors.items()]
    errors += [f"({name} {error:+.2f} %)" for name, error in s.flagged.items()]
    told = f"{row['id']} {row['engine']} {row['engine_version']} {row['model']} {row['gpu']}"
    return f"{told}: {'  '.join(errors) or 'nothing to score'}  [{row['flags']}]{cause(s)}"


def scored() -> tuple[list[Score], list[Row]]:
    """Every row scored, and the rows whose model or engine has no card."""
    cards = catalogue()
    engines = {card.name: card for card in cards.engine_cards()}
    with LOGS.open(encoding="utf-8", newline="") as file:
        found = [(row, score(row, cards, engines)) for row in csv.DictReader(file)]
    return [s for _, s in found if s is not None], [row for row, s in found if s is None]


def main() -> int:
    scores, missing = scored()
    shown = scores if "--rows" in sys.argv else [s for s in scores if cause(s)]
    print(*map(line, shown), sep="\n")
    print(*summary(scores), *starts(scores), sep="\n")
    unknown = sorted({row["model"] for row in missing})
    print(f"{len(missing)} of {len(scores) + len(missing)} rows have no card: {unknown}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
