"""Text Generation Inference: ``text-generation-launcher`` (docs/source/reference/launcher.md)."""

from optimizer.domain.placement import Replica
from optimizer.engines.command import (
    DTYPES,
    CannotRun,
    EngineCommand,
    Flags,
    Settings,
    at_load,
    needs_fraction,
    port_text,
)

DEFAULT_FRACTION = 1.0
QUANTIZE_AT_LOAD = {"fp8": "fp8", "bnb-nf4": "bitsandbytes-nf4"}
ENVIRONMENT = (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("USAGE_STATS", "off"))


def command(
    replica: Replica, gpu_product: str, model_id: str, port: int | None, settings: Settings
) -> EngineCommand:
    """``text-generation-launcher`` with memory and batch limits said. Raises CannotRun."""
    config = replica.config
    if config.pipeline_parallel > 1:
        raise CannotRun(f"{replica.id}: tgi has no pipeline parallelism")
    if settings.task == "embed" or settings.lora_count:
        what = "embeddings" if settings.task == "embed" else "LoRA adapters"
        raise CannotRun(f"{replica.id}: {what} on tgi are not supported yet")
    flags = Flags("text-generation-launcher", "--model-id", model_id)
    flags.add("--hostname", settings.host).add("--port", port_text(port))
    flags.add("--num-shard", config.tensor_parallel)
    flags.add("--cuda-memory-fraction", needs_fraction(replica, settings, DEFAULT_FRACTION))
    flags.add("--max-total-tokens", config.max_model_len)
    flags.add("--max-concurrent-requests", config.max_num_seqs)
    flags.add("--max-batch-prefill-tokens", settings.max_num_batched_tokens)
    flags.add("--kv-cache-dtype", _kv_cache_dtype(replica))
    quantize = at_load(replica, settings, tuple(QUANTIZE_AT_LOAD))
    if quantize:
        flags.add("--quantize", QUANTIZE_AT_LOAD[quantize])
    else:
        flags.add("--dtype", DTYPES.get(config.precision or ""))
    return EngineCommand(flags.argv, ENVIRONMENT)


def _kv_cache_dtype(replica: Replica) -> str | None:
    match replica.config.kv_precision:
        case "fp8":
            return "fp8_e4m3fn"
        case None | "bf16" | "fp16":
            return None
        case other:
            raise CannotRun(f"{replica.id}: tgi keeps no KV cache in {other}")
