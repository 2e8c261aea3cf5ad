"""Marginal prices in sentences and as data."""

from collections.abc import Iterator
from typing import Any

from optimizer.domain import words
from optimizer.domain.marginal import GpuWorth, MarginalPrices, RequestPrice, Slope
from optimizer.domain.units import money

BASIS = (
    "slopes of the linear program that bounds the price of every plan, where replicas may be "
    "fractions; a whole plan's price moves in steps"
)

WHOLE = (
    "That program serves everybody, and the plan of whole replicas does not: there one more GPU "
    "would serve more before it saves anything."
)


def marginal_sentences(
    found: MarginalPrices, unit: str, *, gpu_node: str | None = None, short: bool = False
) -> Iterator[str]:
    """What a little more of each would change; ``gpu_node``: only the class of that node.

    ``short``: the plan leaves somebody unserved.
    """
    if gpu_node is None:
        yield from (_request(one, unit) for one in found.requests)
    for worth in found.gpus:
        if gpu_node is None or gpu_node in worth.nodes:
            yield from _gpu(worth, unit)
    if found.requests or found.gpus:
        yield f"Marginal prices are {BASIS}."
        if short and found.serves_all:
            yield WHOLE


def marginal_data(found: MarginalPrices, unit: str) -> dict[str, Any]:
    """``explain -o json``: prices per hour for one more; null: somebody would go unserved."""
    return {
        "basis": BASIS,
        "unit": unit,
        "serves_all": found.serves_all,
        "requests_per_second": [
            {"deployment": one.deployment, **_range(one.price)} for one in found.requests
        ],
        "gpus": [
            {
                "gpu": one.gpu,
                "nodes": list(one.nodes),
                "gpus": one.gpus,
                **_range(one.saves),
                "serves": None
                if one.serves is None
                else {"low": one.serves.low, "high": one.serves.high},
            }
            for one in found.gpus
        ],
    }


def _range(slope: Slope) -> dict[str, float | None]:
    ends = {"low": slope.low, "high": slope.high}
    return {name: None if end is None else money(round(end)) for name, end in ends.items()}


def _request(one: RequestPrice, unit: str) -> str:
    low, high = one.price.low, one.price.high
    told = f"Marginal price of one more request per second of {one.deployment}"
    if high is None:
        saved = "" if low is None else f"; one less saves {_price(low, unit)}"
        return f"{told}: none, there is no room for it beside the others{saved}."
    if low is None or _price(low, unit) == _price(high, unit):
        return f"{told}: {_price(high, unit)}."
    return (
        f"{told}: {_price(low, unit)} to {_price(high, unit)} (saved by one less, paid for more)."
    )


def _gpu(worth: GpuWorth, unit: str) -> Iterator[str]:
    nodes = words.plural(len(worth.nodes), "node")
    told = f"One more {worth.gpu} beside the {worth.gpus:,} on {nodes} ({worth.nodes[0]}"
    told += ", ...)" if len(worth.nodes) > 1 else ")"
    if worth.serves is not None and worth.serves.low:
        low, high = worth.serves.low, worth.serves.high
        to = "" if high is None or f"{high:.3g}" == f"{low:.3g}" else f" to {high:.3g}"
        yield f"{told} would serve {low:.3g}{to} of a deployment's demand more."
        return
    low_saved, high_saved = worth.saves.low, worth.saves.high
    if low_saved is None:
        return
    saved = _price(low_saved, unit)
    if high_saved is None:
        yield f"{told} would save {saved}; with one less somebody goes unserved."
    elif _price(high_saved, unit) == saved:
        yield f"{told} would save {saved}."
    else:
        yield f"{told} would save {saved}; one less would cost {_price(high_saved, unit)}."


def _price(micros: float, unit: str) -> str:
    return words.price(round(micros), unit)
