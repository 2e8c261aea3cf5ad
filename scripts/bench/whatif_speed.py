"""How fast scenarios are answered: serial, on Ray workers, and against planning each from cold.

Usage: whatif_speed.py [--gpus 512] [--load 0.8] [--scenarios 1000] [--workers 1,2] [--cold 20]
                       [--serial 100] [--gap 0.01] [--effort 6] [--seed 1]

A seeded fleet and its deployments (placement_instances.py) are planned; the scenarios lose nodes
and racks and scale a deployment, a tenant or everybody. Cold is the same scenario planned with
nothing known and nothing running, warm from the baseline; both in CPU seconds of one process.

Per number of workers: seconds from the first answer to the last (the solving part), how busy the
workers were in it (their seconds of solving / (workers x the part's seconds)), CPU seconds an
answer, and by how much the driver's memory grew. The speed-up from one worker to two is told in
two ways: by the clock, and as it would be with the cores to ourselves (busy, times CPU seconds an
answer with one worker over those with two). Every answer of every run must be the same as before
and as in this process (the first of them, ``--serial``).
"""

import argparse
import random
import resource
import statistics
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from placement_instances import Family, generate

from optimizer.domain.outcome import Limits
from optimizer.domain.plan import PlanRun
from optimizer.domain.scenario import Change, Lose, Scale, Scenario
from optimizer.domain.workload import Workloads
from optimizer.optimize import Inputs, Planned, judged
from optimizer.planning import compose
from optimizer.scenarios.answer import Answer
from optimizer.scenarios.evaluate import Planner, Setting, Spent, Tally, evaluate, setting
from optimizer.sizing import Sizing


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=512)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenarios", type=int, default=1000)
    parser.add_argument("--cold", type=int, default=20)
    parser.add_argument("--serial", type=int, default=100)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--gap", type=float, default=0.01)
    parser.add_argument("--effort", type=float, default=6.0)
    asked = parser.parse_args()
    limits = Limits(gap=asked.gap, effort=asked.effort, time_limit_s=3600.0)
    began = time.process_time()
    inputs, baseline = planned(Family(asked.gpus, asked.load, asked.seed), limits)
    print(f"baseline {baseline.plan.status} in {time.process_time() - began:.2f} CPU s", flush=True)
    began = time.process_time()
    ground = setting(inputs, baseline, limits)
    print(f"its columns in {time.process_time() - began:.2f} CPU s", flush=True)
    scenarios = drawn(ground, asked.scenarios, asked.seed)
    cold_and_warm(ground, scenarios[: asked.cold])
    serial = evaluate(ground, scenarios[: asked.serial])
    known = {answer.name: answer for answer in serial}
    print(f"{len(serial)} answered in this process", flush=True)
    runs = []
    for workers in map(int, asked.workers.split(",")):
        run = measured(ground, scenarios, workers)
        other = [a.name for a in run.answers if known.setdefault(a.name, a) != a]
        print(f"{workers} workers: {told(run)}", flush=True)
        print(f"  other answers than before: {', '.join(other) or 'none'}", flush=True)
        runs.append(run)
    for one, more in pairwise(runs):
        print(speed_up(one, more), flush=True)


def planned(family: Family, limits: Limits) -> tuple[Inputs, Planned]:
    """The seeded problem as documents would give it, and its plan."""
    problem = generate(family)
    inputs = Inputs(problem.fleet, Workloads(family.name, problem.deployments), {})
    dropped = {d.name: () for d in problem.deployments}
    outcome = judged(problem, limits)
    run = PlanRun(0.0, limits.workers, "", outcome.stopped_by)
    plan = compose(problem, outcome, inputs=(), options={}, run=run, dropped=dropped)
    return inputs, Planned(plan, problem, Sizing(dict(problem.candidates), dropped))


def drawn(ground: Setting, count: int, seed: int) -> list[Scenario]:
    """So many different scenarios, the same for the same seed."""
    dice = random.Random(seed)
    nodes, deployments = ground.inputs.fleet.nodes, ground.inputs.workloads.deployments
    racks = sorted({node.rack for node in nodes if node.rack is not None})
    tenants = sorted({d.tenant for d in deployments})
    found: dict[str, Scenario] = {}
    while len(found) < count:
        by = dice.randrange(500_000, 1_500_000, 1_000)
        change: Change = dice.choice(
            (
                Lose("node", dice.choice(nodes).name),
                Lose("rack", dice.choice(racks)),
                Scale("deployment", dice.choice(deployments).name, by),
                Scale("tenant", dice.choice(tenants), by),
                Scale("all", None, 950_000 + by // 10),
            )
        )
        found[str(change)] = Scenario(str(change), (change,))
    return list(found.values())


def cold_and_warm(ground: Setting, scenarios: list[Scenario]) -> None:
    """The same scenarios from cold and from the baseline, in CPU seconds."""
    bare = replace(ground, known=None, inputs=replace(ground.inputs, current=None))
    means = []
    for name, ground_of in (("cold", bare), ("warm", ground)):
        planner = Planner(ground_of)
        planner.answer(scenarios[0])  # what the first one imports is nobody's
        taken = []
        for scenario in scenarios:
            began = time.process_time()
            planner.answer(scenario)
            taken.append(time.process_time() - began)
        means.append(statistics.mean(taken))
        middle, most = statistics.median(taken), max(taken)
        print(
            f"{name}: {means[-1]:.2f} CPU s a scenario, median {middle:.2f}, most {most:.2f}",
            flush=True,
        )
    print(f"warm is {means[0] / means[1]:.1f} times as fast", flush=True)


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation: its answers, and from the first of them to the last the seconds it took,
    what the workers spent, and the driver's memory at both ends."""

    workers: int
    answers: tuple[Answer, ...]
    first_s: float
    solving_s: float
    spent: Spent
    resident_mib: tuple[float, float]

    @property
    def rate(self) -> float:
        """Answers per second of the solving part."""
        return (len(self.answers) - 1) / max(self.solving_s, 1e-9)

    @property
    def busy(self) -> float:
        """The part of the workers' time that they solved in."""
        return self.spent.wall_s / (self.workers * max(self.solving_s, 1e-9))

    @property
    def cpu_s(self) -> float:
        """CPU seconds an answer."""
        return self.spent.cpu_s / max(1, len(self.answers) - 1)


def measured(ground: Setting, scenarios: list[Scenario], workers: int) -> Run:
    """Ask them all; the first answers, which start the workers, are not in the solving part."""
    seen: list[tuple[float, Spent, float]] = []
    began = time.monotonic()

    def heard(tally: Tally) -> None:
        if tally.answer is not None:
            seen.append((time.monotonic(), tally.spent, resident_mib()))

    answers = evaluate(ground, scenarios, workers=workers, report=heard)
    (start, before, small), (end, after, large) = seen[0], seen[-1]
    spent = Spent(after.wall_s - before.wall_s, after.cpu_s - before.cpu_s)
    return Run(workers, answers, start - began, end - start, spent, (small, large))


def resident_mib() -> float:
    """This process's memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def told(run: Run) -> str:
    """A run in one line."""
    failed = sum(answer.failed is not None for answer in run.answers)
    near = sum(near_enough(answer) for answer in run.answers)
    unserved = sum(bool(answer.unmet) for answer in run.answers)
    small, large = run.resident_mib
    return (
        f"{run.first_s:.1f} s to the first answer, then {run.solving_s:.1f} s, "
        f"{run.rate:.2f} scenarios/s, busy {run.busy:.1%}, {run.cpu_s:.2f} CPU s an answer, "
        f"{near} at a price within 1 % of the bound, {unserved} with unmet demand, "
        f"{failed} failed, driver {small:.0f} to {large:.0f} MiB"
    )


def near_enough(answer: Answer) -> bool:
    """Whether everybody is served at a price within 1 % of what is proved."""
    if answer.unmet or answer.price_micros is None or answer.bound_micros is None:
        return False
    return answer.price_micros - answer.bound_micros <= 0.01 * answer.price_micros


def speed_up(one: Run, more: Run) -> str:
    """Of the solving part, with so many times the workers."""
    ideal = more.workers / one.workers
    clock = more.rate / one.rate
    alone = ideal * more.busy / max(one.busy, 1e-9) * one.cpu_s / max(more.cpu_s, 1e-9)
    return (
        f"{one.workers} to {more.workers} workers: {clock:.2f} times as fast by the clock "
        f"({clock / ideal:.0%} of ideal), {alone:.2f} by CPU seconds ({alone / ideal:.0%})"
    )


if __name__ == "__main__":
    main()
