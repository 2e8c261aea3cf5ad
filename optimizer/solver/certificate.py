"""What proves a price: how much a replica is worth on each kind of GPU, by the duals.

Whatever the values are, no placement that serves everybody costs less than what the cheapest mixes
are worth, less what GPUs can hold above their price: each used GPU costs its price and holds at
most the best filling. ``verify`` does this sum again from the documents.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from math import floor, inf, isinf
from typing import Any

import numpy as np

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import Gpu, Use
from optimizer.domain.problem import capacity_mrps
from optimizer.solver.columns import mig_patterns
from optimizer.solver.formulation import Copies
from optimizer.solver.master import Bound, Master
from optimizer.solver.packing import Packer, surrogate
from optimizer.solver.pricing import Asked, Item, cheapest_mix

FEW_SHARES = 300  # tried for a filling worth nearly what the weights allow
NEARLY = 1e-4  # weights of the dimensions prove that much too little at most

Kind = tuple[str, int]  # product and price of a GPU
Values = dict[Kind, dict[object, float]]


def certificate(master: Master, bound: Bound) -> Mapping[str, Any]:
    """Values by kind of GPU (micros per hour), and the bound that they prove."""
    tried = [_values(master, bound, pick) for pick in (min, max)]
    proofs = [_mixes(master, some) - _scarcity(master, some) for some in tried]
    proved = floor(max(proofs) - 1e-3)
    values = tried[proofs.index(max(proofs))]
    products = {site.gpu.name: site.gpu for site in master.f.sites}
    return {
        "objective": "price_per_hour",
        "holds": "while all demand is met",
        "bound_micros": max(0, proved),
        "values": [
            _plain(kind, some, _weights(products[kind[0]], some))
            for kind, some in sorted(values.items())
        ],
    }


def _kinds(master: Master, c: Copies) -> list[Kind]:
    """The kinds of GPU that it may lie on; for a pipeline all of its product, as in the check."""
    site = master.f.sites[c.site]
    if c.parts:
        return _of_product(master, site.gpu.name)
    return [(site.gpu.name, site.price_micros)]


def _of_product(master: Master, product: str) -> list[Kind]:
    """The kinds of GPUs of a product that are given out whole."""
    sites = [s for s in master.f.sites if s.gpu.name == product]
    whole = [s for s in sites if Sharing.WHOLE in s.nodes[0].sharing]
    return list(dict.fromkeys((s.gpu.name, s.price_micros) for s in whole))


def _shape(c: Copies) -> object:
    shape = c.candidate.shape
    if shape.sharing is Sharing.WHOLE:
        return "whole"
    return shape.profile if shape.sharing is Sharing.MIG else shape.share


def _values(master: Master, bound: Bound, pick: Callable[[float, float], float]) -> Values:
    """The least or the largest price of each shape over places, to thousandths of a micro."""
    prices = np.maximum(0.0, master.prices(bound.duals)) * master.unit
    found: Values = defaultdict(dict)
    for c in master.f.copies:
        for kind, value in _of_parts(master, bound, c) if c.stays is None else ():
            found[kind]["whole"] = pick(value, found[kind].get("whole", value))
        if c.stays is None and not c.parts:
            value = float(prices[c.count.index]) / c.candidate.shape.gpus
            shape, value = _shape(c), floor(value * 1000) / 1000
            kind = _kinds(master, c)[0]
            found[kind][shape] = pick(value, found[kind].get(shape, value))
    reached = {kind for _, c in _pipelines(master) for kind in _of_product(master, c.gpu)}
    for kind in sorted(reached):
        found[kind].setdefault("whole", float(kind[1]))  # its price: what it holds is no more
    return found


def _pipelines(master: Master) -> Iterator[tuple[str, Candidate]]:
    """Every way to run as a pipeline; the check counts those too that no nodes could hold."""
    for name in master.names:
        for candidate in master.f.problem.candidates.get(name, ()):
            if candidate.shape.stages > 1:
                yield name, candidate


def _of_parts(master: Master, bound: Bound, c: Copies) -> Iterator[tuple[Kind, float]]:
    """What a GPU of each kind costs a pipeline, by all rows but those that make it of parts."""
    for part in c.parts:
        made_of = {r for r, _ in master.by_variable[part.number.index]}
        rows = master.by_variable[part.count.index]
        paid = -sum(k * float(bound.duals[r]) for r, k in rows if r not in made_of)
        site = master.f.sites[part.site]
        value = floor(max(0.0, paid) * master.unit / part.gpus * 1000) / 1000
        yield (site.gpu.name, site.price_micros), value


def _mixes(master: Master, values: Values) -> float:
    """What the cheapest mixes are worth at these values; limits on replicas are not asked."""
    places: dict[str, list[Item]] = defaultdict(list)
    for c in master.f.copies:  # those that stay too: they may run as no new one may
        d = master.names[c.deployment]
        # On several kinds a pipeline is worth something between what it is on each alone.
        worth = min(values[kind].get(_shape(c), 0.0) for kind in _kinds(master, c))
        worth *= c.candidate.shape.gpus
        rate = min(capacity_mrps(d, c.candidate), d.asked_mrps or 0)
        places[c.deployment].append(Item(worth, rate, c.count.index))
    for name, way in _pipelines(master):
        d, kinds = master.names[name], _of_product(master, way.gpu)
        worth = min((values[kind].get("whole", 0.0) for kind in kinds), default=inf)
        rate = min(capacity_mrps(d, way), d.asked_mrps or 0)
        if kinds:
            places[name].append(Item(worth * way.shape.gpus, rate, -1))
    total = 0.0
    for name, d in master.names.items():
        asked = Asked(d.asked_mrps or 0, d.min_replicas, None)
        bound = cheapest_mix(places[name], asked).bound
        total += 0.0 if isinf(bound) else bound
    return total


def _scarcity(master: Master, values: Values) -> float:
    """What all GPUs together can hold above their price."""
    total = 0.0
    products: dict[str, Gpu] = {site.gpu.name: site.gpu for site in master.f.sites}
    for kind, some in values.items():
        gpus = sum(
            site.gpus for site in master.f.sites if (site.gpu.name, site.price_micros) == kind
        )
        total += gpus * max(0.0, _best(products[kind[0]], some) - kind[1])
    return total


def _best(gpu: Gpu, some: Mapping[object, float]) -> float:
    """The most that one GPU can hold."""
    best = some.get("whole", 0.0)
    slices = {p: v for p, v in some.items() if isinstance(p, str) and p != "whole"}
    if gpu.mig is not None and slices:
        for pattern in mig_patterns(gpu.mig, tuple(sorted(slices))):
            best = max(best, sum(slices[p] * count for p, count in pattern))
    shares = [u for u in some if isinstance(u, Use)]
    if shares:
        weights = _weights(gpu, some)
        packer = Packer.of_shares(gpu.room, shares)
        values = np.array([some[u] for u in shares])
        best = max(best, sum(weights) if weights else packer.best(values).bound)
    return best


def _weights(gpu: Gpu, some: Mapping[object, float]) -> list[float]:
    """What memory, bandwidth and compute of a whole GPU are worth, if no share is worth more.

    Shares priced by their parts are too many alike for a search; these weights bound them all.
    None where a filling is not nearly worth as much.
    """
    shares = [u for u in some if isinstance(u, Use) and some[u] > 0]
    if not shares:
        return []
    values = np.array([some[u] for u in shares])
    parts = np.array([u.parts_of(gpu.room) for u in shares])
    scaled = []
    for weights in (*np.eye(3), surrogate(values, parts)):
        worth = parts @ weights
        if (worth > 0).all():
            scaled.append((weights * (values / worth).max()).tolist())
    best = min(scaled, key=sum)
    some_of = slice(None, None, 1 + len(shares) // FEW_SHARES)
    packer = Packer.of_shares(gpu.room, shares[some_of])
    reached = packer.best(values[some_of], exact=False).value
    return best if sum(best) <= reached * (1 + NEARLY) else []


def _plain(kind: Kind, some: Mapping[object, float], weights: list[float]) -> dict[str, Any]:
    shares = [
        [u.memory_mib, u.bandwidth_mbs, u.compute_ppm, v]
        for u, v in some.items()
        if isinstance(u, Use)
    ]
    return {
        "gpu": kind[0],
        "price_micros": kind[1],
        "whole": some.get("whole", 0.0),
        "mig": {p: v for p, v in sorted(some.items(), key=str) if p in _names(some)},
        "shares": sorted(shares),
        "weights": weights,
    }


def _names(some: Mapping[object, float]) -> set[object]:
    return {p for p in some if isinstance(p, str) and p != "whole"}
