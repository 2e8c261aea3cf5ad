"""``fleetslice size`` for people: every way to run a model, and where its memory goes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from optimizer.domain import words
from optimizer.domain.units import MIB_PER_GIB
from optimizer.report.ink import PALETTE, Ink

Entry = Mapping[str, Any]

ROWS = 30
REFUSED = 15
PARTS = (
    ("weights", "weights_mib", "W"),
    ("KV cache", "kv_cache_mib", "K"),
    ("activation", "activation_mib", "A"),
    ("runtime", "runtime_mib", "R"),
    ("CUDA graphs", "cuda_graphs_mib", "G"),
)


def render_size(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """The result of ``size``: the ways that fit, where memory goes in the first, the refused."""
    ink = Ink.of(console, ascii)
    fitting, refused = data["candidates"], data["refused"]
    console.print(Text(str(data["model"]), "bold").append(_counts(fitting, refused), "not bold"))
    parts: list[RenderableType] = []
    if fitting:
        parts += [Text(), _table(fitting, ink)]
        if len(fitting) > ROWS:
            parts.append(Text(f"and {len(fitting) - ROWS} more in the JSON", "dim"))
        parts += [Text(), *_memory(fitting[0], ink)]
        parts += [Text(ink.plain(f"  {reason}"), "dim") for reason in fitting[0].get("reasons", ())]
    elif len(refused) == 1 and refused[0].get("memory"):
        parts += [Text(), *_memory(refused[0], ink)]
    if refused and (not fitting or len(fitting) + len(refused) <= ROWS or console.width >= 100):
        parts += [Text(), *_refused(refused, ink)]
    for part in parts:
        console.print(part)


def _counts(fitting: Sequence[Entry], refused: Sequence[Entry]) -> str:
    if not fitting:
        return f": none of {words.plural(len(refused), 'way')} to run it works"
    told = f": {words.plural(len(fitting), 'way')} to run it"
    if fitting[0].get("price_per_million_output_tokens") is not None:
        told += ", cheapest per output token first"
    return told + (f"; {len(refused)} refused" if refused else "")


def room(entry: Entry) -> str:
    """``h100-80gb-sxm 3g.40gb``, ``h200-141gb-sxm x4``."""
    return words.room(entry["gpu"], entry.get("mig_profile"), "whole", _gpus(entry))


def _gpus(entry: Entry) -> int:
    return int((entry.get("tensor_parallel") or 1) * (entry.get("pipeline_parallel") or 1))


def _how(entry: Entry) -> str:
    kv = entry.get("kv_precision")
    told = str(entry.get("precision") or "")
    return f"{told} kv {kv}" if kv not in (None, "bf16", "fp16", "auto") else told


def _table(entries: Sequence[Entry], ink: Ink) -> RenderableType:
    shown = entries[:ROWS]
    engines = len({e.get("engine") for e in entries}) > 1 or ink.width >= 100
    priced = any(e.get("price_per_million_output_tokens") is not None for e in shown)
    p = _percentile(shown)
    table = ink.table()
    table.add_column("runs on", no_wrap=True)
    if engines:
        table.add_column("engine", no_wrap=True)
    heads = ["GiB", "KV\ntokens", "req/s", "out\ntok/s", f"TTFT\n{p}ms", f"TPOT\n{p}ms"]
    for title in [*heads, *(["per M\nout"] if priced else [])]:
        table.add_column(title, justify="right", no_wrap=True)
    for entry in shown:
        row = [f"{room(entry)} {_how(entry)}".rstrip()]
        if engines:
            row.append(str(entry.get("engine") or ""))
        row += _figures(entry)
        if priced:
            row.append(_number(entry.get("price_per_million_output_tokens"), 2))
        table.add_row(*row)
    return table


def _figures(entry: Entry) -> list[str]:
    memory = entry.get("memory") or {}
    speed = entry.get("performance") or {}
    budget = memory.get("budget_mib")
    return [
        "-" if budget is None else words.number(budget / MIB_PER_GIB, 1),
        _number(memory.get("kv_cache_tokens"), 0),
        _number(speed.get("requests_per_second"), 2),
        _number(speed.get("output_tokens_per_second"), 0),
        _number(_at_percentile(speed, "ttft"), 0),
        _number(_at_percentile(speed, "tpot"), 1),
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else words.number(value, digits)


def _at_percentile(speed: Mapping[str, Any], name: str) -> float | None:
    keys = [k for k in speed if re.fullmatch(rf"{name}_p[\d.]+_ms", k)]
    found = speed.get(keys[0]) if keys else None
    return found if found is not None else speed.get(f"{name}_ms")


def _percentile(entries: Sequence[Entry]) -> str:
    """``p95 `` where the entries say a percentile."""
    for entry in entries:
        for key in entry.get("performance") or {}:
            match = re.fullmatch(r"ttft_(p[\d.]+)_ms", key)
            if match:
                return f"{match[1]} "
    return ""


def _parts(memory: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Name, MiB and letter of each part of the device, what stays free last."""
    parts = [(name, memory.get(key) or 0, letter) for name, key, letter in PARTS]
    outside = memory.get("outside_budget_mib") or 0
    if not memory.get("cuda_graphs_inside_budget", True):  # then they are part of the outside
        outside -= memory.get("cuda_graphs_mib") or 0
    parts.append(("outside the budget", outside, "o"))
    used = sum(mib for _, mib, _ in parts)
    parts.append(("free", (memory.get("total_mib") or used) - used, "."))
    return [part for part in parts if part[1] > 0]


def _memory(entry: Entry, ink: Ink) -> Iterator[Text]:
    """Where the memory of one GPU (or slice) goes: a bar to scale and its legend."""
    parts = _parts(entry.get("memory") or {})
    total = sum(mib for _, mib, _ in parts)
    if not total:
        return
    per = " per GPU" if _gpus(entry) > 1 else ""
    yield Text(f"Memory of {room(entry)} {_how(entry)}{per}: {words.gib(total)}", "bold")
    width = min(ink.width - 4, 96)
    bar, legend, at = Text("  "), Text("  "), 0
    for index, (name, mib, letter) in enumerate(parts):
        cells = round((at + mib) / total * width) - round(at / total * width)
        at += mib
        colour = "grey37" if name == "free" else PALETTE[index]
        bar.append(letter * cells, f"black on {colour}")
        legend.append(f"{letter} ", colour).append(f"{name} {words.gib(mib)}  ")
    yield bar
    yield legend
    advice = entry.get("recommended") or {}
    if advice.get("flags"):
        yield Text(f"  recommended: {' '.join(advice['flags'])}", "bold")
    yield from _speed(entry, ink)


def _speed(entry: Entry, ink: Ink) -> Iterator[Text]:
    bands = (entry.get("performance") or {}).get("error_band_percent") or {}
    names = [n for n in ("ttft", "tpot", "throughput") if bands.get(n) is not None]
    told = [f"{n if n == 'throughput' else n.upper()} ±{bands[n]:g} %" for n in names]
    if told:
        yield Text(ink.plain(f"  p90 error of the prediction: {', '.join(told)}"), "dim")


def _refused(refused: Sequence[Entry], ink: Ink) -> Iterator[RenderableType]:
    table = ink.table(title="Refused")
    table.add_column("runs on", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    table.add_column("why")
    for entry in refused[:REFUSED]:
        engine, why = str(entry.get("engine") or ""), str(entry.get("reason") or "")
        table.add_row(room(entry), _how(entry), engine, ink.plain(why))
    yield table
    if len(refused) > REFUSED:
        yield Text(f"and {len(refused) - REFUSED} more in the JSON", "dim")
