"""The schema of engine cards."""

import copy

import pytest
import yaml
from pydantic import ValidationError

from optimizer.documents import engine_card
from sizing_examples import ENGINES


@pytest.fixture
def raw():
    return yaml.safe_load((ENGINES / "vllm.yaml").read_text(encoding="utf-8"))


def test_the_shipped_card_is_valid(raw):
    card = engine_card.parse(raw)
    assert card.name == "vllm"
    assert card.batching == "in-flight"


def test_ranges_inherit_what_they_leave_out(raw):
    card = engine_card.parse(raw)
    first, last = card.versions[0].memory, card.versions[-1].memory
    assert last.block_tokens == first.block_tokens
    assert last.sampler_bytes != first.sampler_bytes


@pytest.mark.parametrize(
    "break_it",
    [
        lambda r: r.update(colour="blue"),
        lambda r: r.pop("rates"),
        lambda r: r["versions"].reverse(),
        lambda r: r["versions"][0]["memory"].pop("block_tokens"),
        lambda r: r["versions"][1].setdefault("memory", {}).update(blocks=3),
        lambda r: r["versions"][0]["memory"].update(non_torch_mib={2: 5}),
        lambda r: r["versions"][1].update(since="soon"),
        lambda r: r["precisions"][0].update(verdict="perhaps"),
        lambda r: r["efficiencies"][0].update(bandwidth=1.5),
    ],
    ids=[
        "unknown field",
        "missing part",
        "ranges out of order",
        "a figure no range gives",
        "unknown figure",
        "no figure for one GPU",
        "not a version",
        "unknown verdict",
        "faster than the datasheet",
    ],
)
def test_broken_cards_are_refused(raw, break_it):
    broken = copy.deepcopy(raw)
    break_it(broken)
    with pytest.raises(ValidationError):
        engine_card.parse(broken)
