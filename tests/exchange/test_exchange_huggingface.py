"""Importing models: configs of many architectures, exact weights, quantisation, refusals."""

import json
import struct
import sys
import types

import pytest

from optimizer.documents import catalogue
from optimizer.documents.catalogue import names_checkpoint
from optimizer.exchange.hf_config import FAMILIES, CannotImport, facts_of
from optimizer.exchange.huggingface import (
    card_of,
    import_huggingface,
    model_card,
    remote_card,
)
from optimizer.exchange.imported import CannotRead, File, Input
from optimizer.sizing.kvcache import kv_cache_bytes_per_token
from optimizer.sizing.precision import scheme
from optimizer.sizing.weights import parameters, weights

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
    },
}


def shape(model_type, hidden, inner, layers, heads, kv, vocab, **more):
    """A config in the usual spelling."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        **more,
    }


def experts(count, top, width, **more):
    """The experts of a config."""
    return {"num_experts": count, "num_experts_per_tok": top, "moe_intermediate_size": width} | more


MLA = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "kv_lora_rank": 512}

# Configs as published and the parameters (billions) their publishers name.
PUBLISHED = [
    (LLAMA, 8.03),
    (shape("mistral", 4096, 14336, 32, 32, 8, 32000), 7.24),
    (
        shape("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2),
        46.7,
    ),
    (shape("qwen2", 3584, 18944, 28, 28, 4, 152064), 7.62),
    (shape("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128), 8.19),
    (shape("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, **experts(128, 8, 768)), 30.5),
    (
        shape(
            *("qwen2_moe", 2048, 5632, 24, 16, 16, 151936),
            **experts(60, 4, 1408, shared_expert_intermediate_size=5632),
        ),
        14.3,
    ),
    (shape("gemma", 3072, 24576, 28, 16, 16, 256000, head_dim=256), 8.54),
    (shape("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256, sliding_window=4096), 9.24),
    (shape("gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256, sliding_window=512), 1.0),
    (shape("phi3", 3072, 8192, 32, 32, 32, 32064), 3.82),
    (shape("phi", 2560, 10240, 32, 32, 32, 51200), 2.78),
    (shape("granite", 4096, 12800, 40, 32, 8, 49155, tie_word_embeddings=True), 8.17),
    (shape("cohere", 8192, 22528, 40, 64, 64, 256000), 35.0),
    (shape("cohere2", 4096, 14336, 32, 32, 8, 256000, sliding_window=4096), 8.03),
    (shape("olmo2", 4096, 11008, 32, 32, 32, 100352), 7.30),
    (shape("glm4", 4096, 13696, 40, 32, 2, 151552, head_dim=128), 9.4),
    (shape("starcoder2", 6144, 24576, 40, 48, 4, 49152, tie_word_embeddings=False), 16.0),
    (shape("gpt_neox", 6144, 24576, 44, 64, 64, 50432), 20.6),
    (shape("stablelm", 2560, 6912, 32, 32, 32, 50304), 2.8),
    (
        shape(
            *("gpt_oss", 2880, 2880, 24, 64, 8, 201088),
            head_dim=64,
            sliding_window=128,
            num_local_experts=32,
            num_experts_per_tok=4,
        ),
        20.9,
    ),
    (
        shape(
            *("deepseek_v3", 7168, 18432, 61, 128, 128, 129280),
            n_routed_experts=256,
            num_experts_per_tok=8,
            moe_intermediate_size=2048,
            n_shared_experts=1,
            first_k_dense_replace=3,
            q_lora_rank=1536,
            **MLA,
        ),
        671.0,
    ),
    (
        shape(
            *("deepseek_v2", 2048, 10944, 27, 16, 16, 102400),
            n_routed_experts=64,
            num_experts_per_tok=6,
            moe_intermediate_size=1408,
            n_shared_experts=2,
            first_k_dense_replace=1,
            **MLA,
        ),
        15.7,
    ),
    (
        shape(
            *("llama4_text", 5120, 8192, 48, 40, 8, 202048),
            head_dim=128,
            intermediate_size_mlp=16384,
            num_local_experts=16,
            num_experts_per_tok=1,
            interleave_moe_layer_step=1,
        ),
        107.0,
    ),
    (
        shape(
            *("qwen3_next", 2048, 5120, 48, 16, 2, 151936),
            head_dim=256,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
            linear_conv_kernel_dim=4,
            **experts(512, 10, 512, shared_expert_intermediate_size=512),
        ),
        79.7,
    ),
    (
        shape(
            *("nemotron_h", 4480, 15680, 56, 40, 8, 131072),
            head_dim=128,
            hybrid_override_pattern="M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
            mamba_num_heads=128,
            mamba_head_dim=80,
            n_groups=8,
            ssm_state_size=128,
            conv_kernel=4,
        ),
        8.9,
    ),
    (
        {
            "model_type": "falcon",
            "hidden_size": 4544,
            "num_hidden_layers": 32,
            "num_attention_heads": 71,
            "multi_query": True,
            "vocab_size": 65024,
        },
        6.9,
    ),
    (
        {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257},
        1.55,
    ),
    (
        {
            "model_type": "bloom",
            "hidden_size": 4096,
            "n_layer": 30,
            "num_attention_heads": 32,
            "vocab_size": 250880,
        },
        7.07,
    ),
    (
        {
            "model_type": "opt",
            "hidden_size": 5120,
            "ffn_dim": 20480,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "vocab_size": 50272,
        },
        12.85,
    ),
    (
        {"model_type": "mpt", "d_model": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 50432},
        6.65,
    ),
]


def served(config, **more):
    """The model of a config, through the document of its card."""
    from optimizer.documents.catalogue import _built

    return _built(card_of(config, "imported", **more))


@pytest.mark.parametrize(
    ("config", "billions"), PUBLISHED, ids=[c["model_type"] for c, _ in PUBLISHED]
)
def test_architectures_have_the_parameters_their_publishers_name(config, billions):
    model, packed = served(config)
    assert parameters(model).total / 1e9 == pytest.approx(billions, rel=0.02)
    assert packed is None
    assert kv_cache_bytes_per_token(model) > 0


def test_at_least_25_architectures_are_checked_and_all_named_are_known():
    checked = {config["model_type"] for config, _ in PUBLISHED}
    assert len(checked) >= 25
    assert checked <= set(FAMILIES)


def test_an_imported_config_equals_the_card_of_the_same_model():
    mine, card = served(LLAMA)[0], catalogue().model("llama-3.1-8b")[0]
    for name in ("layers", "hidden_size", "kv_heads", "head_size", "max_position_embeddings"):
        assert getattr(mine, name) == getattr(card, name)
    assert weights(mine, scheme("bf16")) == weights(card, scheme("bf16"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": 4096}, "no model_type"),
        ({"model_type": "rwkv7", "hidden_size": 1}, '"rwkv7" is not known here'),
        ({"model_type": "llama", "hidden_size": 4096}, "num_hidden_layers, num_attention_heads"),
        (
            shape("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8),
            "num_experts_per_tok",
        ),
        (shape("nemotron_h", 4480, 15680, 56, 40, 8, 131072), "hybrid_override_pattern"),
        (shape("gemma3", 1, 1, 2, 1, 1, 1, sliding_window=4, layer_types=["odd", "odd"]), "odd"),
        (LLAMA | {"quantization_config": {"quant_method": "exl9"}}, 'method "exl9" is not known'),
    ],
    ids=[
        "no type",
        "unknown type",
        "no layers",
        "no top k",
        "no pattern",
        "odd layers",
        "odd method",
    ],
)
def test_what_cannot_be_imported_names_what_is_missing(config, said):
    with pytest.raises(CannotImport, match=said):
        card_of(config, "x")


@pytest.mark.parametrize(
    ("said", "precision", "group", "kv"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "int4", 64, None),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "w8a16", None, None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", 128, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", None, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb-nf4", None, None),
        ({"quant_method": "mxfp4"}, "mxfp4", None, None),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"},
            *("nvfp4", None, "fp8"),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "int"},
                        "input_activations": {"num_bits": 8},
                    }
                },
            },
            *("int8", None, None),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}
                },
                "kv_cache_scheme": {"num_bits": 8, "type": "float"},
            },
            *("int4", 32, "fp8"),
        ),
    ],
    ids=["gptq", "gptq8", "awq", "fp8", "bnb", "mxfp4", "modelopt", "w8a8", "w4a16"],
)
def test_quantisation_is_read(said, precision, group, kv):
    model, packed = served(LLAMA | {"quantization_config": said})
    assert (packed, model.quant_group, model.checkpoint_kv_precision) == (precision, group, kv)
    assert (
        weights(model, scheme(precision, group)).total < 0.75 * weights(model, scheme("bf16")).total
    )


def test_ignored_layers_stay_in_sixteen_bit():
    """Half of the layers' MLPs by name, every attention by pattern."""
    names = [f"model.layers.{n}.mlp.{p}_proj" for n in range(16) for p in ("gate", "up", "down")]
    said = {
        "quant_method": "fp8",
        "modules_to_not_convert": ["re:.*self_attn.*", "lm_head", *names],
    }
    model, _ = served(LLAMA | {"quantization_config": said})
    assert dict(model.kept_16bit) == {"attention": 1.0, "mlp": 0.5}
    p, found = parameters(model), weights(model, scheme("fp8"))
    assert found.linear == pytest.approx(2 * p.attention + 1.5 * p.mlp)


def test_smaller_groups_take_more_scales():
    fine = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    model, _ = served(LLAMA | {"quantization_config": fine})
    coarse, _ = served(LLAMA | {"quantization_config": fine | {"group_size": 128}})
    sizes = [weights(m, scheme("int4", m.quant_group)).linear for m in (model, coarse)]
    assert sizes[0] - sizes[1] == pytest.approx(6_979_321_856 * 2.5 * (1 / 32 - 1 / 128))


def test_yarn_multiplies_the_trained_length():
    scaled = shape("qwen2", 3584, 18944, 28, 28, 4, 152064, max_position_embeddings=32768)
    scaled["rope_scaling"] = {"type": "yarn", "factor": 4.0}
    facts = facts_of(scaled)
    assert facts["max_position_embeddings"] == 131072
    assert facts["original_max_position_embeddings"] == 32768
    assert facts["rope_scaling"] == "yarn"
    assert "rope_scaling" not in facts_of(LLAMA)


def test_windows_are_counted_by_layer_types():
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 4
    config = shape("gemma3_text", 640, 2048, 24, 4, 1, 1000, sliding_window=512, layer_types=kinds)
    model, _ = served(config)
    assert (model.sliding_layers, model.full_attention_layers) == (20, 4)
    assert model.local_rope


def test_a_vision_tower_is_estimated_and_marked():
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "spatial_merge_size": 2}
    tower |= {"model_type": "qwen2_5_vl", "out_hidden_size": 3584}
    text = shape("qwen2_5_vl_text", 3584, 18944, 28, 28, 4, 152064)
    card = card_of({"model_type": "qwen2_5_vl", "text_config": text, "vision_config": tower}, "x")
    assert card["vision_params_b"] == pytest.approx(0.676, rel=0.02)
    assert "vision_params_b" in card["unverified"]


def test_a_folder_gives_exact_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    index = {"metadata": {"total_size": 16_060_522_496 + 1000}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model, _ = catalogue().model(str(tmp_path))
    plain = served(LLAMA)[0]
    difference = weights(model, scheme("bf16")).total - weights(plain, scheme("bf16")).total
    assert difference == 1000
    assert weights(model, scheme("fp8")).total == weights(plain, scheme("fp8")).total
    assert model.aliases == (str(tmp_path),)


def test_headers_of_safetensors_are_added_up(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    for name, end in (("model-00001.safetensors", 700), ("model-00002.safetensors", 300)):
        header = json.dumps(
            {"t": {"dtype": "BF16", "shape": [1], "data_offsets": [0, end]}}
        ).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header)
    assert model_card(tmp_path)["checkpoint_bytes"] == 1000


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": 7}'])
def test_broken_files_are_refused_with_a_reason(tmp_path, text):
    file = tmp_path / "broken.json"
    file.write_text(text)
    known = catalogue()
    assert known.model(str(file)) is None
    assert known.checkpoint_fault(str(file))


def test_what_contradicts_itself_is_refused(tmp_path):
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(LLAMA | {"num_hidden_layers": "many"}))
    assert "num_hidden_layers" in catalogue().checkpoint_fault(str(file))


@pytest.mark.parametrize(
    ("spelling", "source"),
    [
        ("llama-3.1-8b", False),
        ("meta-llama/Llama-3.1-8B", False),
        ("./here", True),
        ("hf:a/b", True),
    ],
)
def test_sources_are_told_from_names(spelling, source):
    assert names_checkpoint(spelling) is source


def test_names_on_the_hub_need_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CannotImport, match=r"fleetslice\[hub\]"):
        remote_card("a/b")


def test_names_on_the_hub_fetch_config_and_index(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    class Missing(Exception):
        pass

    def download(name, file):
        if not (tmp_path / file).exists():
            raise Missing(file)
        return str(tmp_path / file)

    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = download
    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = Missing
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    card = remote_card("meta/Llama-8B")
    assert card["name"] == "llama-8b"
    assert card["aliases"] == ["meta/Llama-8B"]
    assert "checkpoint_bytes" not in card


@pytest.mark.parametrize(
    ("scaling", "table"),
    [
        ({"rope_type": "linear", "factor": 8.0}, 8 * 131072),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, 4 * 131072),
        ({"rope_type": "llama3", "factor": 8.0}, None),
    ],
)
def test_rotary_tables_are_as_long_as_engines_build_them(scaling, table):
    """Gemma 3 12B weighs 0.44 GiB more than its parameters in vLLM's log: the linear table."""
    config = shape("gemma3_text", 3840, 15360, 48, 16, 8, 262208, sliding_window=1024)
    config |= {"max_position_embeddings": 131072, "rope_scaling": scaling}
    facts = facts_of(config)
    assert facts.get("rotary_positions") == table
    assert facts["max_position_embeddings"] == 131072


def test_what_a_nested_config_leaves_out_is_its_class_default():
    """As google/gemma-3-4b-it and llava-hf/llava-1.5-7b-hf are published."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    text |= {"num_hidden_layers": 34, "sliding_window": 1024}
    text |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    mine = served({"model_type": "gemma3", "text_config": text})[0]
    card = catalogue().model("gemma-3-4b")[0]
    assert parameters(mine).total == parameters(card).total - card.vision_params
    assert (mine.sliding_layers, mine.rotary_positions) == (card.sliding_layers, 8 * 131072)
    llava = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    assert parameters(served(llava)[0]).total / 1e9 == pytest.approx(6.74, rel=0.01)


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (shape("qwen", 5120, 27392, 40, 40, 40, 152064), 14.2),
        (
            {
                "model_type": "chatglm",
                "hidden_size": 4096,
                "ffn_hidden_size": 13696,
                "num_layers": 40,
                "num_attention_heads": 32,
                "multi_query_attention": True,
                "multi_query_group_num": 2,
                "padded_vocab_size": 151552,
                "seq_length": 131072,
                "kv_channels": 128,
            },
            9.4,
        ),
        (
            shape(
                "exaone4",
                5120,
                27392,
                64,
                40,
                8,
                102400,
                sliding_window=4096,
                sliding_window_pattern="LLLG",
            ),
            32.0,
        ),
    ],
    ids=["qwen", "chatglm", "exaone4"],
)
def test_spellings_of_older_configs(config, billions):
    assert parameters(served(config)[0]).total / 1e9 == pytest.approx(billions, rel=0.02)


def given(**texts):
    """Files of a folder named ``mine`` as the importer gets them."""
    files = tuple(
        File(f"mine/{name}.json", json.dumps(data), "mine") for name, data in texts.items()
    )
    return Input(files=files, gpus=(), parse=lambda file: [json.loads(file.text)])


def test_a_config_and_its_index_become_a_model_document():
    index = {"metadata": {"total_size": 1234}, "weight_map": {}}
    (found,) = import_huggingface(given(config=LLAMA, index=index, generation_config={})).documents
    assert (found.kind, found.data["name"], found.data["checkpoint_bytes"]) == (
        "Model",
        "mine",
        1234,
    )
    assert found.data["num_hidden_layers"] == 32


@pytest.mark.parametrize(
    ("data", "said"), [({}, "no config.json"), ({"model_type": "rwkv7"}, "mine/config.json:1: ")]
)
def test_what_is_no_config_is_refused(data, said):
    with pytest.raises(CannotRead, match=said):
        import_huggingface(given(config=data))
