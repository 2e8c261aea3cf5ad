"""How many nodes a mix needs, by hand and against packing it."""

import random
from itertools import product

import pytest

from builders import deployment
from optimizer.solver.apart import nodes_needed


@pytest.mark.parametrize(
    ("spare", "replicas", "needed"),
    [
        (None, [(5, 4)], 1),
        (5, [(5, 4)], 4),
        (9, [(5, 4)], 4),
        (10, [(5, 4)], 2),
        (10, [(6, 1), (4, 2)], 2),
        (5, [], 0),
    ],
    ids=["nothing asked", "one a node", "not quite two", "two", "by what they serve", "none"],
)
def test_a_loss_says_how_many_nodes_a_mix_needs(spare, replicas, needed):
    assert nodes_needed(deployment("chat", rps=1, survive="node"), spare, replicas) == needed


def test_spread_says_so_too():
    assert nodes_needed(deployment("chat", rps=1, spread_node=2), None, [(5, 3), (2, 2)]) == 3


def test_no_packing_needs_fewer():
    dice = random.Random(7)
    tight = 0
    for _ in range(200):
        rates = sorted(dice.randint(1, 9) for _ in range(dice.randint(1, 5)))
        spare = dice.randint(max(rates), 20)
        d = deployment("chat", rps=1, survive="node", spread_node=dice.choice((None, 1, 2, 3)))
        bound = nodes_needed(d, spare, [(rate, rates.count(rate)) for rate in set(rates)])
        fewest = min(
            len(set(nodes))
            for nodes in product(range(len(rates)), repeat=len(rates))
            if _holds(nodes, rates, spare, d.spread_node)
        )
        assert bound <= fewest
        tight += bound == fewest
    assert tight > 150


def _holds(nodes, rates, spare, most):
    for node in set(nodes):
        here = [rate for at, rate in zip(nodes, rates, strict=True) if at == node]
        if sum(here) > spare or len(here) > (most or len(rates)):
            return False
    return True
