"""Models, GPUs and the vLLM card that the sizing tests speak of."""

from functools import cache
from pathlib import Path

import yaml

from optimizer.documents import engine_card
from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu, MigProfile, MigTable
from optimizer.domain.model import Mla, Moe, ServedModel

ENGINES = Path(__file__).parents[2] / "workloads" / "engines"

LLAMA_8B = ServedModel(
    "llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, False, max_position_embeddings=131072
)
LLAMA_70B = ServedModel(
    "llama-3.1-70b", 80, 8192, 28672, 64, 8, 128, 128256, False, max_position_embeddings=131072
)
LLAMA_2_7B = ServedModel(
    "llama-2-7b", 32, 4096, 11008, 32, 32, 128, 32000, False, max_position_embeddings=4096
)
QWEN3_30B_A3B = ServedModel(
    "qwen3-30b-a3b", 48, 2048, 6144, 32, 4, 128, 151936, False, moe=Moe(128, 8, 768)
)
GEMMA_3_12B = ServedModel(
    "gemma-3-12b",
    48,
    3840,
    15360,
    16,
    8,
    256,
    262208,
    True,
    sliding_window=1024,
    sliding_layers=40,
    vision_params=417_000_000,
)
GPT_OSS_20B = ServedModel(
    "gpt-oss-20b",
    24,
    2880,
    2880,
    64,
    8,
    64,
    201088,
    False,
    checkpoint_precision="mxfp4",
    sliding_window=128,
    sliding_layers=12,
    moe=Moe(32, 4, 2880),
)
DEEPSEEK_V3 = ServedModel(
    "deepseek-v3",
    61,
    7168,
    18432,
    128,
    128,
    128,
    129280,
    False,
    checkpoint_precision="fp8",
    moe=Moe(256, 8, 2048, shared_experts=1, first_dense=3),
    mla=Mla(512, 64, 128, 128, q_lora_rank=1536),
)
EMBEDDER_8B = ServedModel("qwen3-embedding-8b", 36, 4096, 12288, 32, 8, 128, 151936, False, "embed")


def _mig(memory: dict[str, tuple[int, int, int, tuple[int, ...], int]]) -> MigTable:
    rows = [
        MigProfile(name, compute, slices, starts, 7, memory_mib=mib, sms=sms)
        for name, (compute, slices, mib, starts, sms) in memory.items()
    ]
    unknown = MigProfile("4g.40gb", 4, 4, (0,), 1)
    return MigTable(7, 8, (*rows, unknown), full_gpu_sms=132)


H100 = Gpu(
    name="h100-80gb-sxm",
    vendor="NVIDIA",
    architecture="hopper",
    compute_capability="9.0",
    memory_gb=80,
    memory_bandwidth_gbs=3350,
    memory_mib_reported=81559,
    memory_mib_usable=81090,
    sms=132,
    dense_tflops={"bf16": 989.5, "fp16": 989.5, "fp8": 1979, "int8": 1979, "fp4": None},
    native=("bf16", "fp16", "fp8", "int8"),
    nvlink_gbs=900,
    pcie_gen=5,
    mig=_mig(
        {
            "1g.10gb": (1, 1, 9984, (0, 1, 2, 3, 4, 5, 6), 16),
            "3g.40gb": (3, 4, 40448, (0, 4), 60),
        }
    ),
)
A100 = Gpu(
    name="a100-80gb-sxm",
    vendor="NVIDIA",
    architecture="ampere",
    compute_capability="8.0",
    memory_gb=80,
    memory_bandwidth_gbs=2039,
    memory_mib_reported=81920,
    memory_mib_usable=81152,
    sms=108,
    dense_tflops={"bf16": 312, "fp16": 312, "fp8": None, "int8": 624, "fp4": None},
    native=("bf16", "fp16", "int8"),
    nvlink_gbs=600,
    pcie_gen=4,
)
L40S = Gpu(
    name="l40s",
    vendor="NVIDIA",
    architecture="ada",
    compute_capability="8.9",
    memory_gb=48,
    memory_bandwidth_gbs=864,
    memory_mib_reported=46068,
    memory_mib_usable=45465,
    sms=142,
    dense_tflops={"bf16": 362.05, "fp16": 362.05, "fp8": 733, "int8": 733, "fp4": None},
    native=("bf16", "fp16", "fp8", "int8"),
    nvlink_domain="none",
    pcie_gen=4,
)
T4 = Gpu(
    name="t4",
    vendor="NVIDIA",
    architecture="turing",
    compute_capability="7.5",
    memory_gb=16,
    memory_bandwidth_gbs=320,
    memory_mib_reported=15360,
    sms=40,
    dense_tflops={"bf16": None, "fp16": 65, "int8": 130},
    native=("fp16", "int8"),
    nvlink_domain="none",
    pcie_gen=3,
)
B200 = Gpu(
    name="b200-180gb-sxm",
    vendor="NVIDIA",
    architecture="blackwell",
    compute_capability="10.0",
    memory_gb=180,
    memory_bandwidth_gbs=8000,
    memory_mib_reported=183359,
    dense_tflops={"bf16": 2250, "fp16": 2250, "fp8": 4500, "int8": 4500, "fp4": 9000},
    native=("bf16", "fp16", "fp8", "fp4", "int8"),
    nvlink_gbs=1800,
    pcie_gen=5,
)


@cache
def card(name: str) -> EngineCard:
    """An engine's card that ships."""
    text = (ENGINES / f"{name}.yaml").read_text(encoding="utf-8")
    return engine_card.parse(yaml.safe_load(text))


def vllm() -> EngineCard:
    """vLLM's."""
    return card("vllm")
