"""Marginal prices: the slopes of the bound's linear program, against its values."""

import random
from dataclasses import replace

from builders import a100, candidate, deployment, fleet, gpu, node, problem
from optimizer.domain.marginal import Slope
from optimizer.domain.problem import PlacementProblem
from optimizer.solver.marginal import least_price_micros, marginal_prices

NEAR = 1e-4


def drawn(seed: int) -> PlacementProblem:
    """Three deployments on one-GPU nodes of two products, in slices and whole."""
    dice = random.Random(seed)
    big, small = a100(), gpu("l40s")
    nodes = [node(f"a{i}", big, price=2.0) for i in range(4)]
    nodes += [node(f"l{i}", small, price=1.0) for i in range(3)]
    asked, ways = [], []
    for i in range(3):
        name = f"d{i}"
        survive = "node" if seed % 3 == 0 and i == 0 else None
        asked.append(deployment(name, rps=dice.randint(20, 90) / 10, survive=survive))
        ways += [candidate(name, big, profile="2g.20gb", rps=dice.randint(10, 20) / 10)]
        ways += [candidate(name, big, rps=dice.randint(40, 70) / 10)]
        ways += [candidate(name, small, rps=dice.randint(10, 40) / 10)]
    return problem(fleet(*nodes), asked, ways)


def moved(asked: PlacementProblem, name: str, mrps: int) -> PlacementProblem:
    """The same with another demand of one deployment."""
    return replace(
        asked,
        deployments=tuple(
            replace(d, demand=replace(d.demand, rate_mrps=d.demand.rate_mrps + mrps))
            if d.name == name and d.demand
            else d
            for d in asked.deployments
        ),
    )


def test_slopes_agree_with_values_a_step_beside() -> None:
    compared = 0
    for seed in range(12):
        asked = drawn(seed)
        here = least_price_micros(asked)
        found = marginal_prices(asked, {d.name for d in asked.deployments})
        assert found is not None
        assert found.serves_all is (here is not None)
        for one in found.requests if here is not None else ():
            more = least_price_micros(moved(asked, one.deployment, 10))
            less = least_price_micros(moved(asked, one.deployment, -10))
            low, high = one.price.low, one.price.high
            assert less is not None
            assert low is not None
            assert low >= (here - less) * 100 * (1 - NEAR) - 1
            if more is not None and high is not None:
                compared += 1
                assert low - 1 <= high <= (more - here) * 100 * (1 + NEAR) + 1
                assert (more - less) * 50 >= low * (1 - NEAR) - 1
    assert compared > 15


def test_one_gpu_more_and_one_less_enclose_its_worth() -> None:
    for seed in (1, 2, 4, 5, 7, 8):  # a node more changes what survive asks for
        asked = drawn(seed)
        nodes = asked.fleet.nodes
        here = least_price_micros(asked)
        if here is None:
            continue
        twin = replace(nodes[0], name="twin")
        more = least_price_micros(replace(asked, fleet=replace(asked.fleet, nodes=(*nodes, twin))))
        less = least_price_micros(replace(asked, fleet=replace(asked.fleet, nodes=nodes[1:])))
        found = marginal_prices(asked, ())
        assert found is not None
        assert more is not None
        worth = next(one for one in found.gpus if one.gpu == "a100").saves
        assert worth.low is not None
        assert worth.low >= (here - more) * (1 - NEAR) - 1
        if worth.high is not None and less is not None:
            assert worth.low - 1 <= worth.high <= (less - here) * (1 + NEAR) + 1


def test_a_range_where_the_next_request_needs_a_dearer_gpu() -> None:
    """Two cheap GPUs are full: one request less saves 0.20, one more costs 0.60."""
    cheap, dear = gpu("cheap"), gpu("dear")
    machines = fleet(node("c", cheap, 2, price=1.0), node("d", dear, 2, price=3.0))
    ways = [candidate("chat", cheap, rps=5), candidate("chat", dear, rps=5)]
    asked = problem(machines, [deployment("chat", rps=10)], ways)
    found = marginal_prices(asked, {"chat"})
    assert found is not None
    assert found.requests[0].price == Slope(200_000, 600_000)
    worth = {one.gpu: one for one in found.gpus}
    assert worth["cheap"].saves == Slope(0, 2_000_000)
    assert worth["dear"].saves == Slope(0, 0)


def test_no_price_buys_what_there_is_no_room_for() -> None:
    machines = fleet(node("n0", gpu("toy"), 2, price=1.0))
    ways = [candidate("chat", gpu("toy"), rps=5)]
    found = marginal_prices(problem(machines, [deployment("chat", rps=20)], ways), {"chat"})
    assert found is not None
    assert not found.serves_all
    assert found.requests[0].price.high is None
    assert found.gpus[0].serves == Slope(0.25, 0.25)
