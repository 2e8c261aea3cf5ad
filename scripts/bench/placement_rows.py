"""Plans seeded fleets and prints one CSV row each: objective, bound, gap, times, baselines.

Run ``scripts/bench/placement 64 512 --load 0.8 0.95 --seeds 1 2``: language models on 64 to 50,000
GPUs; with ``--rules spread+survive+pin+reserve+isolation`` under those rules; with ``--family M1``
MIG instances to place (8 to 8,000 GPUs). Families whose name is another script's: M2, M3 and M4,
which start from what runs, ``rebalance``; ParvaGPU ``placement_parva.py``; openb and vector packing
``placement_vector``; admission and clashes ``placement_admit.py`` and ``placement_clashes.py``.

Every answer, the baselines' too, is judged by ``optimizer.verify`` (``broken_rules``, false bounds
and certificates among them). Prices are per hour; unmet demand is in millionths of a deployment's
demand, summed. ``first_s``, ``one_percent_s`` and ``final_s``: when the search told of its first
price, of one within 1 % of the final bound, and of the final one. ``cheaper_percent``: by how much
the price is below a baseline's, which may serve less; ``served_points``: how many per cent of
demand more are served, each deployment alike. Each row has a process of its own, so its memory is
its own.
"""

import argparse
import csv
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from typing import Any

from ortools import __version__ as ortools_version
from placement_baselines import best_fit, first_fit_decreasing, load_balanced
from placement_instances import Family, generate
from placement_naive import naive_cp_sat
from rebalance_fleets import fragmented

from optimizer.domain.outcome import Limits, Outcome, Progress
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Sighting
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import solve
from optimizer.trajectory import Trajectory
from optimizer.verify import check_outcome, objectives, verify

LARGEST_FOR_NAIVE = 64
NAIVE_LIMIT_S = 20.0
BASELINES = (
    ("best_fit", best_fit), ("ffd", first_fit_decreasing), ("balanced", load_balanced),
)  # fmt: skip
FIELDS = (
    "family", "gpus", "deployments", "ways", "status", "stopped_by", "unmet_ppm",
    "unmet_bound_ppm", "price", "price_bound", "gap_percent", "seconds", "cpu_s", "first_s",
    "one_percent_s", "final_s", "first_bound_s", "memory_mib", "broken_rules",
    *(
        f"{name}_{field}"
        for name, _ in BASELINES
        for field in ("price", "unmet_ppm", "cheaper_percent", "served_points", "s")
    ),
    "naive_price", "naive_price_bound", "naive_unmet_ppm", "naive_unmet_bound_ppm", "naive_s",
    "naive_cpu_s", "naive_first_s",
)  # fmt: skip


def drawn(kind: str, family: Family) -> PlacementProblem:
    """Language models, or M1: the MIG instances of a rebalancing fleet, none of which runs yet."""
    if kind == "LLM":
        return generate(family)
    return replace(fragmented(family.gpus, load=family.load, seed=family.seed), current=None)


def row(kind: str, family: Family, limit_s: float) -> dict[str, object]:
    """One family: the solver and the baselines on the same problem."""
    problem = drawn(kind, family)
    first_bound: list[float] = []
    started, cpu = time.monotonic(), time.process_time()

    def hear(news: Progress) -> None:
        if news.bound and not first_bound:
            first_bound.append(time.monotonic() - started)

    seen = Trajectory(time.monotonic, hear)
    outcome = solve(problem, Limits(time_limit_s=limit_s), seen)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    found: dict[str, Any] = {
        "family": family.name if kind == "LLM" else f"{kind}-{family.name}",
        "gpus": family.gpus,
        "deployments": len(problem.deployments),
        "ways": sum(map(len, problem.candidates.values())),
        "status": outcome.termination,
        "stopped_by": outcome.stopped_by,
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "first_bound_s": round(first_bound[0], 1) if first_bound else "",
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "broken_rules": len(check_outcome(problem, outcome)),
        **_times(seen.end(outcome)),
        **_levels(outcome),
    }
    for name, baseline in BASELINES if not family.rules else ():
        found |= _baseline(name, baseline, problem)
        found |= _against(name, found)
    if not family.rules and family.gpus <= LARGEST_FOR_NAIVE:
        found |= _naive(problem)
    return found


def _times(seen: Sequence[Sighting]) -> dict[str, object]:
    """When the search told of its first price, one within 1 % of the last bound, and its last."""
    prices = [(s.seconds, s.incumbent) for s in seen if s.incumbent is not None]
    if not prices:
        return {}
    last, bound = prices[-1][1], seen[-1].bound or 0
    near = [at for at, price in prices if price - bound <= price / 100]
    return {
        "first_s": round(prices[0][0], 1),
        "one_percent_s": round(near[0], 1) if near else "",
        "final_s": round(next(at for at, price in prices if price == last), 1),
    }


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
    return {**_scored(name, placement, problem), f"{name}_s": round(seconds, 1)}


def _against(name: str, found: dict[str, Any]) -> dict[str, object]:
    """How much cheaper than a baseline, and how much more is served."""
    if "price" not in found:
        return {}
    less = found[f"{name}_unmet_ppm"] - found["unmet_ppm"]
    return {
        f"{name}_cheaper_percent": round(100 * (1 - found["price"] / found[f"{name}_price"]), 2),
        f"{name}_served_points": round(less / found["deployments"] / 1e4, 2),
    }


def _naive(problem: PlacementProblem) -> dict[str, object]:
    cpu = time.process_time()
    answer = naive_cp_sat(problem, NAIVE_LIMIT_S)
    found: dict[str, object] = {
        "naive_unmet_bound_ppm": answer.unmet_bound_ppm,
        "naive_s": round(answer.seconds, 1),
        "naive_cpu_s": round(time.process_time() - cpu, 1),
    }
    if answer.placement is not None:
        found |= _scored("naive", answer.placement, problem)
        found["naive_price_bound"] = (answer.price_bound_micros or 0) / 1e6
        found["naive_first_s"] = round(answer.first_s or 0.0, 1)
    return found


def _scored(name: str, placement: Placement, problem: PlacementProblem) -> dict[str, object]:
    broken = verify(problem, placement)
    if broken:
        print(f"{name}: {broken[0]} and {len(broken) - 1} more", file=sys.stderr)
    score = objectives(problem, placement)
    return {
        f"{name}_price": score.price_micros / 1e6,
        f"{name}_unmet_ppm": sum(ppm for _, ppm in score.unmet_ppm),
    }


def main() -> None:
    """Read the families from the command line and print rows as they come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gpus", nargs="+", type=int)
    parser.add_argument("--load", nargs="+", type=float, default=[0.8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--family", choices=("LLM", "M1"), default="LLM")
    parser.add_argument("--rules", default="", help="spread+pin+reserve+isolation+survive")
    parser.add_argument("--time-limit", type=float, default=180.0)
    asked = parser.parse_args()
    versions = f"Python {platform.python_version()}, OR-Tools {ortools_version}"
    print(f"# {platform.machine()}, {versions}", file=sys.stderr)
    out = csv.DictWriter(sys.stdout, FIELDS, restval="")
    out.writeheader()
    rules = frozenset(filter(None, asked.rules.split("+")))
    for gpus, load, seed in product(asked.gpus, asked.load, asked.seeds):
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            family = Family(gpus, load, seed, rules)
            out.writerow(alone.submit(row, asked.family, family, asked.time_limit).result())
        sys.stdout.flush()


if __name__ == "__main__":
    main()
