"""How fast scenarios are answered: serial, on Ray workers, and against planning each from cold.

Usage: whatif_speed.py [--gpus 512] [--load 0.8] [--scenarios 1000] [--workers 0,1,2] [--cold 5]
                       [--gap 0.01] [--effort 6] [--seed 1]

A seeded fleet and its deployments (placement_instances.py) are planned; the scenarios lose nodes
and racks and scale a deployment, a tenant or everybody. Cold is the same scenario planned with
nothing known and nothing running. Per number of workers: seconds from the first answer to the last
(the solving part), scenarios per second, peak memory of the driver, and whether every answer is
the same as before. CPU seconds say more than the clock where the machine does other work.
"""

import argparse
import random
import resource
import statistics
import time
from dataclasses import replace

from placement_instances import Family, generate

from optimizer.domain.outcome import Limits
from optimizer.domain.plan import PlanRun
from optimizer.domain.scenario import Change, Lose, Scale, Scenario
from optimizer.domain.workload import Workloads
from optimizer.optimize import Inputs, Planned, judged
from optimizer.planning import compose
from optimizer.scenarios.answer import Answer
from optimizer.scenarios.evaluate import Planner, Setting, evaluate, setting
from optimizer.sizing import Sizing


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=512)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenarios", type=int, default=1000)
    parser.add_argument("--cold", type=int, default=5)
    parser.add_argument("--workers", default="0,1,2")
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
    first: tuple[Answer, ...] | None = None
    for workers in map(int, asked.workers.split(",")):
        answers, told = measured(ground, scenarios, workers)
        other = [a.name for a, b in zip(answers, first or answers, strict=True) if a != b]
        same = f", OTHER answers than before: {', '.join(other)}" if other else ""
        first = first or answers
        print(f"{workers} workers: {told}{same}", flush=True)


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
    for name, ground_of in (("cold", bare), ("warm", ground)):
        planner = Planner(ground_of)
        taken = []
        for scenario in scenarios:
            began = time.process_time()
            planner.plan(scenario)
            taken.append(time.process_time() - began)
        mean, middle = statistics.mean(taken), statistics.median(taken)
        print(f"{name}: {mean:.2f} CPU s a scenario, median {middle:.2f}", flush=True)


def measured(
    ground: Setting, scenarios: list[Scenario], workers: int
) -> tuple[tuple[Answer, ...], str]:
    """Answers, and what they took."""
    times: list[float] = []

    def heard(tally: object) -> None:
        times.append(time.monotonic())

    began = time.process_time()
    answers = evaluate(ground, scenarios, workers=workers, report=heard)
    own = time.process_time() - began
    solving = times[-1] - times[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    failed = sum(answer.failed is not None for answer in answers)
    within = sum(answer.status in ("optimal", "within_gap") for answer in answers)
    rate = (len(scenarios) - 1) / max(solving, 1e-9)
    return answers, (
        f"{times[1] - times[0]:.1f} s to the first answer, then {solving:.1f} s, "
        f"{rate:.2f} scenarios/s, {within} within the gap, {failed} failed, "
        f"driver {own:.1f} CPU s, {peak} MiB"
    )


if __name__ == "__main__":
    main()
