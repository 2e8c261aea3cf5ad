"""Which published weights a replica loads."""

import pytest

from optimizer.documents import catalogue
from optimizer.engines import checkpoint


@pytest.mark.parametrize(
    ("model", "precision", "published"),
    [
        ("qwen2.5-14b", "bf16", "Qwen/Qwen2.5-14B-Instruct"),
        ("qwen2.5-7b", None, "Qwen/Qwen2.5-7B-Instruct"),
        ("llama-3.1-8b", "bf16", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_a_model_loads_its_own_weights_not_those_of_a_twin(model, precision, published):
    found = catalogue().model(model)
    assert found is not None
    assert checkpoint(found[0], precision).id == published
