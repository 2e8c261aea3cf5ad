"""KV cache pools against hand-computed blocks and published logs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sizing_weights import models

from optimizer.domain.model import Mla, ServedModel
from optimizer.sizing.kvcache import PoolRule, kv_cache_bytes_per_token, kv_layout
from optimizer.sizing.precision import scheme
from optimizer.sizing.weights import weights
from sizing_examples import DEEPSEEK_V3, GEMMA_3_12B, GPT_OSS_20B, LLAMA_2_7B, LLAMA_8B, LLAMA_70B

GIB = 1 << 30
CHUNK = 8192


@pytest.mark.parametrize(
    ("model", "tp", "kv_bytes", "expected"),
    [
        (LLAMA_2_7B, 1, 2, 2 * 32 * 32 * 128 * 2),
        (LLAMA_8B, 1, 2, 2 * 32 * 8 * 128 * 2),
        (LLAMA_8B, 1, 1, 2 * 32 * 8 * 128),
        (LLAMA_8B, 4, 2, 2 * 32 * 2 * 128 * 2),
        (LLAMA_70B, 16, 2, 2 * 80 * 1 * 128 * 2),
        (DEEPSEEK_V3, 1, 2, 61 * (512 + 64) * 2),
        (DEEPSEEK_V3, 8, 2, 61 * (512 + 64) * 2),
    ],
    ids=["MHA", "GQA", "fp8", "GQA over 4", "copied heads", "MLA", "MLA over 8"],
)
def test_bytes_per_token(model: ServedModel, tp: int, kv_bytes: float, expected: int):
    assert kv_cache_bytes_per_token(model, kv_bytes, tp) == expected


def test_the_seed_formula_is_the_simplest_case():
    """M = P x bytes / t + B x T x (2 x L x H_kv x d_head x bytes_cache), scratch apart."""
    batch, tokens, tp = 16, 2048, 2
    params, per_token = 8_030_261_248, 2 * 32 * (8 // tp) * 128 * 2
    expected = params * 2 / tp + batch * tokens * per_token
    kv = kv_layout(LLAMA_8B, 2.0, tp).bytes_per_request(tokens, CHUNK) * batch
    norms = 65 * 4096 * 2  # on every rank, which the seed formula leaves out
    bare = replace(LLAMA_8B, max_position_embeddings=None)
    assert weights(bare, scheme("bf16"), tp).total + kv == expected + norms / 2


def test_requests_take_whole_blocks():
    layout = kv_layout(LLAMA_8B)
    assert [layout.blocks_per_request(n, CHUNK) for n in (1, 16, 17)] == [1, 1, 2]


def test_windowed_layers_form_groups_of_the_smallest_kind():
    """Gemma 3 12B: 8 full and 40 windowed layers, six groups of eight."""
    layout = kv_layout(GEMMA_3_12B)
    assert layout.block_bytes == 8 * 16 * 2 * 8 * 256 * 2
    assert [(g.span, g.count) for g in layout.groups] == [("full", 1), ("window", 5)]
    # vLLM 0.19 log on H100: 47.72 GiB of KV, 15.88 requests of 8192 tokens.
    held = layout.blocks(47.72 * GIB) / layout.blocks_per_request(8192, CHUNK)
    assert held == pytest.approx(15.88, abs=0.01)


def test_kinds_of_equal_length_share_groups_evenly():
    layout = kv_layout(GPT_OSS_20B)
    assert [(g.span, g.count) for g in layout.groups] == [("full", 1), ("window", 1)]


def test_a_window_needs_no_more_than_its_width_and_a_step():
    layout = kv_layout(GEMMA_3_12B)
    chunk = 2048
    window_blocks = (1024 - 1 + chunk + 15) // 16 + 1
    assert layout.blocks_per_request(131072, chunk) == 131072 // 16 + 5 * window_blocks


def test_linear_attention_keeps_one_block_a_request():
    hybrid = replace(LLAMA_8B, linear_layers=24, linear_state_bytes=2_000_000)
    layout = kv_layout(hybrid)
    assert [(g.span, g.count) for g in layout.groups] == [("full", 1), ("state", 3)]
    page = layout.block_bytes / 8
    assert page >= 2_000_000  # an attention page is stretched to hold a state
    tokens = layout.groups[0].block_tokens
    assert tokens % 16 == 0
    assert layout.blocks_per_request(tokens * 3, CHUNK) == 3 + 3


def test_a_published_start_with_states():
    """Qwen3.5 35B-A3B, vLLM 0.17.1, fp8 cache: 5.18 GiB held 134,144 tokens in the old wording."""
    state = 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2
    qwen = replace(
        LLAMA_8B,
        layers=40,
        attention_heads=16,
        kv_heads=2,
        head_size=256,
        linear_layers=30,
        linear_state_bytes=state,
    )
    layout = kv_layout(qwen, 1.0)
    blocks = layout.blocks(5.18 * GIB)
    assert layout.groups[0].block_tokens == 2096
    assert blocks // 4 * 2096 == 134_144


def test_old_engines_keep_the_whole_context_in_windows():
    layout = kv_layout(GEMMA_3_12B, rule=PoolRule(hybrid=False))
    assert layout.blocks_per_request(131072, 2048) == 131072 // 16


def test_an_8_bit_cache_of_sparse_latent_attention_is_656_bytes():
    mla = Mla(512, 64, 192, 256, 2048, index_head_dim=128, index_heads=32, indexer_layers=61)
    sparse = replace(DEEPSEEK_V3, mla=mla)
    assert kv_cache_bytes_per_token(sparse, 1.0) == pytest.approx(61 * (656 + 132))


@given(models(), st.integers(1, 60_000), st.integers(1, 5000))
def test_kv_grows_with_context(model: ServedModel, tokens: int, more: int):
    layout = kv_layout(model)
    assert layout.bytes_per_request(tokens + more, CHUNK) >= layout.bytes_per_request(tokens, CHUNK)


@given(models(), st.sampled_from([1, 2, 4, 8]))
def test_mla_kv_does_not_shrink_with_tensor_parallelism(model: ServedModel, tp: int):
    whole, rank = kv_cache_bytes_per_token(model), kv_cache_bytes_per_token(model, 2.0, tp)
    assert rank == whole if model.mla is not None else rank <= whole


@given(models(), st.integers(0, 1 << 38))
def test_blocks_never_exceed_the_room(model: ServedModel, room: int):
    layout = kv_layout(model)
    assert layout.blocks(room) * layout.block_bytes <= room
