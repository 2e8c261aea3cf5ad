"""What runs where, read off the engine card: native, fallback or refused, each with a reason."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from optimizer.domain.engine import EngineCard, Support, Verdict, on, version_key
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel


@dataclass(frozen=True, slots=True)
class Runs:
    """How a combination runs; ``refusal`` says why not, and then the rest means nothing."""

    attention: str = ""
    gemm: str = "bf16"
    compute_factor: float = 1.0
    attention_factor: float = 1.0
    notes: tuple[str, ...] = ()
    refusal: str | None = None
    fallback: bool = False


def weight_support(card: EngineCard, version: str, gpu: Gpu, precision: str) -> Support:
    """The row of the card that speaks for a weight precision on a product."""
    for row in card.precisions:
        if _named(precision, row.precisions) and on(row.gpus, gpu) and _since(row, version):
            return row
    return _silent(card, f"{precision} weights on {gpu.architecture}")


def kv_support(card: EngineCard, version: str, gpu: Gpu, kv_precision: str) -> Support:
    """The row that speaks for a KV precision on a product."""
    for row in card.kv:
        if kv_precision in row.kv_precisions and on(row.gpus, gpu) and _since(row, version):
            return row
    return _silent(card, f"{kv_precision} KV on {gpu.architecture}")


def attention_support(
    card: EngineCard, version: str, gpu: Gpu, kernel: str, kv_precision: str
) -> Support:
    """The row that speaks for an attention kernel with that KV precision on a product."""
    for row in card.attention:
        fits = kernel in row.attention and _named(kv_precision, row.kv_precisions)
        if fits and on(row.gpus, gpu) and _since(row, version):
            return row
    return _silent(card, f"{kernel} attention with {kv_precision} KV on {gpu.architecture}")


def best_kernel(
    card: EngineCard,
    version: str,
    gpu: Gpu,
    model: ServedModel,
    kv_precision: str,
    allowed: Iterable[str] | None = None,
) -> tuple[str, Support]:
    """The first allowed kernel that runs natively, else the first that falls back, else a no.

    Rows of the card are ordered best first. MLA models have kernels of their own (``...-mla``),
    whatever an allow list of plain kernels says.
    """
    mla = model.mla is not None
    wanted = None if allowed is None or mla else tuple(allowed)
    spoken: dict[str, Support] = {}
    for row in card.attention:
        fits = on(row.gpus, gpu) and _named(kv_precision, row.kv_precisions)
        for name in row.attention if fits and _since(row, version) else ():
            if name.endswith("-mla") is mla and (wanted is None or name in wanted):
                spoken.setdefault(name, row)
    for verdict in (Verdict.NATIVE, Verdict.FALLBACK, Verdict.REFUSED):
        for name, row in spoken.items():
            if row.verdict is verdict:
                return name, row
    names = "no kernel" if wanted is None else f"none of {', '.join(wanted)}"
    return "", _silent(card, f"{names} for {model.attention_kind} attention, {kv_precision} KV")


@lru_cache(maxsize=4096)
def runs(
    card: EngineCard,
    version: str,
    gpu: Gpu,
    model: ServedModel,
    precision: str,
    kv_precision: str,
    attention: tuple[str, ...] | None = None,
) -> Runs:
    """How that engine runs the model so on that product, or why it does not."""
    weight = weight_support(card, version, gpu, precision)
    if weight.verdict is Verdict.REFUSED:
        return Runs(refusal=_refusal(card, precision, gpu, weight))
    kv = kv_support(card, version, gpu, kv_precision)
    if kv.verdict is Verdict.REFUSED:
        return Runs(refusal=_refusal(card, f"{kv_precision} KV", gpu, kv))
    kernel, row = best_kernel(card, version, gpu, model, kv_precision, attention)
    if row.verdict is Verdict.REFUSED:
        return Runs(refusal=_refusal(card, f"{kernel or 'attention'}", gpu, row))
    if card.efficiency(gpu) is None:
        return Runs(refusal=f"{card.name}: no measured speed on {gpu.architecture}")
    fallbacks = [s for s in (weight, kv, row) if s.verdict is Verdict.FALLBACK]
    return Runs(
        attention=kernel,
        gemm=weight.gemm or "bf16",
        compute_factor=weight.compute_factor,
        attention_factor=row.compute_factor,
        notes=tuple(f"fallback: {s.reason}" for s in fallbacks),
        fallback=bool(fallbacks),
    )


def _refusal(card: EngineCard, what: str, gpu: Gpu, row: Support) -> str:
    return f"{card.name} does not run {what} on {gpu.name}: {row.reason}"


def _silent(card: EngineCard, what: str) -> Support:
    return Support(Verdict.REFUSED, f"nothing known of {what} in {card.name}")


def _since(row: Support, version: str) -> bool:
    return row.since is None or version_key(row.since) <= version_key(version)


def _named(name: str, selectors: tuple[str, ...]) -> bool:
    """Whether a selector means the name; ``gguf:*`` means every mix, none means any."""
    if not selectors or name in selectors:
        return True
    return any(s.endswith("*") and name.startswith(s[:-1]) for s in selectors)
