"""One more deployment beside a plan: as cheap as a whole plan in which nothing else may move."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from ortools.sat.python import cp_model
from stagedproblems import wide_problem

from builders import a100, candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.config import Candidate
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver import solve
from optimizer.solver.admit import admit, after
from optimizer.solver.beside import Planned
from optimizer.solver.newcomer import Program
from optimizer.verify import objectives, verify
from randomproblems import ruled_problem

LIMITS = Limits(effort=10, time_limit_s=60)


def tried(seed: int, asked: PlacementProblem) -> str | None:
    """Admit the last deployment of a problem; how that went, None where nobody is before."""
    asked = replace(asked, current=None)
    *others, new = asked.deployments
    if new.demand is not None and seed % 2:
        new = replace(new, demand=replace(new.demand, rate_mrps=1 + new.demand.rate_mrps // 4))
        asked = replace(asked, deployments=(*others, new))
    staged = any(way.shape.stages > 1 for way in asked.candidates[new.name])
    if not others or new.survive not in (None, "node") or (staged and new.near):
        return None
    first = replace(asked, deployments=tuple(others))
    before = solve(first, LIMITS).incumbent
    if before is None or any(ppm for _, ppm in objectives(first, before).unmet_ppm):
        return None
    planned = Planned.of(first, before)
    admitted = admit(planned, new, asked.candidates[new.name])
    assert admitted.exact
    held = tuple(replace(d, disturb="never") for d in others)
    still = replace(asked, deployments=(*held, new), current=before)
    whole = solve(still, LIMITS)
    unserved = whole.incumbent is None or objectives(asked, whole.incumbent).unmet_ppm[-1][1]
    unserved = unserved or any(ppm for _, ppm in objectives(asked, whole.incumbent).unmet_ppm)
    if admitted.reason is not None:
        assert unserved, (seed, admitted.reason)
        return "refused"
    made = after(planned, admitted)
    assert verify(asked, made) == (), seed
    assert not any(ppm for _, ppm in objectives(asked, made).unmet_ppm), seed
    price = objectives(asked, made).price_micros
    assert price - objectives(first, before).price_micros == admitted.marginal_micros, seed
    assert whole.incumbent is not None
    assert price == objectives(asked, whole.incumbent).price_micros, seed
    return "admitted"


def test_nothing_cheaper_exists_while_what_runs_stays() -> None:
    rules = ("fixed", "reserve", "survive")
    told = Counter(tried(seed, ruled_problem(seed, rules[seed % 3])) for seed in range(80))
    assert told["admitted"] >= 8
    assert told["refused"] >= 8


def test_pipelines_are_admitted_as_cheaply() -> None:
    """Room kept free stays where it is in admission, not in a whole plan: none here."""
    wide = (wide_problem(seed) for seed in range(48))
    plain = (replace(one, fleet=replace(one.fleet, reserve=())) for one in wide)
    told = Counter(tried(seed, one) for seed, one in enumerate(plain))
    assert told["admitted"] >= 5
    assert told["refused"] >= 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pin": ("n0",)}, "pin: without it, it fits"),
        ({"spread_node": 1, "replicas": 4}, "spread: without it, it fits"),
        ({"replicas": 40}, "room for 13 of 40 replicas is left"),
    ],
)
def test_a_refusal_names_what_binds(fields: dict, said: str) -> None:
    machines = fleet(*(node(f"n{i}", a100()) for i in range(3)))
    full = [replica(f"old/{i}", "n0/0", mig=f"1g.10gb@{i}") for i in range(7)]
    old = problem(machines, [deployment("old", replicas=8)], [])
    before = place(*full, replica("old/7", "n1/0", mig="1g.10gb@0"))
    new = deployment("new", **{"replicas": 2, **fields})
    admitted = admit(Planned.of(old, before), new, [candidate("new", a100(), profile="1g.10gb")])
    assert (admitted.reason, admitted.replicas) == (said, ())


def drawn(seed: int) -> tuple[Planned, Deployment, list[Candidate]]:
    """A planned fleet in three racks, and a newcomer with one of the rules that look at domains."""
    dice = random.Random(seed)
    big, small = a100(), gpu("l40s")
    zones = seed % 2 + 2
    nodes = [
        node(f"a{i}", big, 2, price=2.0, rack=f"ra{i // 2}", zone=f"z{i // 2 % zones}")
        for i in range(4)
    ]
    nodes += [
        node(f"l{i}", small, 2, price=1.0, rack=f"rl{i // 2}", zone=f"z{(i // 2 + seed) % zones}")
        for i in range(4)
    ]
    machines = fleet(*nodes)
    old = deployment("old", replicas=6)
    here = [replica(f"old/{i}", f"a{dice.randrange(4)}/{i % 2}", mig=f"2g.20gb@{i % 3 * 2}")
            for i in range(0, 6, 2)]  # fmt: skip
    rule = dice.choice(
        [{}, {"spread_node": 1}, {"spread_rack": 2}, {"survive": "node"}, {"survive": "rack"},
         {"survive": "rack", "spread_node": 1}, {"survive": "node", "spread_rack": 2},
         {"survive": "zone"}, {"survive": "zone", "spread_node": 1},
         {"survive": "zone", "spread_rack": 1}, {"max_replicas": 2},
         {"survive": "rack", "max_replicas": 3}, {"survive": "node", "max_replicas": 2},
         {"survive": "node", "max_replicas": 3, "spread_rack": 1},
         {"survive": "zone", "max_replicas": 2}]
    )  # fmt: skip
    new = deployment("new", rps=dice.randint(10, 260) / 10, **rule)
    ways = [
        candidate("new", big, profile="2g.20gb", rps=dice.randint(8, 15) / 10),
        candidate("new", big, profile="3g.40gb", rps=dice.randint(15, 25) / 10),
        candidate("new", big, rps=dice.randint(35, 45) / 10),
        candidate("new", big, gpus=2, rps=dice.randint(70, 80) / 10),
        candidate("new", small, rps=dice.randint(10, 25) / 10),
    ]
    unique = {tuple(r.gpus) + (r.mig,): r for r in here}
    return Planned.of(problem(machines, [old], []), place(*unique.values())), new, ways


def test_a_few_nodes_reach_the_price_that_all_would() -> None:
    told = Counter[bool]()
    for seed in range(150):
        planned, new, ways = drawn(seed)
        admitted = admit(planned, new, ways)
        whole = Program(planned, new, ways)
        fits = whole.solve() == cp_model.OPTIMAL
        told[fits] += 1
        assert (admitted.reason is None) is fits, seed
        assert admitted.exact
        if fits:
            assert admitted.marginal_micros == whole.price_micros(), seed
    assert told[True] > 20
    assert told[False] > 3
