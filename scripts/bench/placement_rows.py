"""Plans seeded fleets and prints one CSV row each: objective, bound, gap, times, baselines.

Run ``scripts/bench/placement 64 512 --load 0.8 0.95 --seeds 1 2``. Every answer, the baselines'
too, is judged by ``optimizer.verify``. Prices are per hour; unmet demand is in millionths of a
deployment's demand, summed.
"""

import argparse
import csv
import platform
import resource
import sys
import time
from collections.abc import Callable
from itertools import product

from ortools import __version__ as ortools_version
from placement_baselines import best_fit, first_fit_decreasing, load_balanced
from placement_instances import Family, generate

from optimizer.domain.outcome import Limits, Outcome, Progress
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import solve
from optimizer.verify import check_outcome, objectives, verify

# They look at every node for every replica, one by one: hours on larger fleets.
LARGEST_FOR_BASELINES = 10_000
BASELINES = (
    ("best_fit", best_fit), ("ffd", first_fit_decreasing), ("balanced", load_balanced),
)  # fmt: skip
FIELDS = (
    "family", "gpus", "deployments", "ways", "status", "unmet_ppm", "unmet_bound_ppm", "price",
    "price_bound", "gap_percent", "seconds", "first_bound_s", "memory_mib", "broken_rules",
    "best_fit_price", "best_fit_unmet_ppm", "best_fit_s", "ffd_price", "ffd_unmet_ppm", "ffd_s",
    "balanced_price", "balanced_unmet_ppm", "balanced_s",
)  # fmt: skip


def row(family: Family, limit_s: float) -> dict[str, object]:
    """One family: the solver and the baselines on the same problem."""
    problem = generate(family)
    first: list[float] = []
    started = time.monotonic()

    def hear(news: Progress) -> None:
        if news.bound and not first:
            first.append(time.monotonic() - started)

    outcome = solve(problem, Limits(time_limit_s=limit_s), hear)
    seconds = time.monotonic() - started
    found: dict[str, object] = {
        "family": family.name,
        "gpus": family.gpus,
        "deployments": len(problem.deployments),
        "ways": sum(map(len, problem.candidates.values())),
        "status": outcome.termination,
        "seconds": round(seconds, 1),
        "first_bound_s": round(first[0], 1) if first else "",
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "broken_rules": len(check_outcome(problem, outcome)),
        **_levels(outcome),
    }
    for name, baseline in BASELINES:
        if not family.rules and family.gpus <= LARGEST_FOR_BASELINES:
            found |= _baseline(name, baseline, problem)
    return found


def _levels(outcome: Outcome) -> dict[str, object]:
    unmet = [o for o in outcome.objectives if o.name == "unmet"]
    price = next((o for o in outcome.objectives if o.name == "price_per_hour"), None)
    if price is None:
        return {}
    return {
        "unmet_ppm": sum(o.value for o in unmet),
        "unmet_bound_ppm": sum(o.bound for o in unmet),
        "price": price.value / 1e6,
        "price_bound": price.bound / 1e6,
        "gap_percent": round(100 * price.gap, 4),
    }


def _baseline(
    name: str, baseline: Callable[[PlacementProblem], Placement], problem: PlacementProblem
) -> dict[str, object]:
    started = time.monotonic()
    placement = baseline(problem)
    seconds = time.monotonic() - started
    broken = verify(problem, placement)
    if broken:
        print(f"{name}: {broken[0]} and {len(broken) - 1} more", file=sys.stderr)
    score = objectives(problem, placement)
    return {
        f"{name}_price": score.price_micros / 1e6,
        f"{name}_unmet_ppm": sum(ppm for _, ppm in score.unmet_ppm),
        f"{name}_s": round(seconds, 1),
    }


def main() -> None:
    """Read the families from the command line and print rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gpus", nargs="+", type=int)
    parser.add_argument("--load", nargs="+", type=float, default=[0.8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--rules", default="", help="spread+pin+isolation")
    parser.add_argument("--time-limit", type=float, default=180.0)
    asked = parser.parse_args()
    versions = f"Python {platform.python_version()}, OR-Tools {ortools_version}"
    print(f"# {platform.machine()}, {versions}", file=sys.stderr)
    out = csv.DictWriter(sys.stdout, FIELDS, restval="")
    out.writeheader()
    rules = frozenset(filter(None, asked.rules.split("+")))
    for gpus, load, seed in product(asked.gpus, asked.load, asked.seeds):
        out.writerow(row(Family(gpus, load, seed, rules), asked.time_limit))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
