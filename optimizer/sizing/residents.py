"""What lives on the GPU beside a model: adapters, a draft model, other processes."""

from optimizer.domain.model import ServedModel
from optimizer.domain.workload import Extras
from optimizer.sizing.kvcache import kv_cache_bytes_per_token
from optimizer.sizing.precision import scheme
from optimizer.sizing.weights import weights

NO_EXTRAS = Extras()


def lora_bytes(model: ServedModel, extras: Extras, tp: int) -> float:
    """Adapters in 16 bit, one slot each: rank x (inputs + outputs) of every linear layer.

    Under tensor parallelism column-parallel layers divide their outputs and row-parallel layers
    their inputs; the other side is on every rank (vllm/lora/layers, not fully sharded).
    """
    if not extras.lora_count:
        return 0.0
    h, wide = model.hidden_size, model.intermediate_size / tp
    q = model.attention_heads * model.head_size / tp
    kv = 2 * model.kv_heads * model.head_size / tp
    columns = (3 * h + q + kv) + (2 * h + 2 * wide)
    rows = (q + h) + (wide + h)
    return extras.lora_count * extras.lora_rank * model.layers * (columns + rows) * 2


def draft_weight_bytes(extras: Extras, tp: int) -> float:
    """A speculative draft model in its checkpoint's precision, divided like its target."""
    draft = extras.draft_model
    if draft is None:
        return 0.0
    return weights(
        draft, scheme(draft.checkpoint_precision, draft.quant_group, draft.quant_symmetric), tp
    ).total


def draft_kv_bytes(extras: Extras, kv_bytes: float, tp: int) -> float:
    """KV bytes that each token of context takes in the draft model too."""
    if extras.draft_model is None:
        return 0.0
    return kv_cache_bytes_per_token(extras.draft_model, kv_bytes, tp)
