"""What outliving a loss takes at the least, in whole GPUs and nodes: rows that only help to refute.

Whatever domain is lost, the GPUs left must be enough in number; where a tenant wants its nodes
alone, a node besides must be its own. Replicas counted in fractions do not say so.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import Gpu
from optimizer.domain.problem import capacity_mrps
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.formulation import Expr, Formulation, domains_apart, total
from optimizer.solver.witness import per_gpu


def enough_left(f: Formulation) -> Iterator[Expr]:
    """GPUs and nodes outside of every domain whose loss is to be outlived."""
    lies = _Nodes(f)
    yield from lies.apart()
    filled: dict[str, dict[int, list[Expr]]] = defaultdict(lambda: defaultdict(list))
    for filling in f.fillings:
        filled[filling.colour][filling.at[0]].append(filling.count)
    for d in f.problem.deployments:
        if not (d.survive and d.asked_mrps) or any(c.parts for c in f.of(d.name)):
            continue
        gpus = _gpus_by_site(f, d, filled)
        fewest = _fewest(f, d)
        for among, number in domains_apart(f.sites, d.survive):
            if number > 1 or not fewest:
                continue  # which of them is lost is not told apart
            outside = [s for s in gpus if s not in among]
            yield total(x for s in outside for x in gpus[s]) >= fewest
            nodes = lies.of(d, outside)
            if nodes is not None:
                yield total(nodes) >= 1


def _gpus_by_site(
    f: Formulation, d: Deployment, filled: dict[str, dict[int, list[Expr]]]
) -> dict[int, list[Expr]]:
    """The GPUs on which its replicas lie, or may lie with others."""
    found: dict[int, list[Expr]] = defaultdict(list)
    for c in f.of(d.name):
        if c.candidate.shape.sharing is Sharing.WHOLE:
            found[c.site].append(c.candidate.shape.gpus * c.count)
        else:
            found[c.site] += []
    for site in found:
        for colour in f.colours[d.name]:
            found[site] += filled[colour][site]
    return found


def _fewest(f: Formulation, d: Deployment) -> int:
    """GPUs that carry what it asks."""
    products = {site.gpu.name: site.gpu for site in f.sites}
    ways = {c.candidate.key: c.candidate for c in f.of(d.name)}.values()
    best = [_rate_per_gpu(d, way, products[way.gpu]) for way in ways]
    parts = [ceil_div((d.asked_mrps or 0) * gpus, rate) for rate, gpus in best if rate]
    return min(parts, default=0)


def _rate_per_gpu(d: Deployment, way: Candidate, gpu: Gpu) -> tuple[int, int]:
    """What so many GPUs carry at most."""
    return capacity_mrps(d, way) * max(1, per_gpu(gpu, way)), way.shape.gpus


class _Nodes:
    """By tenant and node: whether it lies there, and whether it does and wants the node alone."""

    def __init__(self, f: Formulation) -> None:
        self.owned: dict[tuple[str, int], Expr] = {}
        self.held: dict[tuple[str, int], Expr] = {}
        tenants = {d.name: d.tenant for d in f.problem.deployments}
        alone = {d.name for d in f.problem.deployments if d.isolate == "node"}
        for s in range(len(f.sites)) if alone and not f.coarse else ():
            for c, count in f.at(s):
                key = (tenants[c.deployment], s)
                for known in (self.owned, self.held)[c.deployment not in alone :]:
                    if key not in known:
                        known[key] = f.model.new_bool_var(f"{key} lies there")
                    f.model.add(count == 0).only_enforce_if(~known[key])

    def apart(self) -> Iterator[Expr]:
        """Rule ``isolation`` of whole nodes."""
        owners: dict[int, list[str]] = defaultdict(list)
        for tenant, s in self.owned:
            owners[s].append(tenant)
        for s, some in owners.items():
            yield total(self.owned[tenant, s] for tenant in some) <= 1
        for (tenant, s), held in self.held.items():
            others = [self.owned[other, s] for other in owners[s] if other != tenant]
            if others:
                yield held + total(others) <= 1

    def of(self, d: Deployment, sites: Iterable[int]) -> list[Expr] | None:
        """Whether it may lie on each of these; None: nobody wants nodes alone."""
        known = self.owned if d.isolate == "node" else self.held
        if not self.held:
            return None
        return [known[d.tenant, s] for s in sites if (d.tenant, s) in known]
