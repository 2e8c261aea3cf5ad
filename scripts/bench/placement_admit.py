"""Admits deployments into a best-fit placement of a seeded fleet: marginal price, CPU milliseconds.

Run ``scripts/bench/placement_admit.py 10000 --seeds 1``. The fleet is read already; each of some of
its deployments is admitted once more, by itself, with the rules named.
"""

import argparse
import csv
import sys
import time
from dataclasses import replace

from placement_baselines import best_fit
from placement_instances import Family, generate

from optimizer.solver.admit import admit
from optimizer.solver.beside import Planned

RULES: dict[str, dict[str, object]] = {
    "none": {},
    "spread.node": {"spread_node": 2, "min_replicas": 2},
    "spread.rack": {"spread_rack": 2},
    "survive node": {"survive": "node"},
    "survive rack": {"survive": "rack"},
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
            problem = generate(family)
            planned = Planned.of(problem, best_fit(problem))
            planned.ready()
            for d in problem.deployments[asked.every // 20 :: asked.every]:
                ways = [replace(w, deployment="new") for w in problem.candidates[d.name]]
                for rules, fields in RULES.items():
                    new = replace(d, name="new", **fields)  # type: ignore[arg-type]
                    started = time.process_time()
                    found = admit(planned, new, ways)
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


if __name__ == "__main__":
    main()
