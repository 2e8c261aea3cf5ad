"""JSON schemas: one for each kind, and they take what the reader takes."""

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from optimizer.documents.schema import KINDS, schema_of

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "Fleet": ["tests/data/good/fleet.yaml", "clusters/lab-64.yaml"],
    "State": ["tests/data/good/state.yaml"],
    "Workloads": ["tests/data/good/workloads.yaml", "workloads/prod.yaml"],
    "Scenarios": [
        "tests/data/good/scenarios.yaml",
        "workloads/lab-64.scenarios.yaml",
        "workloads/lab-64.families.yaml",
    ],
    "Prices": ["tests/data/good/prices.yaml", "clusters/offers.prices.yaml"],
    "Gpu": ["clusters/gpus/h100-80gb-sxm.yaml", "clusters/gpus/l40s.yaml"],
    "Model": ["workloads/models/llama-3.1-8b.yaml", "workloads/models/deepseek-v3.yaml"],
    "Engine": ["workloads/engines/vllm.yaml"],
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_schema_takes_what_the_reader_takes(kind):
    schema = schema_of(kind).model_json_schema()
    Draft202012Validator.check_schema(schema)
    judge = Draft202012Validator(schema)
    for example in EXAMPLES.get(kind, []):
        document = yaml.safe_load((ROOT / example).read_text("utf-8"))
        assert [e.message for e in judge.iter_errors(document)] == []
        assert not judge.is_valid({**document, "no such field": 1})
    assert schema["properties"]["kind"]["const"] == kind
