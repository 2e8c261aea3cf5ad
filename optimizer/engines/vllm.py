"""vLLM: ``vllm serve``, flags of the versions from 0.6 on."""

from optimizer.domain.engine import version_key
from optimizer.domain.placement import Replica
from optimizer.engines.command import (
    MASTER_HOST,
    MASTER_PORT,
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

DEFAULT_FRACTION = 0.9
QUANTIZE_AT_LOAD = {"fp8": "fp8", "bnb-nf4": "bitsandbytes"}
# Older versions know neither name: `auto` there, and `--task` for embeddings (docs 0.10.0, 0.10.1).
SAYS_BFLOAT16_KV = version_key("0.11.0")
SAYS_RUNNER = version_key("0.10.1")
# Groups over nodes without a Ray of vLLM's own: `--nnodes` and `--headless` ranks (docs 0.12.0).
SAYS_NNODES = version_key("0.12.0")
# vllm/engine/arg_utils.py: defaults by device memory. It asks NVML for the parent's memory inside
# a MIG slice, so they are always said.
LARGE_DEVICE_MIB = 70 * 1024
BATCHED_TOKENS = (8192, 2048)  # on a large device (A100 excepted), on any other

ENVIRONMENT = (
    ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
    ("DO_NOT_TRACK", "1"),
    ("VLLM_NO_USAGE_STATS", "1"),
)


def command(
    replica: Replica, gpu_product: str, model_id: str, port: int | None, settings: Settings
) -> EngineCommand:
    """``vllm serve`` with memory and batch limits always said. Raises CannotRun."""
    config = replica.config
    flags = Flags("vllm", "serve", model_id)
    flags.add("--served-model-name", replica.deployment)
    flags.add("--host", settings.host).add("--port", port_text(port))
    flags.add("--tensor-parallel-size", config.tensor_parallel)
    if config.pipeline_parallel > 1:
        flags.add("--pipeline-parallel-size", config.pipeline_parallel)
    flags.add("--gpu-memory-utilization", needs_fraction(replica, settings, DEFAULT_FRACTION))
    flags.add("--max-model-len", config.max_model_len)
    flags.add("--max-num-seqs", config.max_num_seqs)
    tokens = settings.max_num_batched_tokens or _batched_tokens(gpu_product, settings)
    flags.add("--max-num-batched-tokens", tokens)
    flags.add("--kv-cache-dtype", _kv_cache_dtype(replica))
    flags.add("--dtype", dtype(replica))
    quantize = at_load(replica, settings, tuple(QUANTIZE_AT_LOAD))
    flags.add("--quantization", QUANTIZE_AT_LOAD[quantize] if quantize else None)
    if settings.task == "embed":
        newer = _at_least(replica, SAYS_RUNNER)
        flags.add("--runner" if newer else "--task", "pooling" if newer else "embed")
    if settings.lora_count:
        flags.add("--enable-lora").add("--max-loras", settings.lora_count)
        flags.add("--max-lora-rank", settings.lora_rank or None)
    nodes = nodes_of_group(replica)
    if nodes == 1:
        return EngineCommand(flags.argv, ENVIRONMENT)
    if not _at_least(replica, SAYS_NNODES):
        raise CannotRun(
            f"{replica.id}: vllm {config.engine_version} has no --nnodes; over nodes it takes 0.12"
        )
    flags.add("--nnodes", nodes).add("--node-rank", RANK)
    flags.add("--master-addr", MASTER_HOST).add("--master-port", MASTER_PORT)
    return EngineCommand(flags.argv, ENVIRONMENT, others=(*flags.argv, "--headless"))


def _at_least(replica: Replica, key: tuple[object, ...]) -> bool:
    version = replica.config.engine_version
    return version is None or version_key(version) >= key


def _batched_tokens(gpu_product: str, settings: Settings) -> int:
    if settings.device_mib is None:
        return BATCHED_TOKENS[1]
    large = settings.device_mib >= LARGE_DEVICE_MIB and not gpu_product.startswith("a100")
    return BATCHED_TOKENS[0] if large else BATCHED_TOKENS[1]


def _kv_cache_dtype(replica: Replica) -> str:
    match replica.config.kv_precision:
        case "fp8":
            return "fp8"
        # `auto` also follows a checkpoint that asks for an fp8 cache, which was not counted with.
        case "bf16" if _at_least(replica, SAYS_BFLOAT16_KV):
            return "bfloat16"
        case None | "bf16" | "fp16":
            return "auto"
        case other:
            raise CannotRun(f"{replica.id}: vllm keeps no KV cache in {other}")
