"""Scores the memory model on published engine starts: medians, 90th percentiles, every row.

Run ``scripts/bench/memory``; ``--rows`` lists every row with its errors and its flags. The data
and what its columns and flags mean: ``data/engine_memory_logs.md``.
"""

import csv
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.documents import Catalogue, catalogue
from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.sizing.memory import MemoryBudget, Settings, memory_budget
from optimizer.sizing.precision import SCHEMES

LOGS = Path(__file__).parent / "data" / "engine_memory_logs.csv"
GIB = 1 << 30

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
# Rows whose version nobody printed: the middle of their generation.
UNSAID_VERSION = {"V0": "0.6.0", "V1": "0.15.0"}
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
ARCHITECTURES = (
    ("T4", "turing"),
    ("A10", "ampere"),
    ("A8", "ampere"),
    ("RTX-3", "ampere"),
    ("H", "hopper"),
    ("GH", "hopper"),
    ("B", "blackwell"),
    ("GB", "blackwell"),
    ("RTX-5", "blackwell"),
)


@dataclass
class Score:
    """Errors in percent of one log row by quantity, and what was left out of the sums."""

    row: dict[str, str]
    errors: dict[str, float] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    fits: bool | None = None


def number(row: dict[str, str], name: str) -> float | None:
    return float(row[name]) if row[name] else None


def count(row: dict[str, str], name: str) -> int | None:
    return int(float(row[name])) if row[name] else None


def precision(row: dict[str, str], model: ServedModel, repack: str | None) -> str:
    said = row["quantization"].lower()
    for word, name in PRECISIONS:
        if word in said:
            return name
    return repack or (model.checkpoint_precision if not said else "bf16")


def gpu_of(row: dict[str, str], cards: Catalogue) -> Gpu:
    """The device as the log described it; only its memory and generation matter here."""
    name = row["gpu"]
    architecture = next((a for start, a in ARCHITECTURES if name.startswith(start)), "ada")
    gib = number(row, "gpu_mem_total_gib") or number(row, "gpu_mem_nominal_gb") or 80.0
    return Gpu(name, "NVIDIA", architecture, "", gib, 1000, memory_mib_usable=int(gib * 1024))


def predicted(
    row: dict[str, str], model: ServedModel, card: EngineCard, version: str, chosen: str
) -> MemoryBudget:
    settings = Settings(
        precision=chosen if chosen in SCHEMES or chosen.startswith("gguf:") else "bf16",
        kv_precision="fp8" if "fp8" in row["kv_cache_dtype"] else "bf16",
        tp=count(row, "tensor_parallel") or 1,
        pp=count(row, "pipeline_parallel") or 1,
        max_model_len=count(row, "max_model_len") or 4096,
        max_num_seqs=count(row, "max_num_seqs"),
        max_num_batched_tokens=count(row, "max_num_batched_tokens"),
        fraction=number(row, "gpu_memory_utilization"),
        eager=row["enforce_eager"] == "True",
    )
    return memory_budget(model, card, gpu_of(row, catalogue()), settings, version=version)


def kv_tokens_error(
    row: dict[str, str], b: MemoryBudget, card: EngineCard, version: str
) -> float | None:
    """Tokens (or blocks, or concurrency) from the measured KV GiB, against what was logged."""
    gib = number(row, "kv_cache_gib")
    if gib is None or gib <= 0:
        return None
    blocks = b.layout.blocks(gib * GIB)
    tokens, length = number(row, "kv_cache_tokens"), count(row, "max_concurrency_tokens")
    concurrency = number(row, "max_concurrency")
    if concurrency and length and (tokens is None or len(b.layout.groups) > 1):
        per_request = b.layout.blocks_per_request(length, b.max_num_batched_tokens)
        return (blocks / per_request / concurrency - 1) * 100
    groups = sum(g.count for g in b.layout.groups)
    if tokens:
        return (blocks // groups * b.layout.groups[0].block_tokens / tokens - 1) * 100
    logged = number(row, "num_gpu_blocks")
    return None if logged is None else (blocks / logged - 1) * 100


def score(row: dict[str, str], cards: Catalogue, card: EngineCard) -> Score | None:
    """None where the catalogue has no such model."""
    found = cards.model(row["model"])
    if found is None:
        return None
    model, repack = found
    version = row["engine_version"] if row["engine"] == "vllm" else ""
    version = version or UNSAID_VERSION.get(row["engine_generation"], "0.19.0")
    b = predicted(row, model, card, version, precision(row, model, repack))
    flags = set(row["flags"].split())
    result = Score(row, fits=b.fits if row["gpu_mem_total_gib"] else None)
    result.excluded = flags & (NOT_WEIGHTS | NOT_KV)
    weights = number(row, "weights_gib_per_gpu")
    if weights and not flags & NOT_WEIGHTS:
        result.errors["weights"] = (b.weights.total / GIB / weights - 1) * 100
    v1 = row["engine"] == "vllm" and row["engine_generation"] == "V1"
    peak = number(row, "activation_peak_gib")
    if v1 and peak and not flags & NOT_WEIGHTS:
        result.errors["activation"] = (b.activation_mib / 1024 / peak - 1) * 100
    error = kv_tokens_error(row, b, card, version)
    if error is not None and not flags & NOT_KV:
        result.errors["kv_tokens"] = error
    kv = number(row, "kv_cache_gib")
    told = row["gpu_mem_total_gib"] and row["gpu_memory_utilization"]
    if v1 and kv and kv > 0 and told and not flags & (NOT_WEIGHTS | NOT_KV | {"self_inconsistent"}):
        result.errors["kv"] = (b.kv_cache_mib / 1024 / kv - 1) * 100
    return result


def summary(scores: list[Score]) -> Iterator[str]:
    for name, (median_bar, p90_bar) in BARS.items():
        errors = sorted(abs(s.errors[name]) for s in scores if name in s.errors)
        if not errors:
            continue
        median, p90 = statistics.median(errors), errors[min(len(errors) - 1, len(errors) * 9 // 10)]
        met = "met" if median <= median_bar and p90 <= p90_bar else "MISSED"
        yield (
            f"{name:11} n {len(errors):3}  median {median:6.2f} %  p90 {p90:6.2f} %  "
            f"worst {errors[-1]:7.2f} %  bar {median_bar:g} / {p90_bar:g}: {met}"
        )


def starts(scores: list[Score]) -> Iterator[str]:
    """Where the log says that the engine did or did not start, does the model agree."""
    judged = [s for s in scores if s.fits is not None and not s.excluded]
    failed = [s for s in judged if "infeasible" in s.row["flags"].split()]
    optimistic = [s.row["id"] for s in failed if s.fits]
    started = [s for s in judged if s not in failed and s.row["kv_cache_gib"]]
    pessimistic = [s.row["id"] for s in started if not s.fits]
    yield f"refused for memory: {len(failed)}, of them said to fit: {optimistic or 'none'}"
    yield f"started: {len(started)}, of them said not to fit: {pessimistic or 'none'}"


def line(s: Score) -> str:
    row = s.row
    errors = "  ".join(f"{name} {error:+.2f} %" for name, error in s.errors.items())
    told = f"{row['id']} {row['engine']} {row['engine_version']} {row['model']} {row['gpu']}"
    return f"{told}: {errors or 'nothing to score'}  [{row['flags']}]"


def main() -> int:
    cards = catalogue()
    card = cards.engines.get("vllm")
    assert card is not None
    with LOGS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row, score(row, cards, card)) for row in rows]
    scores = [s for _, s in found if s is not None]
    if "--rows" in sys.argv:
        print(*map(line, scores), sep="\n")
    unknown = sorted({row["model"] for row, s in found if s is None})
    print(*summary(scores), *starts(scores), sep="\n")
    print(f"{len(rows) - len(scores)} of {len(rows)} rows have no model card: {unknown}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
