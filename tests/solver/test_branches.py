"""Levels closed by branches agree with CP-SAT on the whole view; lists of mixes with all counts."""

from dataclasses import replace
from itertools import product
from math import inf
from random import Random

import pytest

from builders import a100, candidate, deployment, fleet, gpu, node, problem, use
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem, missing_ppm
from optimizer.domain.workload import Demand
from optimizer.solver import columns
from optimizer.solver.branches import Branching, branched
from optimizer.solver.columns import coarse_sites
from optimizer.solver.formulation import Expr, Formulation, build
from optimizer.solver.integer import Clock, common_divisor, run, value_of
from optimizer.solver.leaves import closed, separable
from optimizer.solver.master import Bound, Master
from optimizer.solver.mixes import Wanted, every_mix
from optimizer.solver.pricing import Item

PLAIN = gpu("plain", memory_gib=48, bandwidth_gbs=800)
FAR = 10**12


def drawn(seed: int, times: float) -> PlacementProblem:
    """Two nodes of each of two products and deployments that ask for ``times`` their part."""
    dice = Random(seed)
    nodes = [node(f"a{i}", a100(), 4, price=2.0) for i in range(2)]
    nodes += [node(f"p{i}", PLAIN, 4, price=0.7) for i in range(2)]
    ways, asked = [], []
    for name in [f"d{i}" for i in range(5)]:
        ways += [
            candidate(name, a100(), profile="3g.40gb", rps=dice.randint(2, 4)),
            candidate(name, a100(), gpus=2, rps=dice.randint(12, 20)),
            candidate(name, a100(), gpus=4, rps=dice.randint(25, 39)),
            candidate(name, PLAIN, share=use(dice.randint(15, 40), 300, 0.4), rps=4),
        ]
        asked.append(deployment(name, rps=times * dice.randint(5, 12)))
    return problem(fleet(*nodes), asked, ways)


def least(f: Formulation, expr: Expr) -> int:
    """The least value by CP-SAT, proved."""
    model = f.model.clone()
    model.minimize(expr)
    answer = run(model, Clock(Limits(time_limit_s=60), lambda _: None), "test", effort=60)
    assert answer.found
    assert answer.value == answer.bound
    return answer.value


def proved(f: Formulation, expr: Expr, complete: frozenset[int]) -> tuple[int, int]:
    """The floor, and the best value met."""
    master = Master(f, expr, complete)
    assert separable(master)
    bound, low, value = master.solve(), 0, FAR
    for way in (closed, branched):
        found = way(master, bound, common_divisor(expr), (low, value), lambda: 60.0)
        low = max(low, found.floor)
        if found.values:
            value = value_of(expr, found.values)
    return low, value


@pytest.mark.parametrize("seed", range(3))
def test_prices_and_unmet_demand_are_closed_at_the_optimum(seed: int) -> None:
    f = build(some := drawn(seed, 1.0), coarse_sites(some))
    priorities = frozenset({d.priority for d in some.deployments})
    served = f.model.clone()
    for missing in f.missing.values():
        served.add(missing == 0)
    best = least(replace(f, model=served), f.price_micros())
    assert proved(f, f.price_micros(), priorities) == (best, best)
    f = build(some := drawn(seed, 4.0), coarse_sites(some))
    best = least(f, f.unmet_ppm(0))
    assert best > 0
    assert proved(f, f.unmet_ppm(0), frozenset()) == (best, best)


@pytest.mark.parametrize("seed", range(2))
def test_floors_stay_below_the_optimum_where_fillings_are_generated(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    f = build(some := drawn(seed, 4.0), coarse_sites(some))
    best = least(f, f.unmet_ppm(0))
    monkeypatch.setattr(columns, "MOST_SIZES", 2)
    f = build(some, coarse_sites(some))
    assert f.pools
    floor, value = proved(f, f.unmet_ppm(0), frozenset())
    assert 0 < floor <= best <= value


@pytest.mark.parametrize("least_replicas", [0, 3])
@pytest.mark.parametrize("missing_price", [None, 1e-6])
def test_every_mix_within_a_limit_is_listed(
    least_replicas: int, missing_price: float | None
) -> None:
    items = [Item(3.0, 5000, 0), Item(2.0, 3000, 1), Item(1.5, 2000, 2, 2)]
    d = replace(deployment("d"), demand=Demand(9000), min_replicas=least_replicas)
    listed = every_mix(d, items, Wanted(7.0, missing_price, 1000))
    assert listed is not None
    found = {mix.counts for mix in listed}
    expected = set()
    for counts in product(range(5), range(5), range(3)):
        held = list(zip(counts, items, strict=True))
        served = sum(n * item.capacity for n, item in held)
        missing = missing_ppm(d, served, sum(counts))
        cost = sum(n * item.price for n, item in held) + missing * (missing_price or 0.0)
        smallest = min((item.capacity for n, item in held if n), default=inf)
        idle = any(counts) and missing_ppm(d, served - smallest, sum(counts) - 1) == missing
        if cost <= 7.0 and not idle and (missing_price is not None or not missing):
            expected.add(tuple((v, n) for v, n in enumerate(counts) if n))
    assert found == expected
    assert len(found) > 2


class NoPrices:
    """Boxes whose linear program gives up each time, so that nothing is known of them."""

    whole, boxes, part, step = ((0, 1),), 0, 1.0, 1

    def within(self, box: object, target: int) -> tuple[Bound, None]:
        return Bound(-inf), None

    def low(self, best: Bound) -> int:
        return 0

    def seconds_left(self) -> float:
        return 1.0


def test_a_program_that_gives_up_proves_nothing():
    assert Branching(NoPrices(), 5).run(2).floor == 2
