"""Plants one clash in a seeded fleet and says what is told of it, and in how many CPU seconds.

Run ``scripts/bench/placement_clashes.py 10000 --seeds 1 2``. Every clash is hard rules that cannot
all hold; the CPU seconds are of the whole answer, from the problem in memory: names and fixes.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from placement_instances import Family, generate

from optimizer.domain.fleet import Limits as Ceilings
from optimizer.domain.fleet import Reserve
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver import solve

FIELDS = ("family", "deployments", "clash", "status", "rules", "fixes", "cpu_s")


def pinned(problem: PlacementProblem) -> PlacementProblem:
    """A deployment that is to outlive any node is pinned to one."""
    nodes = [n.name for n in problem.fleet.nodes]
    return _changed(problem, lambda d: replace(d, survive="node", pin=(nodes[len(nodes) // 2],)))


def one_rack(problem: PlacementProblem) -> PlacementProblem:
    """It is to outlive any rack, and pinned to the nodes of one."""
    gpus = {way.gpu for way in problem.candidates[_middle(problem).name]}
    rack = next(n.rack for n in problem.fleet.nodes if n.gpu.name in gpus)
    nodes = tuple(n.name for n in problem.fleet.nodes if n.rack == rack)
    return _changed(problem, lambda d: replace(d, survive="rack", pin=nodes))


def few_replicas(problem: PlacementProblem) -> PlacementProblem:
    """It is to outlive a node with one replica at most."""
    return _changed(problem, lambda d: replace(d, survive="node", max_replicas=1))


def too_dear(problem: PlacementProblem) -> PlacementProblem:
    """Sixty GPUs are kept free and fifty of them may be paid."""
    kept = (Reserve(60, gpu="h100-80gb-sxm", gpus=1),)
    limits = Ceilings(price_micros_per_hour=150_000_000)
    return replace(problem, fleet=replace(problem.fleet, reserve=kept, limits=limits))


def no_slot(problem: PlacementProblem) -> PlacementProblem:
    """Slices are kept free on nodes whose layouts may not change and have none."""
    nodes = tuple(
        replace(n, layouts_fixed=True) if n.gpu.name == "a100-80gb-sxm" else n
        for n in problem.fleet.nodes
    )
    kept = (Reserve(4, profile="3g.40gb", gpu="a100-80gb-sxm"),)
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes, reserve=kept))


def cordoned(problem: PlacementProblem) -> PlacementProblem:
    """Room is kept free on a product all of whose nodes are cordoned."""
    nodes = tuple(
        replace(n, cordoned=True) if n.gpu.name == "h200-141gb-sxm" else n
        for n in problem.fleet.nodes
    )
    kept = (Reserve(2, gpu="h200-141gb-sxm", gpus=8),)
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes, reserve=kept))


def spread_thin(problem: PlacementProblem) -> PlacementProblem:
    """It is to outlive a node with one replica in a rack, pinned to two racks of small slices."""
    found = _middle(problem)
    gpus = {way.gpu for way in problem.candidates[found.name]}
    racks = list(dict.fromkeys(n.rack for n in problem.fleet.nodes if n.gpu.name in gpus))[:2]
    nodes = tuple(n.name for n in problem.fleet.nodes if n.rack in racks)
    most = max(way.capacity_mrps or 0 for way in problem.candidates[found.name])
    demand = replace(found.demand, rate_mrps=int(1.5 * most)) if found.demand else None
    return _changed(
        problem,
        lambda d: replace(d, survive="node", spread_rack=1, pin=nodes, demand=demand),
    )


def crowded(problem: PlacementProblem) -> PlacementProblem:
    """Nine that are to outlive a node share no GPU and are pinned to two nodes of eight."""
    found = _of_product(problem, "h100-80gb-sxm", 9)
    nodes = tuple(n.name for n in problem.fleet.nodes if n.gpu.name == "h100-80gb-sxm")[-2:]
    few = _small(problem, found, "h100-80gb-sxm", part=0.5)
    return _each(few, found, {"survive": "node", "isolate": "gpu", "pin": nodes, **PLAIN})


def tenants_apart(problem: PlacementProblem) -> PlacementProblem:
    """Four tenants, each to outlive a node and alone on its nodes, are pinned to six nodes."""
    found = _of_product(problem, "a100-80gb-sxm", 4)
    nodes = tuple(n.name for n in problem.fleet.nodes if n.gpu.name == "a100-80gb-sxm")[-6:]
    few = _small(problem, found, "a100-80gb-sxm", part=0.5)
    apart = {name: f"alone {name}" for name in found}
    some = tuple(
        replace(d, tenant=apart[d.name]) if d.name in apart else d for d in few.deployments
    )
    rules = {"survive": "node", "isolate": "node", "pin": nodes, **PLAIN}
    return _each(replace(few, deployments=some), found, rules)


def last_node(problem: PlacementProblem) -> PlacementProblem:
    """All nodes of a product but one are kept free; somebody is to outlive a node on it."""
    name = "h200-141gb-sxm"
    (found,) = _of_product(problem, name, 1)
    nodes = sum(n.gpu.name == name for n in problem.fleet.nodes)
    few = _small(problem, [found], name, part=0.5)
    kept = (*few.fleet.reserve, Reserve(nodes - 1, gpu=name, gpus=8))
    only = tuple(way for way in few.candidates[found] if way.gpu == name)
    few = replace(
        few,
        fleet=replace(few.fleet, reserve=kept),
        candidates={**few.candidates, found: only},
    )
    return _each(few, [found], {"survive": "node", "pin": (), **PLAIN})


def too_dear_for_one(problem: PlacementProblem) -> PlacementProblem:
    """All that outlives a loss costs more than half of what it costs alone at the least."""
    asks = _middle(problem)
    few = _changed(problem, lambda d: replace(d, survive="node", pin=(), **PLAIN))
    price = {n.gpu.name: few.fleet.price_micros(n) for n in few.fleet.nodes}
    rate = (asks.demand.rate_mrps if asks.demand else 0) or 1
    least = min(
        price[w.gpu] * max(1, rate // (w.capacity_mrps or 1)) * w.shape.gpus
        for w in few.candidates[asks.name]
        if w.shape.profile is None and w.shape.share is None
    )
    limits = Ceilings(price_micros_per_hour=least // 4)
    return replace(few, fleet=replace(few.fleet, limits=limits))


PLAIN: dict[str, object] = {"spread_node": None, "spread_rack": None, "min_replicas": 1}
PLANTED: dict[str, Callable[[PlacementProblem], PlacementProblem]] = {
    "survive+pin": pinned,
    "survive rack+pin": one_rack,
    "survive+replicas.max": few_replicas,
    "reserve+price_limit": too_dear,
    "reserve+fixed_layout": no_slot,
    "reserve+cordon": cordoned,
    "survive+spread.rack+pin": spread_thin,
    "survive+price_limit": too_dear_for_one,
    "9 x survive+isolation+pin": crowded,
    "4 x survive+isolation+pin": tenants_apart,
    "survive+reserve": last_node,
}


def _middle(problem: PlacementProblem) -> Deployment:
    return problem.deployments[len(problem.deployments) // 2]


def _of_product(problem: PlacementProblem, gpu: str, number: int) -> list[str]:
    """Deployments with no rule of their own that run on whole GPUs of that product."""
    found = [
        d.name
        for d in problem.deployments
        if not (d.pin or d.survive or d.isolate != "none")
        and any(w.gpu == gpu and w.shape.gpus == 1 for w in problem.candidates[d.name])
    ]
    return found[:number]


def _small(problem: PlacementProblem, names: list[str], gpu: str, part: float) -> PlacementProblem:
    """These ask no more than that part of what one GPU of the product carries."""
    asked = {
        name: max(
            w.capacity_mrps or 0
            for w in problem.candidates[name]
            if w.gpu == gpu and w.shape.gpus == 1
        )
        for name in names
    }
    some = tuple(
        replace(d, demand=replace(d.demand, rate_mrps=max(1, int(part * asked[d.name]))))
        if d.name in asked and d.demand
        else d
        for d in problem.deployments
    )
    return replace(problem, deployments=some)


def _each(
    problem: PlacementProblem, names: list[str], fields: dict[str, object]
) -> PlacementProblem:
    some = tuple(
        replace(d, **fields) if d.name in names else d  # type: ignore[arg-type]
        for d in problem.deployments
    )
    return replace(problem, deployments=some)


def _changed(
    problem: PlacementProblem, change: Callable[[Deployment], Deployment]
) -> PlacementProblem:
    middle = _middle(problem)
    some = tuple(change(d) if d is middle else d for d in problem.deployments)
    return replace(problem, deployments=some)


def row(family: Family, clash: str) -> dict[str, object]:
    """One planted clash and what is told of it."""
    sound = generate(family)
    # Who outlives a node is not pinned to one, so that the planted clash is the only one.
    some = tuple(replace(d, survive=None) if d.pin else d for d in sound.deployments)
    problem = PLANTED[clash](replace(sound, deployments=some))
    started = time.process_time()
    outcome = solve(problem, Limits(time_limit_s=60))
    return {
        "family": family.name,
        "deployments": len(problem.deployments),
        "clash": clash,
        "status": outcome.termination,
        "rules": "; ".join(outcome.conflict),
        "fixes": "; ".join(note.removeprefix("a plan is possible ") for note in outcome.notes),
        "cpu_s": round(time.process_time() - started, 2),
    }


def main() -> None:
    """Read the families from the command line and print rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gpus", nargs="+", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--rules", default="spread+pin+reserve+isolation+survive")
    parser.add_argument("--clashes", nargs="+", default=list(PLANTED), choices=list(PLANTED))
    asked = parser.parse_args()
    out = csv.DictWriter(sys.stdout, FIELDS)
    out.writeheader()
    rules = frozenset(filter(None, asked.rules.split("+")))
    for gpus, seed, clash in product(asked.gpus, asked.seeds, asked.clashes):
        out.writerow(row(Family(gpus, 0.8, seed, rules), clash))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
