"""Pipelines: replicas whose stages lie in one node or evenly in several.

Over ``of`` nodes a replica has one *part* in each: ``gpus`` whole GPUs, some of its blocks. How
often each kind of part lies in each site is counted; that is exact where the view tells replicas
and nodes apart, and a sum over them elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Any

from optimizer.domain.config import Candidate
from optimizer.domain.placement import Replica
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import Site, domain_of

if TYPE_CHECKING:
    from optimizer.solver.formulation import Copies, Formulation

Expr = Any  # as in formulation


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """How many replicas of a pipeline have one of ``of`` alike parts in a node of a site.

    ``number``: of new replicas, how many have that many parts in all.
    """

    site: int
    gpus: int
    of: int
    count: Expr
    number: Expr = None


def blocks_of(sites: tuple[Site, ...], usable: list[int], candidate: Candidate) -> int:
    """How many blocks the sites hold at most, if nothing else does."""
    return sum(sites[s].groups(candidate.shape.block) for s in usable)


def new_parts(
    f: "Formulation", usable: list[int], candidate: Candidate, most: int, name: str
) -> tuple[Expr, tuple[Part, ...]]:
    """Variables of up to ``most`` new replicas: how many, and where their parts lie.

    Over ``of`` nodes: as many parts as nodes. Rule ``network_bandwidth``: a link that is too slow
    for one replica carries none.
    """
    shape, parts = candidate.shape, []
    count = f.model.new_int_var(0, most, name)
    by_number = []
    for of in range(1, shape.stages + 1):
        if shape.stages % of:
            continue
        gpus, here = shape.gpus // of, []
        number = f.model.new_int_var(0, most, f"{name} over {of}")
        for s in usable:
            site, link = f.sites[s], f.sites[s].nodes[0].network_mbs
            slow = of > 1 and link is not None and candidate.network_mbs > link
            room = 0 if slow else site.groups(gpus)
            if room:
                often = min(room, most * min(of, len(site.nodes)))  # one part in a node
                lies = f.model.new_int_var(0, often, f"{name} 1/{of} @{site.name}")
                here.append(Part(s, gpus, of, lies, number))
        if here and sum(len(f.sites[part.site].nodes) for part in here) >= of:
            f.model.add(sum(part.count for part in here) == of * number)
            by_number.append(number)
            parts += here
    f.model.add(sum(by_number) == count)
    return count, tuple(parts)


def parts_today(f: "Formulation", replica: Replica, stays: Expr) -> tuple[Part, ...]:
    """The parts of a running pipeline, if it is one and stays."""
    if replica.shape.stages == 1:
        return ()
    nodes, gpus = replica.nodes, len(replica.gpus)
    sites = {node.name: s for s, site in enumerate(f.sites) for node in site.nodes}
    return tuple(Part(sites[n], gpus // len(nodes), len(nodes), stays) for n in nodes)


def inside(f: "Formulation", c: "Copies", among: list[int], kind: str) -> Iterator[Expr]:
    """How often replicas touch domains among sites that share none with others; at least.

    A domain is touched once by a replica however many of its parts lie there.
    """
    if not c.parts:
        if c.site in among:
            yield c.count
        return
    here = [part for part in c.parts if part.site in among]
    if c.stays is not None:
        yield from [c.count] if here else []
    elif kind == "node":
        yield from (part.count for part in here)
    elif here:
        yield _touched(f, here, kind)


def _touched(f: "Formulation", here: list[Part], kind: str) -> Expr:
    """Domains times replicas: each domain has room for so many parts of one replica."""
    key = (id(here[0].count), tuple(part.site for part in here), kind)
    if key not in f.touched:
        nodes: dict[str, int] = {}
        for s in {part.site for part in here}:
            for node in f.sites[s].nodes:
                name = domain_of(node, kind)
                nodes[name] = nodes.get(name, 0) + 1
        each = [min(part.of, max(nodes.values())) for part in here]
        unit, most = lcm(*each), sum(list(part.count.proto.domain)[-1] for part in here)
        f.touched[key] = domains = f.model.new_int_var(0, most, f"{kind}s of {here[0].count}")
        parts = zip(here, each, strict=True)
        f.model.add(sum(unit // n * part.count for part, n in parts) <= unit * domains)
    return f.touched[key]


def staged_affinity(f: "Formulation", d: Deployment, wanted: str) -> Iterator[Expr]:
    """One of a pipeline's nodes holds what it wants near, where the view tells nodes apart."""
    for c in f.of(d.name):
        if not c.parts or any(len(f.sites[part.site].nodes) > 1 for part in c.parts):
            continue
        most = 1 if c.stays is not None else int(list(c.count.proto.domain)[-1])
        beside = []
        for s in sorted({part.site for part in c.parts}):
            near = [count for other, count in f.at(s) if other.deployment == wanted]
            if near:
                met = f.model.new_int_var(0, most, f"{d.name} beside {wanted} @{s}")
                yield met <= sum(part.count for part in c.parts if part.site == s)
                yield met <= most * sum(near)
                beside.append(met)
        yield c.count <= sum(beside)
