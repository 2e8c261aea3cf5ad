"""Command lines of the engines: what is always said, what is never guessed."""

from dataclasses import replace

import pytest

from builders import replica, use
from optimizer.domain.config import ReplicaConfig
from optimizer.domain.model import ServedModel
from optimizer.engines import COMMANDS, CannotRun, Rendezvous, Settings, checkpoint, command

CONFIG = ReplicaConfig(
    engine="vllm",
    engine_version="0.21.0",
    precision="bf16",
    kv_precision="bf16",
    max_model_len=8192,
    max_num_seqs=64,
    memory_fraction=0.87,
)
LLAMA = ServedModel(
    name="llama",
    layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    attention_heads=32,
    kv_heads=8,
    head_size=128,
    vocab_size=128256,
    tied_embeddings=False,
    aliases=("meta-llama/Llama-3.1-8B-Instruct",),
    repacks=(("someone/Llama-AWQ", "int4"), ("someone/Llama-FP8", "fp8")),
)


def flags(argv: tuple[str, ...]) -> dict[str, str]:
    """The arguments that follow a flag, by flag."""
    return {a: b for a, b in zip(argv, argv[1:] + ("",), strict=True) if a.startswith("--")}


def vllm(config: ReplicaConfig = CONFIG, product: str = "h100-80gb-sxm", **settings) -> dict:
    return flags(
        command(
            replica("chat/0", "n0/0", config=config), product, "org/m", 1, Settings(**settings)
        ).argv
    )


def test_vllm_says_memory_and_batch_limits():
    argv = command(replica("chat/0", "n0/0", config=CONFIG), "h100-80gb-sxm", "org/m", 8123).argv
    assert argv[:3] == ("vllm", "serve", "org/m")
    said = flags(argv)
    assert said["--gpu-memory-utilization"] == "0.87"
    assert said["--max-model-len"] == "8192"
    assert said["--max-num-seqs"] == "64"
    assert said["--tensor-parallel-size"] == "1"
    assert said["--served-model-name"] == "chat"
    assert (said["--host"], said["--port"]) == ("127.0.0.1", "8123")
    assert (said["--dtype"], said["--kv-cache-dtype"]) == ("bfloat16", "bfloat16")
    assert "--quantization" not in said


@pytest.mark.parametrize("engine", sorted(COMMANDS))
def test_every_engine_limits_memory_batch_and_length_and_listens_on_loopback(engine):
    config = replace(CONFIG, engine=engine)
    argv = command(
        replica("chat/0", "n0/0", config=config), "h100", "org/m", None, Settings(device_mib=80000)
    ).argv
    assert {"0.87", "64", "8192", "127.0.0.1", "{port}", "org/m"} <= set(argv)


def test_the_port_is_filled_in_where_the_engine_runs():
    mark = command(replica("chat/0", "n0/0", config=CONFIG), "h100", "org/m", None)
    assert flags(mark.on(4321).argv)["--port"] == "4321"


@pytest.mark.parametrize(
    ("product", "device_mib", "tokens"),
    [
        ("h100-80gb-sxm", 81079, "8192"),
        ("h100-80gb-sxm", 9984, "2048"),  # in a MIG slice, whatever NVML says of the parent
        ("a100-80gb-sxm", 81079, "2048"),
        ("l40s", None, "2048"),
    ],
)
def test_vllm_says_the_batched_tokens_of_the_visible_device(product, device_mib, tokens):
    assert vllm(product=product, device_mib=device_mib)["--max-num-batched-tokens"] == tokens


def test_batched_tokens_that_sizing_counted_with_win():
    said = vllm(device_mib=81079, max_num_batched_tokens=4096)
    assert said["--max-num-batched-tokens"] == "4096"


@pytest.mark.parametrize(
    ("precision", "stored", "quantization"),
    [("fp8", "bf16", "fp8"), ("fp8", "fp8", None), ("int4", "int4", None), ("fp8", None, None)],
)
def test_vllm_quantises_at_load_only_what_is_not_stored_so(precision, stored, quantization):
    said = vllm(replace(CONFIG, precision=precision), checkpoint_precision=stored)
    assert said.get("--quantization") == quantization


def test_a_precision_that_only_another_checkpoint_has_is_refused():
    with pytest.raises(CannotRun, match="name a checkpoint in int4"):
        vllm(replace(CONFIG, precision="int4"), checkpoint_precision="bf16")


@pytest.mark.parametrize(("kv", "said"), [("fp8", "fp8"), ("bf16", "bfloat16"), (None, "auto")])
def test_vllm_kv_cache_type(kv, said):
    assert vllm(replace(CONFIG, kv_precision=kv))["--kv-cache-dtype"] == said


def test_older_vllm_has_no_word_for_a_bf16_cache_or_a_runner():
    said = vllm(replace(CONFIG, engine_version="0.9.1"), task="embed")
    assert said["--kv-cache-dtype"] == "auto"
    assert said["--task"] == "embed"
    assert vllm(task="embed")["--runner"] == "pooling"


def test_a_share_of_a_gpu_is_a_fraction_of_the_whole_device():
    sharing = replica("chat/0", "n0/0", share=use(20), config=replace(CONFIG, memory_fraction=None))
    argv = command(sharing, "l40s", "org/m", 1, Settings(device_mib=46068)).argv
    assert flags(argv)["--gpu-memory-utilization"] == "0.444"


def test_a_share_of_unknown_size_is_refused():
    sharing = replica("chat/0", "n0/0", share=use(20), config=replace(CONFIG, memory_fraction=None))
    with pytest.raises(CannotRun, match="shares a GPU"):
        command(sharing, "l40s", "org/m", 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"engine": None}, "names no engine"),
        ({"engine": "llama-cpp"}, "no command line for engine llama-cpp"),
        ({"kv_precision": "kivi-2bit"}, "no KV cache in kivi-2bit"),
        ({"engine": "tgi", "pipeline_parallel": 2}, "no pipeline parallelism"),
        ({"engine": "tensorrt-llm", "kv_precision": "fp8"}, "not supported yet"),
    ],
)
def test_what_an_engine_cannot_be_told_is_refused(change, why):
    with pytest.raises(CannotRun, match=why):
        vllm(replace(CONFIG, **change))


def test_a_model_id_is_never_a_flag():
    with pytest.raises(CannotRun, match="no model id"):
        command(replica("chat/0", "n0/0", config=CONFIG), "h100", "--trust-remote-code", 1)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("bf16", ("meta-llama/Llama-3.1-8B-Instruct", "bf16")),
        ("int4", ("someone/Llama-AWQ", "int4")),
        ("fp8", ("someone/Llama-FP8", "fp8")),
        ("bnb-nf4", ("meta-llama/Llama-3.1-8B-Instruct", "bf16")),
    ],
)
def test_the_checkpoint_of_a_precision(precision, expected):
    found = checkpoint(LLAMA, precision)
    assert (found.id, found.precision) == expected


def test_a_model_nobody_published_has_no_checkpoint():
    with pytest.raises(CannotRun, match="no Hugging Face id"):
        checkpoint(replace(LLAMA, aliases=(), repacks=()), "bf16")


WIDE = replace(CONFIG, tensor_parallel=2, pipeline_parallel=2)
FOUR = ("n0/0", "n0/1", "n1/0", "n1/1")


@pytest.mark.parametrize(
    ("engine", "lead", "other"),
    [
        (
            "vllm",
            "--nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --master-port 29500",
            "--nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --master-port 29500 --headless",
        ),
        (
            "sglang",
            "--nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.1:29500",
            "--nnodes 2 --node-rank 1 --dist-init-addr 10.0.0.1:29500",
        ),
    ],
)
def test_ranks_of_a_pipeline_over_nodes_meet(engine, lead, other):
    wide = replica("big/0", *FOUR, config=replace(WIDE, engine=engine, engine_version=None))
    said = command(wide, "h100", "org/m", None, Settings(device_mib=80000))
    ranks = [said.on(8000, Rendezvous("10.0.0.1", 29500, rank)).argv for rank in (0, 1)]
    assert [" ".join(argv).partition("--nnodes")[2] for argv in ranks] == [
        text.removeprefix("--nnodes") for text in (lead, other)
    ]


@pytest.mark.parametrize(
    ("engine", "said", "told"),
    [
        ("vllm", {"engine_version": "0.11.0"}, "vllm 0.11.0 has no --nnodes"),
        ("sglang", {"tensor_parallel": 4, "pipeline_parallel": 1}, "do not divide over them"),
        ("tensorrt-llm", {}, "under MPI only"),
        ("tgi", {}, "no pipeline parallelism"),
    ],
)
def test_engines_that_cannot_span_nodes_say_so(engine, said, told):
    wide = replica("big/0", *FOUR, config=replace(WIDE, engine=engine, **said))
    with pytest.raises(CannotRun, match=told):
        command(wide, "h100", "org/m", None, Settings(device_mib=80000))
