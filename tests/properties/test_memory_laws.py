"""Laws of the memory model that hold for every model, engine and device."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from optimizer.documents import catalogue
from optimizer.sizing.memory import Settings, memory_budget
from optimizer.sizing.precision import scheme
from optimizer.sizing.weights import weights

KNOWN = catalogue()
ENGINES = st.sampled_from([card.name for card in KNOWN.engine_cards()])
MODELS = st.sampled_from(KNOWN.models.names())
GPU = KNOWN.gpu("h200-141gb-sxm")
BITS = ("int2", "int4", "fp8", "bf16", "fp32")
KV_BITS = ("kivi-2bit", "int4", "fp8", "bf16")


def need(model, engine, settings):
    """MiB with room for one request of full length."""
    return memory_budget(model, KNOWN.engines.get(engine), GPU, settings).least_mib


def served(name):
    return KNOWN.models.get(name)


@given(MODELS, ENGINES, st.sampled_from([1, 2, 4, 8]))
def test_memory_grows_with_bits(name, engine, tp):
    model = served(name)
    sizes = [need(model, engine, Settings(bits, tp=tp)) for bits in BITS]
    assert sizes == sorted(sizes)
    cached = [need(model, engine, Settings("bf16", kv, tp, max_model_len=65_536)) for kv in KV_BITS]
    # Engines stretch a page to the size of a linear layer's state, and round up to whole pages.
    rounding = 8 if model.linear_layers else 0
    assert all(more + rounding >= less for less, more in pairwise(cached))


@given(MODELS, ENGINES, st.integers(1, 65_536), st.integers(1, 65_536))
def test_memory_grows_with_context(name, engine, tokens, more):
    short, long = (Settings("bf16", max_model_len=n) for n in (tokens, tokens + more))
    assert need(served(name), engine, short) <= need(served(name), engine, long)


@given(MODELS, ENGINES, st.integers(1, 1024), st.integers(1, 1024))
def test_memory_grows_with_batch(name, engine, seqs, more):
    few, many = (Settings("bf16", max_num_seqs=n) for n in (seqs, seqs + more))
    assert need(served(name), engine, few) <= need(served(name), engine, many)


@given(MODELS, ENGINES, st.integers(1, 8))
def test_memory_grows_with_parameters(name, engine, more):
    model = served(name)
    larger = replace(model, vocab_size=model.vocab_size + 64 * more)
    wider = replace(model, intermediate_size=model.intermediate_size + 256 * more)
    assert need(model, engine, Settings("bf16")) <= need(larger, engine, Settings("bf16"))
    assert need(model, engine, Settings("bf16")) <= need(wider, engine, Settings("bf16"))


@given(MODELS, st.sampled_from(BITS))
def test_tensor_parallelism_never_raises_linear_weights(name, bits):
    held = [weights(served(name), scheme(bits), tp) for tp in (1, 2, 4, 8)]
    for fewer, more in pairwise(held):
        assert more.linear <= fewer.linear
        assert more.experts <= fewer.experts
        assert more.embedding + more.head <= fewer.embedding + fewer.head
