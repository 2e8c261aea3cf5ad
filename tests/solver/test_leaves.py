"""Levels closed by counting the places of deployments whose mixes are too many to be listed."""

from dataclasses import replace
from random import Random

import pytest

from builders import a100, candidate, deployment, fleet, gpu, node, problem, use
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import leaf, leaves, solve

PLAIN = gpu("plain", memory_gib=48, bandwidth_gbs=800)


def drawn(seed: int, least: int, most: int) -> PlacementProblem:
    """Two nodes and four deployments of two priorities, who ask for so many requests a second."""
    dice = Random(seed)
    names = [f"d{i}" for i in range(4)]
    ways = []
    for name in names:
        ways += [
            candidate(name, a100(), profile="2g.20gb", rps=dice.randint(2, 4)),
            candidate(name, a100(), gpus=2, rps=dice.randint(12, 20)),
            candidate(name, PLAIN, share=use(dice.randint(5, 20), 150, 0.2), rps=2.5),
        ]
    asked = [
        deployment(name, rps=dice.randint(least, most), replicas=2, max_replicas=9)
        for name in names
    ]
    asked = [replace(d, priority=5 * (i % 2)) for i, d in enumerate(asked)]
    machines = fleet(node("a", a100(), 3, price=2.0), node("p", PLAIN, 3, price=0.7))
    return problem(machines, asked, ways)


@pytest.mark.parametrize("seed", range(8))
def test_counting_places_gives_what_listing_mixes_gives(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    overfull, roomy = drawn(seed, 24, 40), drawn(seed, 5, 15)
    listed = [values(overfull), values(roomy)]
    monkeypatch.setattr(leaves, "MOST_MIXES", 0)
    monkeypatch.setattr(leaf, "MOST_MIXES", 0)
    assert [values(overfull), values(roomy)] == listed
    assert any(listed[0][:2])  # not all is served


def values(posed: PlacementProblem) -> list[int]:
    """Unmet demand and price, proved."""
    outcome = solve(posed, Limits())
    assert all(o.proved for o in outcome.objectives[:3])
    return [o.value for o in outcome.objectives[:3]]
