"""Bounds by counts of GPUs and by shares as a fluid: good ones, and never above the optimum."""

from random import Random

import pytest

from builders import a100, candidate, deployment, fleet, gpu, node, problem, use
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import columns, counts, solve
from optimizer.solver.columns import coarse_sites
from optimizer.solver.counts import Tree
from optimizer.solver.fluid import Fluid
from optimizer.solver.formulation import build
from optimizer.solver.integer import common_divisor, value_of
from optimizer.solver.master import Bound, Master

PLAIN = gpu("plain", memory_gib=48, bandwidth_gbs=800)


def drawn(seed: int) -> PlacementProblem:
    """Two nodes of each of two products and a few deployments that run on either."""
    dice = Random(seed)
    nodes = [node(f"a{i}", a100(), 4, price=2.0) for i in range(2)]
    nodes += [node(f"p{i}", PLAIN, 4, price=0.7) for i in range(2)]
    names = [f"d{i}" for i in range(4)]
    ways = []
    for name in names:
        ways += [
            candidate(name, a100(), profile="2g.20gb", rps=dice.randint(2, 4)),
            candidate(name, a100(), gpus=2, rps=dice.randint(12, 20)),
            candidate(name, PLAIN, share=use(dice.randint(5, 20), 150, 0.2), rps=2.5),
            candidate(name, PLAIN, share=use(dice.randint(20, 40), 300, 0.4), rps=4),
        ]
    asked = [deployment(name, rps=dice.randint(5, 12)) for name in names]
    return problem(fleet(*nodes), asked, ways)


def master_of(posed: PlacementProblem, kind: type[Master] = Master) -> Master:
    """The program of the price where everybody is served."""
    f = build(posed, coarse_sites(posed))
    return kind(f, f.price_micros(), frozenset({d.priority for d in posed.deployments}))


@pytest.mark.parametrize("seed", range(6))
def test_branching_on_counts_lifts_the_bound_and_stops_at_the_optimum(seed: int) -> None:
    posed = drawn(seed)
    outcome = solve(posed, Limits(time_limit_s=60))
    unmet, price = outcome.objectives[:2]
    assert unmet.value == 0
    assert price.proved
    master = master_of(posed)
    bound = master.solve()
    step = common_divisor(master.objective)
    lifted = Tree(master, step).lifted(bound, 10 * price.value, 10 * price.value)
    assert bound.value * master.unit - 1 <= lifted <= price.value
    assert lifted % step == 0


def test_counts_are_read_before_columns_are_added(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counts, "MOST_ROUNDS", 1)
    master = master_of(drawn(0))
    bound = master.solve()
    step = common_divisor(master.objective)
    Tree(master, step).lifted(Bound(bound.value), 2 * bound.value * master.unit)
    assert "changed since" not in capfd.readouterr().err


@pytest.mark.parametrize("pooled", [False, True], ids=["shares as patterns", "shares in pools"])
def test_numbers_of_gpus_are_decided_as_the_exact_search_decides_them(
    pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = 0
    for seed in range(8):
        posed = drawn(seed)
        truth = solve(posed, Limits(time_limit_s=60)).objectives[1]
        with monkeypatch.context() as few:
            if pooled:
                few.setattr(columns, "MOST_SIZES", 2)
            master = master_of(posed)
            tree = Tree(master, common_divisor(master.objective))
            low = tree.lifted(master.solve())
        assert bool(master.pools) is pooled
        assert low <= truth.value
        if tree.better is not None:
            assert value_of(master.objective, tree.better.values) >= truth.value
            decided += low == truth.value
    assert decided > 5


@pytest.mark.parametrize("seed", range(6))
def test_prices_of_the_fluid_prove_its_bound_among_fillings(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MOST_SIZES", 2)  # then fillings are generated
    posed = drawn(seed)
    master, fluid = master_of(posed), master_of(posed, Fluid)
    assert isinstance(fluid, Fluid)
    poured, filled = fluid.solve(), master.solve()
    assert master.pools
    assert 0 < poured.value <= filled.value + 1e-6
    at = fluid.duals_of(master, poured.duals)
    prices = master.prices(at)
    mixes = master.exact_mixes(prices, master.quick_mixes(prices))
    packed = master.packed(at, exact=True)
    assert master.lagrangian(at, prices, mixes, packed) >= poured.value - 1e-4
