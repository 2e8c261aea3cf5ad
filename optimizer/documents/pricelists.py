"""Prices documents to the domain, and their prices in place of a fleet's own."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from optimizer.documents import look
from optimizer.documents.catalogue import Catalogue
from optimizer.documents.faults import Fault, shown
from optimizer.documents.fleets import FleetReading, Say, build_node, node_faults, unknown_product
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.fleet import NodeDoc
from optimizer.documents.schema.prices import MOST_NODES, OfferDoc, PricesDoc
from optimizer.documents.wording import complaints
from optimizer.domain.offer import Commitment, Discount, Offer, PriceList
from optimizer.domain.units import MICROS, PPM, scaled

_OF_NODES = frozenset(NodeDoc.model_fields) & frozenset(OfferDoc.model_fields) - {
    "price_per_gpu_hour"
}


def read_prices(
    document: RawDocument, catalogue: Catalogue, fleet: FleetReading | None
) -> tuple[PriceList | None, list[Fault]]:
    """The price list, or every fault of it."""
    found = complaints(PricesDoc, document.value)
    faults = [document.fault(path, message, key=key) for path, message, key in found]
    faults += _whole_faults(document, catalogue, fleet)
    names: dict[str, int] = {}
    for path, entry in look.each(document.value, "offers[]"):
        if isinstance(entry, dict):
            say = partial(_said, document, path)
            faults += _offer_faults(entry, catalogue, say)
            faults += _name_faults(entry, path[1], names, fleet, say)
    if faults:
        return None, faults
    said = PricesDoc.model_validate(document.value)
    offers = tuple(_offer(doc, catalogue) for doc in said.offers)
    faults = [
        document.fault(("offers", index, "discounts"), message)
        for index, offer in enumerate(offers)
        for message in _falling(offer)
    ]
    if faults:
        return None, faults
    priced = {
        gpu.name: scaled(price, MICROS)
        for name, price in said.gpus.items()
        if (gpu := catalogue.gpu(name)) is not None
    }
    gpus = tuple(sorted(priced.items()))
    return PriceList(said.name or "prices", said.currency, offers, gpus), []


def repriced(fleet: RawDocument, prices: RawDocument, catalogue: Catalogue) -> RawDocument:
    """The Fleet document as if it stated the prices under ``gpus`` of a Prices document."""
    known = dict(_gpus(prices, catalogue))

    def stated(entry: Any) -> Any:
        gpu = catalogue.gpu(look.text(entry, "gpu") or "")
        price = None if gpu is None else known.get(gpu.name)
        return entry if price is None else {**entry, "price_per_gpu_hour": price}

    nodes = fleet.value.get("nodes")
    if not known or not isinstance(nodes, list):
        return fleet
    return replace(fleet, value={**fleet.value, "nodes": [stated(entry) for entry in nodes]})


def told(prices: PriceList, file: str, fleet: FleetReading | None) -> Iterator[str]:
    """What reader should know: whose prices are not the fleet's, and which are of no use."""
    there = set(fleet.products) if fleet is not None else set()
    used = [name for name, _ in prices.gpus if name in there]
    unused = [name for name, _ in prices.gpus if name not in there]
    if used:
        yield f"the prices of {', '.join(used)} are those of {file}"
    if unused and fleet is not None:
        yield f"{file} has prices of {', '.join(unused)}, of which the fleet has none"


def _gpus(prices: RawDocument, catalogue: Catalogue) -> Iterator[tuple[str, float]]:
    """The prices under ``gpus`` that make sense."""
    said = prices.value.get("gpus")
    for name, price in said.items() if isinstance(said, dict) else ():
        gpu = catalogue.gpu(name)
        sound = isinstance(price, int | float) and not isinstance(price, bool) and price >= 0
        if gpu is not None and sound:
            yield gpu.name, price


def _said(
    document: RawDocument,
    base: tuple[str | int, ...],
    path: Any,
    message: str,
    *,
    key: bool = False,
) -> Fault:
    return document.fault((*base, *path), message, key=key)


def _whole_faults(
    document: RawDocument, catalogue: Catalogue, fleet: FleetReading | None
) -> Iterator[Fault]:
    """What is wrong with the list as a whole."""
    raw = document.value
    if not raw.get("offers") and not raw.get("gpus"):
        message = "holds no price; give nodes under offers, or products under gpus"
        yield document.fault((), message)
    gpus = raw.get("gpus")
    for name in gpus if isinstance(gpus, dict) else ():
        if catalogue.gpu(name) is None:
            yield document.fault(("gpus", name), unknown_product(name, catalogue), key=True)
    if fleet is None:
        return
    theirs = look.text(fleet.document.value, "currency") or "USD"
    ours = look.text(raw, "currency") or "USD"
    if ours != theirs:
        message = f'"{shown(ours)}", but the fleet\'s prices are in {shown(theirs)}; use one'
        yield document.fault(("currency",), message)


def _offer_faults(entry: dict[str, Any], catalogue: Catalogue, say: Say) -> Iterator[Fault]:
    """What a schema cannot see in one offer."""
    spelling = look.text(entry, "gpu")
    gpu = catalogue.gpu(spelling) if spelling else None
    if spelling and gpu is None:
        yield say(("gpu",), unknown_product(spelling, catalogue))
    yield from node_faults(entry, gpu, 1, say)
    given = [f for f in ("price_per_gpu_hour", "price_per_node_hour") if look.given(entry, f)]
    if not given:
        yield say((), "has no price; give price_per_gpu_hour or price_per_node_hour")
    for more in given[1:]:
        yield say((more,), f"goes not together with {given[0]}; keep one of the two", key=True)
    least, most = look.whole(entry, "nodes.min"), look.whole(entry, "nodes.max") or MOST_NODES
    if least is not None and least > most:
        yield say(("nodes", "min"), f"must be at most max, {most}, got {least}")
    for what, field in (("discounts", "from_nodes"), ("commitments", "months")):
        seen = set[int]()
        for path, number in look.each(entry, f"{what}[].{field}"):
            if isinstance(number, int) and number in seen:
                yield say(path, f"a second entry for {number}; leave one out")
            elif isinstance(number, int):
                seen.add(number)


def _name_faults(
    entry: dict[str, Any],
    index: str | int,
    names: dict[str, int],
    fleet: FleetReading | None,
    say: Say,
) -> Iterator[Fault]:
    """A name that another offer has, or whose nodes would be named as nodes of the fleet."""
    name = look.text(entry, "name")
    if name is None:
        return
    if name in names:
        message = f'"{shown(name)}" is the name of offers[{names[name]}] too; choose another name'
        yield say(("name",), message)
    names.setdefault(name, int(index))
    count = look.whole(entry, "nodes.max") or MOST_NODES
    mine = (f"{name}-{n}" for n in range(1, min(count, 10_000) + 1))
    there = next((node for node in mine if fleet is not None and node in fleet.nodes), None)
    if there is not None:
        message = f'its nodes would be named as "{shown(there)}" of the fleet; choose another name'
        yield say(("name",), message)


def _falling(offer: Offer) -> Iterator[str]:
    """Discounts with which more nodes would cost less."""
    steps = [d.nodes for d in offer.discounts if d.nodes - 1 in offer.counts]
    for count in sorted(steps):
        if offer.total_micros(count) < offer.total_micros(count - 1):
            yield f"{count} nodes would cost less than {count - 1}; give a smaller percent"
            return


def _offer(doc: OfferDoc, catalogue: Catalogue) -> Offer:
    gpu = catalogue.gpu(doc.gpu)
    assert gpu is not None
    fields = {
        name: getattr(doc, name) for name in sorted(_OF_NODES) if name in doc.model_fields_set
    }
    by_gpu, by_node = doc.price_per_gpu_hour or 0.0, doc.price_per_node_hour
    each = scaled(by_gpu, MICROS) * doc.gpus
    return Offer(
        node=build_node(NodeDoc.model_validate(fields), doc.name, gpu),
        price_micros=each if by_node is None else scaled(by_node, MICROS),
        most=doc.nodes.max,
        least=doc.nodes.min,
        discounts=tuple(sorted(_discounts(doc), key=lambda d: d.nodes)),
        commitments=tuple(sorted(_commitments(doc), key=lambda c: c.months)),
    )


def _discounts(doc: OfferDoc) -> Iterator[Discount]:
    for one in doc.discounts:
        yield Discount(one.from_nodes, scaled(one.percent / 100, PPM))


def _commitments(doc: OfferDoc) -> Iterator[Commitment]:
    for one in doc.commitments:
        yield Commitment(one.months, scaled(one.percent / 100, PPM))
