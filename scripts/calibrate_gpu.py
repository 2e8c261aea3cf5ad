#!/usr/bin/env python3
"""Measures one GPU with PyTorch and writes points for ``fleetslice calibrate``.

    python scripts/calibrate_gpu.py --gpu h100-80gb-sxm --model llama-3.1-8b --out h100.csv
    fleetslice calibrate h100.csv --out calibration.yaml

Measured are streaming bandwidth, the dense matmul peak of each precision the GPU has, memory, and
decoding steps of a transformer of that model's shape with random weights, captured as a CUDA graph,
over batch and context. PyTorch is the only thing it needs beyond this package. A step has no
engine around it: ``--engine`` says whose card the points shall correct.
"""

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCHES = (1, 8, 32, 128)
CONTEXTS = (512, 2048, 8192)
COLUMNS = (
    *("model", "gpu", "engine", "engine_version", "precision", "tp", "load_kind", "concurrency"),
    *("input_tokens", "output_tokens", "max_model_len", "tpot_ms"),
)
_REPEATS = 20
_WARM = 5


def seconds_of(torch: Any, work: Callable[[], Any]) -> float:
    """Median seconds of the work on the GPU, after a few unmeasured runs."""
    for _ in range(_WARM):
        work()
    torch.cuda.synchronize()
    found = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found)


def bandwidth_gbs(torch: Any) -> float:
    """GB/s of a copy within the GPU's memory: each byte is read and written."""
    size = min(4 << 30, torch.cuda.mem_get_info()[0] // 4)
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return float(2 * size / seconds_of(torch, lambda: target.copy_(source)) / 1e9)


def peaks_tflops(torch: Any, size: int = 8192) -> dict[str, float | None]:
    """Dense products of large squares, 2 n^3 operations; None: the GPU or PyTorch has none."""

    def rate(work: Callable[[], Any]) -> float | None:
        try:
            return round(2 * size**3 / seconds_of(torch, work) / 1e12, 1)
        except (RuntimeError, NotImplementedError):  # no kernel for it here
            return None

    found: dict[str, float | None] = {}
    for name, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        a = torch.randn(size, size, device="cuda", dtype=kind)
        found[name] = rate(lambda a=a: a @ a)  # type: ignore[misc]
    eight = torch.randint(-8, 8, (size, size), device="cuda", dtype=torch.int8)
    found["int8"] = rate(lambda: torch._int_mm(eight, eight))
    found["fp8"] = None
    if hasattr(torch, "float8_e4m3fn") and torch.cuda.get_device_capability() >= (8, 9):
        a = torch.randn(size, size, device="cuda").to(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        found["fp8"] = rate(lambda: torch._scaled_mm(a, a.t(), one, one, out_dtype=torch.bfloat16))
    return found


class Decoder:
    """One decoding step of a dense transformer with random bf16 weights and a filled KV cache."""

    def __init__(self, torch: Any, model: Any, batch: int, context: int) -> None:
        self.torch = torch
        self.model = model
        h, d = model.hidden_size, model.head_size
        q, kv = model.attention_heads * d, model.kv_heads * d

        def new(*shape: int) -> Any:
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02

        self.layers = [
            {
                "qkv": new(h, q + 2 * kv),
                "out": new(q, h),
                "up": new(h, (2 if model.gated_mlp else 1) * model.intermediate_size),
                "down": new(model.intermediate_size, h),
                "keys": new(batch, model.kv_heads, context, d),
                "values": new(batch, model.kv_heads, context, d),
            }
            for _ in range(model.layers)
        ]
        self.head = new(h, model.vocab_size)
        self.input = new(batch, h)

    def step(self) -> Any:
        """From one hidden state a sequence to its next token."""
        torch, model = self.torch, self.model
        functional, d = torch.nn.functional, model.head_size
        q, kv = model.attention_heads * d, model.kv_heads * d
        x = self.input
        for layer in self.layers:
            both = functional.rms_norm(x, (x.shape[-1],)) @ layer["qkv"]
            queries = both[:, :q].view(-1, model.attention_heads, 1, d)
            layer["keys"][:, :, -1] = both[:, q : q + kv].view(-1, model.kv_heads, d)
            layer["values"][:, :, -1] = both[:, q + kv :].view(-1, model.kv_heads, d)
            mixed = functional.scaled_dot_product_attention(
                queries, layer["keys"], layer["values"], enable_gqa=model.kv_heads < q // d
            )
            x = x + mixed.reshape(-1, q) @ layer["out"]
            wide = functional.rms_norm(x, (x.shape[-1],)) @ layer["up"]
            if model.gated_mlp:
                gate, wide = wide.chunk(2, dim=-1)
                wide = functional.silu(gate) * wide
            x = x + wide @ layer["down"]
        return (x @ self.head).argmax(-1)

    def milliseconds(self) -> float:
        """Of one step, replayed as a graph, as engines do."""
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self.step()
        return seconds_of(torch, graph.replay) * 1e3


def points(torch: Any, model: Any, gpu: str, engine: str, version: str) -> Iterator[dict[str, Any]]:
    """A decoding step for every batch and context that fits."""
    for batch in BATCHES:
        for context in CONTEXTS:
            try:
                decoder = Decoder(torch, model, batch, context)
                tpot = decoder.milliseconds()
            except torch.cuda.OutOfMemoryError:
                print(f"batch {batch}, context {context}: does not fit", file=sys.stderr)
                continue
            finally:
                decoder = None
                torch.cuda.empty_cache()
            print(f"batch {batch}, context {context}: {tpot:.3f} ms", file=sys.stderr)
            yield {
                "model": model.name,
                "gpu": gpu,
                "engine": engine,
                "engine_version": version,
                "precision": "bf16",
                "tp": 1,
                "load_kind": "static_batch",
                "concurrency": batch,
                "input_tokens": context - 1,
                "output_tokens": 2,
                "max_model_len": context + 1,
                "tpot_ms": round(tpot, 4),
            }


def conditions(torch: Any) -> dict[str, Any]:
    """What the figures were measured on and with."""
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "product": card.name,
        "sms": card.multi_processor_count,
        "memory_mib": {"total": total >> 20, "free": free >> 20},
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bandwidth_gbs": round(bandwidth_gbs(torch), 1),
        "peak_tflops": peaks_tflops(torch),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gpu", required=True, help="the product, as the catalogue names it")
    parser.add_argument("--model", default="llama-3.1-8b", help="a dense model of the catalogue")
    parser.add_argument("--engine", default="vllm", help="the engine whose card to correct")
    parser.add_argument("--out", type=Path, required=True, help="the CSV of points")
    asked = parser.parse_args()

    from optimizer.documents import catalogue

    known = catalogue([Path.cwd()])
    model, gpu = known.model(asked.model), known.gpu(asked.gpu)
    card = next((c for c in known.engine_cards() if c.name == asked.engine), None)
    if model is None or gpu is None or card is None:
        parser.error("--model, --gpu and --engine must be of the catalogue")
    if model[0].moe is not None or model[0].mla is not None:
        parser.error(f"{model[0].name}: only dense models without MLA are built here")
    try:
        import torch
    except ImportError:
        parser.error("needs PyTorch: pip install torch")
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    told = conditions(torch)
    print(json.dumps(told, indent=2))
    with asked.out.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        rows.writeheader()
        rows.writerows(points(torch, model[0], gpu.name, card.name, card.default_version))
    asked.out.with_suffix(".conditions.json").write_text(json.dumps(told, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
