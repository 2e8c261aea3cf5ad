"""TensorRT-LLM: ``trtllm-serve`` with the PyTorch backend (tensorrt_llm/commands/serve.py)."""

from optimizer.domain.placement import Replica
from optimizer.engines.command import (
    CannotRun,
    EngineCommand,
    Flags,
    Settings,
    at_load,
    needs_fraction,
    nodes_of_group,
    port_text,
)

DEFAULT_FRACTION = 0.9
ENVIRONMENT = (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),)


def command(
    replica: Replica, gpu_product: str, model_id: str, port: int | None, settings: Settings
) -> EngineCommand:
    """``trtllm-serve`` with memory and batch limits said. Raises CannotRun.

    It has no flag for the served name (clients name the model as ``/v1/models`` does), none for
    the KV cache's type, and its memory fraction is of what is free after the weights.
    """
    config = replica.config
    if config.kv_precision not in (None, "bf16", "fp16"):
        raise CannotRun(
            f"{replica.id}: trtllm-serve takes a KV cache in {config.kv_precision} from a file of "
            "options only, which is not supported yet"
        )
    if settings.task == "embed" or settings.lora_count:
        what = "embeddings" if settings.task == "embed" else "LoRA adapters"
        raise CannotRun(f"{replica.id}: {what} on tensorrt-llm are not supported yet")
    if nodes_of_group(replica) > 1:
        raise CannotRun(
            f"{replica.id}: trtllm-serve spans nodes under MPI only, which is not supported yet"
        )
    at_load(replica, settings, ())
    flags = Flags("trtllm-serve", model_id, "--backend", "pytorch")
    flags.add("--host", settings.host).add("--port", port_text(port))
    flags.add("--tp_size", config.tensor_parallel).add("--pp_size", config.pipeline_parallel)
    fraction = needs_fraction(replica, settings, DEFAULT_FRACTION)
    flags.add("--kv_cache_free_gpu_memory_fraction", fraction)
    flags.add("--max_seq_len", config.max_model_len)
    flags.add("--max_batch_size", config.max_num_seqs)
    flags.add("--max_num_tokens", settings.max_num_batched_tokens)
    return EngineCommand(flags.argv, ENVIRONMENT)
