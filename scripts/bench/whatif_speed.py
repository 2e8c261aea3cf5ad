"""How fast scenarios are answered: serial, on Ray workers, and against planning each from cold.

Usage: whatif_speed.py DOCUMENT... [--scenarios N] [--workers 0,1,2] [--gap G] [--effort E]

Says per number of workers: seconds from the first answer to the last (the solving part), scenarios
per second, peak memory of the driver, and whether the answers are the same.
"""

import argparse
import resource
import time
from dataclasses import replace

from optimizer.documents import load
from optimizer.domain.outcome import Limits
from optimizer.domain.scenario import Lose, Scale, Scenario
from optimizer.optimize import Inputs, optimize
from optimizer.scenarios.answer import Answer
from optimizer.scenarios.evaluate import Planner, Setting, evaluate, setting


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("documents", nargs="+")
    parser.add_argument("--scenarios", type=int, default=20)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--gap", type=float, default=0.01)
    parser.add_argument("--effort", type=float, default=10.0)
    asked = parser.parse_args()
    found = load(asked.documents)
    assert found.fleet is not None
    assert found.workloads is not None
    engines = {card.name: card for card in found.catalogue.engine_cards()}
    inputs = Inputs(found.fleet, found.workloads, engines, gpus=found.gpus)
    limits = Limits(gap=asked.gap, effort=asked.effort, time_limit_s=3600.0)
    started = time.monotonic()
    baseline = optimize(inputs, limits)
    print(f"baseline {baseline.plan.status} in {time.monotonic() - started:.2f} s")
    ground = setting(inputs, baseline, limits)
    scenarios = made(ground, asked.scenarios)
    cold_and_warm(ground, inputs, scenarios[:5])
    first: tuple[Answer, ...] | None = None
    for workers in map(int, asked.workers.split(",")):
        answers, told = measured(ground, scenarios, workers)
        other = [a.name for a, b in zip(answers, first or answers, strict=True) if a != b]
        same = f", OTHER answers than before: {', '.join(other)}" if other else ""
        first = first or answers
        print(f"{workers} workers: {told}{same}", flush=True)


def made(ground: Setting, count: int) -> list[Scenario]:
    """Each node lost, then growth in small steps."""
    lost = [Scenario(f"lose {n.name}", (Lose("node", n.name),)) for n in ground.inputs.fleet.nodes]
    grown = [
        Scenario(f"x{1 + i / 200}", (Scale("all", None, 1_000_000 + i * 5_000),))
        for i in range(count)
    ]
    return [*lost[: count // 2], *grown][:count]


def cold_and_warm(ground: Setting, inputs: Inputs, scenarios: list[Scenario]) -> None:
    """The same scenarios from cold (documents to plan, nothing running) and from the baseline."""
    planner = Planner(ground)
    started = time.monotonic()
    for scenario in scenarios:
        world = planner.world(scenario)
        optimize(
            replace(inputs, fleet=world.fleet, workloads=world.workloads, current=None),
            ground.limits,
        )
    cold = time.monotonic() - started
    started = time.monotonic()
    for scenario in scenarios:
        planner.plan(scenario)
    warm = time.monotonic() - started
    print(f"cold {cold / len(scenarios):.2f} s, warm {warm / len(scenarios):.2f} s a scenario")


def measured(
    ground: Setting, scenarios: list[Scenario], workers: int
) -> tuple[tuple[Answer, ...], str]:
    """Answers, and what they took."""
    times: list[float] = []

    def heard(tally: object) -> None:
        times.append(time.monotonic())

    answers = evaluate(ground, scenarios, workers=workers, report=heard)
    solving = times[-1] - times[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    failed = sum(answer.failed is not None for answer in answers)
    rate = (len(scenarios) - 1) / solving
    return answers, (
        f"{times[1] - times[0]:.1f} s to the first answer, then {solving:.1f} s, "
        f"{rate:.2f} scenarios/s, {failed} failed, driver {peak} MiB"
    )


if __name__ == "__main__":
    main()
