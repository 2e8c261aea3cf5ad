"""What the simulation tests speak of: one model, one product, one engine of the catalogue."""

from functools import cache

from optimizer.documents import Catalogue, catalogue
from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel


@cache
def known() -> Catalogue:
    return catalogue()


def gpu(name: str) -> Gpu:
    found = known().gpu(name)
    assert found is not None
    return found


def model(name: str) -> ServedModel:
    found = known().model(name)
    assert found is not None
    return found[0]


def vllm() -> EngineCard:
    return next(card for card in known().engine_cards() if card.name == "vllm")


H100 = gpu("h100-80gb-sxm")
LLAMA_8B = model("llama-3.1-8b")
