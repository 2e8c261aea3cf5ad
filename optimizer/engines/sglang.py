"""SGLang: ``python3 -m sglang.launch_server``."""

from optimizer.domain.placement import Replica
from optimizer.engines.command import (
    MASTER,
    RANK,
    CannotRun,
    EngineCommand,
    Flags,
    Settings,
    at_load,
    dtype,
    needs_fraction,
    nodes_of_group,
    port_text,
)

DEFAULT_FRACTION = 0.85
QUANTIZE_AT_LOAD = {"fp8": "fp8"}
ENVIRONMENT = (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("DO_NOT_TRACK", "1"))


def command(
    replica: Replica, gpu_product: str, model_id: str, port: int | None, settings: Settings
) -> EngineCommand:
    """``sglang.launch_server`` with memory and batch limits said. Raises CannotRun."""
    config = replica.config
    flags = Flags("python3", "-m", "sglang.launch_server", "--model-path", model_id)
    flags.add("--served-model-name", replica.deployment)
    flags.add("--host", settings.host).add("--port", port_text(port))
    flags.add("--tp-size", config.tensor_parallel)
    if config.pipeline_parallel > 1:
        flags.add("--pp-size", config.pipeline_parallel)
    # Of the memory free at start, which on a device of its own is all of it.
    flags.add("--mem-fraction-static", needs_fraction(replica, settings, DEFAULT_FRACTION))
    flags.add("--context-length", config.max_model_len)
    flags.add("--max-running-requests", config.max_num_seqs)
    flags.add("--chunked-prefill-size", settings.max_num_batched_tokens)
    flags.add("--kv-cache-dtype", _kv_cache_dtype(replica))
    flags.add("--dtype", dtype(replica))
    quantize = at_load(replica, settings, tuple(QUANTIZE_AT_LOAD))
    flags.add("--quantization", QUANTIZE_AT_LOAD[quantize] if quantize else None)
    if settings.task == "embed":
        flags.add("--is-embedding")
    if settings.lora_count:
        raise CannotRun(f"{replica.id}: LoRA adapters on sglang are not supported yet")
    nodes = nodes_of_group(replica)
    if nodes == 1:
        return EngineCommand(flags.argv, ENVIRONMENT)
    flags.add("--nnodes", nodes).add("--node-rank", RANK).add("--dist-init-addr", MASTER)
    return EngineCommand(flags.argv, ENVIRONMENT, others=flags.argv)


def _kv_cache_dtype(replica: Replica) -> str:
    match replica.config.kv_precision:
        case "fp8":
            return "fp8_e4m3"
        case None | "bf16" | "fp16":
            return "auto"
        case other:
            raise CannotRun(f"{replica.id}: sglang keeps no KV cache in {other}")
