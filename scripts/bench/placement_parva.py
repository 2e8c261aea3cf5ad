"""ParvaGPU's scenarios as documents: fewest GPUs, beside what its authors published.

A slice may serve at the batch and number of processes that give most requests per second within
0.9 of half the SLO, the paper's rule; the planner then chooses slices and counts. Published and
proved figures: SC'24 artifact, its plans and an integer program over the same points.
"""

import argparse
import csv
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from optimizer.documents import load
from optimizer.domain.outcome import Limits
from optimizer.optimize import Inputs, optimize

DATA = Path(__file__).parent / "data" / "parvagpu"
GPU = "a100-80gb-sxm"
PROFILES = {1: "1g.10gb", 2: "2g.20gb", 3: "3g.40gb", 4: "4g.40gb", 7: "7g.80gb"}
ALLOWED_PART = 0.9 / 2  # of the SLO, for a request that just missed a batch
PROCESSES = 3  # in one slice, the most that the paper uses
# GPUs by scenario and multiple of its rates: as published or run again, and the proved least.
PUBLISHED = {(1, 1): 2, (2, 1): 3, (3, 1): 5, (4, 1): 7, (5, 1): 13, (6, 1): 16}
PUBLISHED |= {(6, 2): 31, (6, 5): 77, (6, 10): 151, (6, 20): 301, (6, 50): 748}
LEAST = {(1, 1): 2, (2, 1): 3, (3, 1): 5, (4, 1): 7, (5, 1): 12, (6, 1): 16}
LEAST |= {(6, 2): 30, (6, 5): 74, (6, 10): 148, (6, 20): 294, (6, 50): 735, (6, 100): 1468}
FIELDS = ("scenario", "times", "gpus", "bound", "published", "proved_elsewhere", "status", "s")


def models() -> list[str]:
    """The profiled networks, as the columns of the scenario files have them."""
    return sorted(f.stem.removeprefix("prof_data_") for f in DATA.glob("prof_data_*.csv"))


def ways(model: str, slo_ms: float) -> Iterator[dict[str, Any]]:
    """What each slice serves within the SLO."""
    best: dict[int, tuple[float, float]] = {}
    with (DATA / f"prof_data_{model}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            size, processes = int(row["Mig instance"]), int(row["Workload Number"])
            latency_ms = 1000 * float(row["Latency"])
            rate = processes * float(row["Throughput"])
            fits = processes <= PROCESSES and latency_ms < ALLOWED_PART * slo_ms
            if fits and rate > best.get(size, (0, 0))[0]:
                best[size] = rate, latency_ms
    for size, (rate, latency_ms) in sorted(best.items()):
        profile = {"gpu": GPU, "mig_profile": PROFILES[size]}
        # Rounded down, so that a plan never counts on more than was measured.
        served = math.floor(rate * 1000) / 1000
        yield {**profile, "requests_per_second": served, "latency_ms": round(latency_ms, 3)}


def documents(scenario: int, times: int, gpus: int) -> list[dict[str, Any]]:
    """Fleet and Workloads of a scenario (from 1) with its rates multiplied."""
    rates, slos = (_row(name, scenario) for name in ("SLO_SLO_req_rate", "SLO_SLO_latency"))
    asked = [
        {
            "name": model,
            "measured": list(ways(model, float(slo))),
            "demand": {"requests_per_second": times * float(rate)},
        }
        for model, rate, slo in zip(models(), rates, slos, strict=True)
        if rate != "N/A"
    ]
    nodes = [{"name": f"n{{1..{math.ceil(gpus / 8)}}}", "gpu": GPU, "gpus": 8}]
    return [
        {"kind": "Fleet", "version": 1, "name": "parva", "nodes": nodes},
        {"kind": "Workloads", "version": 1, "name": "parva", "deployments": asked},
    ]


def _row(name: str, scenario: int) -> list[str]:
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[scenario - 1]


def plan(scenario: int, times: int, limits: Limits) -> dict[str, Any]:
    """One row of the table."""
    key = scenario, times
    room = math.ceil(1.05 * LEAST.get(key, 20 * times)) + 8
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parva.yaml"
        file.write_text(yaml.safe_dump_all(documents(scenario, times, room)), "utf-8")
        loaded = load([file])
    assert loaded.fleet is not None
    assert loaded.workloads is not None
    found = optimize(Inputs(loaded.fleet, loaded.workloads, {}), limits).plan
    price = next(o for o in found.objectives if o.name == "price_per_hour")
    return {
        "scenario": f"S{scenario}",
        "times": times,
        "gpus": sum(g.mode != "empty" for g in found.gpus),
        "bound": math.ceil(price.bound / 1e6 - 1e-6),
        "published": PUBLISHED.get(key, ""),
        "proved_elsewhere": LEAST.get(key, ""),
        "status": found.status,
        "s": round(found.run.seconds, 1),
    }


def main() -> None:
    """All scenarios at their own rates, then the last one at many times its rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", nargs="+", type=int, default=[10, 50, 100])
    parser.add_argument("--effort", type=float, default=60.0)
    asked = parser.parse_args()
    out = csv.DictWriter(sys.stdout, FIELDS)
    out.writeheader()
    for scenario, times in [(s, 1) for s in range(1, 7)] + [(6, t) for t in asked.times]:
        out.writerow(plan(scenario, times, Limits(effort=asked.effort)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
