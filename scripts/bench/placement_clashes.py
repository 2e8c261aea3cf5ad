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


PLANTED: dict[str, Callable[[PlacementProblem], PlacementProblem]] = {
    "survive+pin": pinned,
    "survive rack+pin": one_rack,
    "survive+replicas.max": few_replicas,
    "reserve+price_limit": too_dear,
    "reserve+fixed_layout": no_slot,
    "reserve+cordon": cordoned,
    "survive+spread.rack+pin": spread_thin,
}


def _middle(problem: PlacementProblem) -> Deployment:
    return problem.deployments[len(problem.deployments) // 2]


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
