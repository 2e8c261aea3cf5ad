"""How long a context may be: what the model was trained for, and what stretches it."""

from optimizer.domain.model import ServedModel
from optimizer.sizing.precision import kv_scheme

SIXTEEN_BITS = 2.0


def context_fault(model: ServedModel, tokens: int) -> str | None:
    """Why a context is too long for the model, or None: past it, rotary positions are untrained."""
    trained = model.max_position_embeddings
    if not trained or tokens <= trained:
        return None
    reason = f"context {tokens} is beyond the {trained} tokens it was trained for; "
    if model.rope_scaling is not None:
        return reason + f"that length already counts its {model.rope_scaling} scaling"
    return reason + "a longer one needs a RoPE scaling method"


def context_notes(model: ServedModel, tokens: int, kv_precision: str) -> tuple[str, ...]:
    """What a context that fits still risks."""
    notes = []
    original = model.original_positions
    stretched = original is not None and tokens > original
    if stretched:
        method = model.rope_scaling or "RoPE"
        notes.append(
            f"context {tokens} is beyond the {original} positions trained first and relies on "
            f"{method} scaling: check quality on long prompts"
        )
    kv = kv_scheme(kv_precision)
    if kv.risk is not None:
        notes.append(kv.risk)
    elif stretched and kv.element_bytes < SIXTEEN_BITS:
        notes.append(f"a {kv_precision} KV cache adds rounding to scaled positions")
    return tuple(notes)
