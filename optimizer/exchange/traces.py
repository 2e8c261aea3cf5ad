"""Recorded traffic of others to Trace documents: requests, or rates by window, and statistics.

Read are the Azure LLM inference traces (TIMESTAMP, ContextTokens, GeneratedTokens), Mooncake's
JSONL (timestamp in ms, input_length, output_length, hash_ids of 512-token blocks), ServeGen's rates
by window, and plain CSV with a column each for time, prompt and answer.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from optimizer.exchange.imported import CannotRead, File, Import, Imported, Input

FORMAT = "trace"
_BLOCK = 512  # tokens of one Mooncake block
_MINUTES = 10  # over which the busiest time is looked for
_NAMES = {
    "at": ("at_s", "arrival_s", "timestamp", "time", "t_s", "arrived_at"),
    "in": ("input_tokens", "contexttokens", "context_tokens", "input_length", "prompt_tokens",
           "num_prefill_tokens", "request tokens"),
    "out": ("output_tokens", "generatedtokens", "generated_tokens", "output_length",
            "num_decode_tokens", "response tokens"),
    "cached": ("cached_tokens", "prefix_tokens_seen_before"),
    "deployment": ("deployment", "model"),
}  # fmt: skip
_RATE = ("rate_rps", "requests_per_second", "rate")
Seen = tuple[float, int, int, int, str]  # at, input, output, cached, deployment


def import_trace(given: Input) -> Import:
    """A Trace for each file. Raises CannotRead."""
    if not given.files:
        raise CannotRead("no file; name the recorded traffic")
    documents, left_out = [], []
    for file in given.files:
        document, dropped = _document(file, given.name)
        documents.append(document)
        left_out += dropped
    return Import(FORMAT, tuple(documents), tuple(left_out))


def _document(file: File, name: str) -> tuple[Imported, list[str]]:
    name = file.stem or name
    if file.text.lstrip().startswith("{"):
        found, dropped = _kept(_mooncake(file), file)
        return _requests(name, file, found), dropped
    rows = csv.DictReader(io.StringIO(file.text.strip()))
    head = {str(c).strip().lower(): str(c) for c in rows.fieldnames or ()}
    if any(word in head for word in _RATE):
        return _windows(name, file, list(rows), head), []
    columns = {what: next((head[n] for n in names if n in head), None)
               for what, names in _NAMES.items()}  # fmt: skip
    missing = [what for what in ("at", "in", "out") if columns[what] is None]
    if missing:
        wanted = "; ".join(", ".join(_NAMES[what]) for what in missing)
        raise CannotRead(file.at(1, f"no column for {wanted}"))
    found, dropped = _kept(_rows(file, rows, columns), file)
    return _requests(name, file, found), dropped


def _rows(
    file: File, rows: "csv.DictReader[str]", columns: Mapping[str, str | None]
) -> Iterator[tuple[int, Seen]]:
    at, prompt, output = (str(columns[c]) for c in ("at", "in", "out"))
    cached, deployment = columns["cached"], columns["deployment"]
    for number, row in enumerate(rows, 2):
        try:
            seen = (
                _time(row[at]),
                int(float(row[prompt])),
                int(float(row[output])),
                int(float(row[cached] or 0)) if cached else 0,
                str(row[deployment]) if deployment == "deployment" else "",
            )
        except (TypeError, ValueError):
            raise CannotRead(file.at(number, f"not a request: {list(row.values())}")) from None
        yield number, seen


def _time(text: str) -> float:
    """Seconds, or a date and time."""
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()[:26]).timestamp()


def _mooncake(file: File) -> Iterator[tuple[int, Seen]]:
    """Lines of JSON; a prompt's first blocks that came before could be in a prefix cache."""
    seen: set[int] = set()
    for number, line in enumerate(file.text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            blocks = [int(b) for b in row.get("hash_ids", ())]
            leading = next((i for i, b in enumerate(blocks) if b not in seen), len(blocks))
            seen.update(blocks)
            prompt = int(row["input_length"])
            cached = min(_BLOCK * leading, prompt)
            found = (float(row["timestamp"]) / 1000, prompt, int(row["output_length"]), cached, "")
        except (KeyError, TypeError, ValueError):
            reason = "not a request: a line needs timestamp, input_length and output_length"
            raise CannotRead(file.at(number, reason)) from None
        yield number, found


def _kept(rows: Iterator[tuple[int, Seen]], file: File) -> tuple[list[Seen], list[str]]:
    """Requests with tokens in and out, from the first on, in order of time."""
    found: list[Seen] = []
    dropped = 0
    for _, row in rows:
        if row[1] < 1 or row[2] < 1:
            dropped += 1
        else:
            found.append(row)
    if len(found) < 2:
        raise CannotRead(file.at(1, "fewer than two requests with tokens in and out"))
    found.sort(key=lambda row: row[0])
    start = found[0][0]
    told = [f"{file.name}: {dropped} requests without tokens in or out"] if dropped else []
    return [(round(r[0] - start, 6), *r[1:]) for r in found], told


def _requests(name: str, file: File, found: Sequence[Seen]) -> Imported:
    seconds = max(found[-1][0], 1e-3)
    named = any(r[4] for r in found)
    head = ["at_s", "input_tokens", "output_tokens", "cached_tokens"]
    lines = [",".join([*head, "deployment"] if named else head)]
    for at, prompt, output, cached, deployment in found:
        row = f"{round(at, 4):.14g},{prompt},{output},{cached}"
        lines.append(f"{row},{deployment}" if named else row)
    data = {
        "kind": "Trace",
        "version": 1,
        "name": name,
        "seconds": round(seconds, 3),
        "demand": statistics_of(found, seconds),
        "requests": "\n".join(lines) + "\n",
    }
    return Imported(data, ("who sent which request: it is replayed for any deployment",)
                    if not named else (), ("cached_tokens are those of an endless prefix cache",)
                    if any(r[3] for r in found) else ())  # fmt: skip


def statistics_of(found: Sequence[Seen], seconds: float) -> dict[str, Any]:
    """A demand's fields: rates, lengths, burstiness, peak over mean, prefixes seen before.

    ``arrival_cv`` is of the gaps; ``peak_factor`` of the busiest ten minutes, or of the busiest
    tenth of a shorter trace.
    """
    gaps = [b[0] - a[0] for a, b in pairwise(found)]
    prompts, outputs = [r[1] for r in found], [r[2] for r in found]
    mean_gap = statistics.fmean(gaps)
    window = min(60.0 * _MINUTES, seconds / 10)
    counts = [0] * (math.ceil(seconds / window) + 1)
    for row in found:
        counts[int(row[0] / window)] += 1
    rate = len(found) / seconds
    return {
        "requests_per_second": round(rate, 4),
        "input_tokens": round(statistics.fmean(prompts), 1),
        "output_tokens": round(statistics.fmean(outputs), 1),
        "arrival_cv": round(statistics.pstdev(gaps) / mean_gap, 3) if mean_gap else 1.0,
        "length_cv": round(statistics.pstdev(prompts) / statistics.fmean(prompts), 3),
        "peak_factor": round(max(1.0, max(counts) / window / rate), 3),
        "prefix_hit_rate": round(sum(r[3] for r in found) / sum(prompts), 4),
    }


def _windows(
    name: str, file: File, rows: Sequence[Mapping[str, Any]], head: Mapping[str, str]
) -> Imported:
    """ServeGen: a rate, its burstiness and mean lengths for each window."""

    def column(*names: str) -> str | None:
        return next((head[n] for n in names if n in head), None)

    at, rate = column("t_s", "at_s", "time"), column(*_RATE)
    prompt, output = column("in_mean", "input_tokens"), column("out_mean", "output_tokens")
    cv = column("mean_interarrival_cv", "arrival_cv", "cv")
    if at is None or rate is None or prompt is None or output is None:
        raise CannotRead(file.at(1, "rates need columns t_s, rate_rps, in_mean and out_mean"))
    windows = []
    for number, row in enumerate(rows, 2):
        try:
            windows.append({
                "at_s": float(row[at]),
                "requests_per_second": float(row[rate]),
                "arrival_cv": float(row[cv]) if cv else 1.0,
                "input_tokens": float(row[prompt]),
                "output_tokens": float(row[output]),
            })  # fmt: skip
        except (TypeError, ValueError):
            raise CannotRead(file.at(number, f"not a window: {list(row.values())}")) from None
    if len(windows) < 2:
        raise CannotRead(file.at(1, "fewer than two windows"))
    width = windows[1]["at_s"] - windows[0]["at_s"]
    start = windows[0]["at_s"]
    windows = [{**w, "at_s": w["at_s"] - start} for w in windows]
    data = {
        "kind": "Trace",
        "version": 1,
        "name": name,
        "seconds": windows[-1]["at_s"] + width,
        "demand": _mean_of(windows),
        "windows": windows,
    }
    return Imported(data, ("single requests: arrivals are drawn window by window",))


def _mean_of(windows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Statistics of windows of one width, weighted by their requests."""
    rates = [w["requests_per_second"] for w in windows]
    total = math.fsum(rates)

    def weighted(field: str) -> float:
        return math.fsum(w[field] * r for w, r in zip(windows, rates, strict=True)) / total

    return {
        "requests_per_second": round(total / len(windows), 4),
        "input_tokens": round(weighted("input_tokens"), 1),
        "output_tokens": round(weighted("output_tokens"), 1),
        "arrival_cv": round(weighted("arrival_cv"), 3),
        "peak_factor": round(max(1.0, max(rates) * len(rates) / total), 3),
    }
