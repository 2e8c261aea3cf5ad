"""Rebalancing under rules that reach over nodes: survive, spread and pipelines; demand changes.

Each plan is judged as a whole, its steps replayed: no floor broken, no rule, on the way or after.
"""

import random
from dataclasses import replace

import pytest

from builders import candidate, deployment, fleet, gpu, node, problem
from optimizer.domain.config import ReplicaConfig
from optimizer.domain.outcome import Limits
from optimizer.domain.plan import PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.optimize import judged
from optimizer.planning import compose, moves, reached, spared
from optimizer.verify import check_plan, objectives

SLICED, PLAIN = gpu("sliced", mig="std8"), gpu("plain", memory_gib=48)
LIMITS = Limits(effort=1.5, time_limit_s=30, workers=1)
RUN = PlanRun(0.1, 1, "2026-01-01T00:00:00Z", "proof")
STAGED = ReplicaConfig(engine="vllm", pipeline_parallel=2)


def asked(dice: random.Random) -> PlacementProblem:
    """Five nodes in two racks: who survives a loss, who is spread, a pipeline over two nodes."""
    machines = fleet(
        *(node(f"s{i}", SLICED, 2, price=2.0, rack=f"r{i % 2}") for i in range(2)),
        *(node(f"p{i}", PLAIN, 2, price=1.0, rack=f"r{i % 2}") for i in range(3)),
    )
    rate = [dice.choice((1, 2, 3, 4)) for _ in range(3)]
    return problem(
        machines,
        [
            replace(deployment("safe", rps=rate[0]), survive=dice.choice(("node", "rack"))),
            replace(deployment("wide", rps=rate[1]), spread_node=dice.choice((1, 2))),
            deployment("staged", rps=dice.choice((1, 2))),
            deployment("plain", rps=rate[2]),
        ],
        [
            candidate("safe", SLICED, profile="1g.10gb", rps=1, load_gib=2),
            candidate("safe", SLICED, profile="3g.40gb", rps=3, load_gib=2),
            candidate("wide", SLICED, profile="2g.20gb", rps=1, load_gib=4),
            candidate("wide", PLAIN, rps=2, load_gib=4),
            candidate("staged", PLAIN, gpus=2, rps=2, load_gib=16, config=STAGED),
            candidate("plain", PLAIN, rps=3, load_gib=8),
            candidate("plain", SLICED, profile="2g.20gb", rps=1, load_gib=8),
        ],
    )


def nights(seed: int, count: int = 3) -> tuple[int, int]:
    """Several nights, each from what the one before left; moves made and nights not completed."""
    dice = random.Random(seed)
    made = unfinished = 0
    now = judged(asked(dice), LIMITS).incumbent
    for night in range(count):
        if now is None:
            break
        where = replace(asked(dice), current=now)
        outcome, ordered = reached(where, spared(where, judged(where, LIMITS)))
        if outcome.incumbent is None:
            continue
        plan = compose(where, outcome, inputs=(), options={}, run=RUN, dropped={}, ordered=ordered)
        assert check_plan(where, plan) == (), f"seed {seed}, night {night}"
        made += len(moves(where, outcome.incumbent))
        unfinished += bool(plan.left)
        if not plan.left:
            now = outcome.incumbent
            assert (
                objectives(where, now).unmet_ppm
                <= objectives(where, where.current or now).unmet_ppm
            )
    return made, unfinished


@pytest.mark.slow
def test_many_nights_under_rules() -> None:
    made = unfinished = 0
    for seed in range(100, 106):
        moved, short = nights(seed, 3)
        made, unfinished = made + moved, unfinished + short
    assert made > 20
    assert unfinished <= 4
