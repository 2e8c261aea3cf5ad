"""Admits deployments into a best-fit placement of a seeded fleet: marginal price, CPU milliseconds.

Run ``scripts/bench/placement_admit.py 10000 --seeds 1``. The fleet is read already; each of some of
its deployments is admitted once more, by itself, with the rules named.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from placement_baselines import best_fit
from placement_instances import Family, generate

from optimizer.domain.config import Candidate
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Demand
from optimizer.solver.admit import admit
from optimizer.solver.beside import Planned

RULES: dict[str, dict[str, object]] = {
    "none": {},
    "spread.node": {"spread_node": 2, "min_replicas": 2},
    "spread.rack": {"spread_rack": 2},
    "survive node": {"survive": "node"},
    "survive rack": {"survive": "rack"},
    "survive zone": {"survive": "zone"},
    "survive rack, replicas.max": {"survive": "rack", "max_replicas": 4},
    "replicas.max": {"max_replicas": 2},
    "host": {"host_cpu_millicores": 8_000, "host_memory_mib": 65_536},
    "pipelines": {},
    "pipelines, survive node": {"survive": "node"},
    "isolation": {"isolate": "tenant"},
}
FIELDS = ("family", "deployment", "rules", "replicas", "price", "exact", "reason", "cpu_ms")


def main() -> None:
    """Read the families from the command line and print a row for each admission."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gpus", nargs="+", type=int)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--every", type=int, default=200, help="one deployment in so many")
    asked = parser.parse_args()
    out = csv.DictWriter(sys.stdout, FIELDS)
    out.writeheader()
    for gpus in asked.gpus:
        for seed in asked.seeds:
            family = Family(gpus, asked.load, seed)
            problem = _in_zones(generate(family))
            planned = Planned.of(problem, best_fit(problem))
            planned.ready()
            for d in problem.deployments[asked.every // 20 :: asked.every]:
                ways = [replace(w, deployment="new") for w in problem.candidates[d.name]]
                for rules, fields in RULES.items():
                    new = replace(d, name="new", **fields)  # type: ignore[arg-type]
                    offered = ways
                    if rules.startswith("pipelines"):
                        offered = list(_staged(ways))
                        most = max(way.capacity_mrps or 0 for way in offered)
                        new = replace(new, demand=Demand(2 * most))
                    started = time.process_time()
                    found = admit(planned, new, offered)
                    out.writerow(
                        {
                            "family": family.name,
                            "deployment": d.name,
                            "rules": rules,
                            "replicas": len(found.replicas),
                            "price": found.marginal_micros / 1e6,
                            "exact": found.exact,
                            "reason": found.reason or "",
                            "cpu_ms": round(1000 * (time.process_time() - started), 1),
                        }
                    )
                    sys.stdout.flush()


def _in_zones(problem: PlacementProblem) -> PlacementProblem:
    """Racks dealt to four zones."""
    racks = {name: i for i, name in enumerate(dict.fromkeys(n.rack for n in problem.fleet.nodes))}
    nodes = tuple(replace(n, zone=f"z{racks[n.rack] % 4}") for n in problem.fleet.nodes)
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes))


def _staged(ways: Sequence[Candidate]) -> Iterator[Candidate]:
    """Groups of eight GPUs, and pipelines of two such that may lie in two nodes."""
    for way in (way for way in ways if way.shape.gpus == 8):
        yield way
        shape = replace(way.shape, gpus=16, stages=2)
        yield replace(way, shape=shape, capacity_mrps=2 * (way.capacity_mrps or 0), network_mbs=500)


if __name__ == "__main__":
    main()
