"""The curve of price against disruption on Ray."""

import pytest

from optimizer.domain.outcome import Limits
from optimizer.scenarios.curve import frontier
from scripts.bench.rebalance_fleets import fragmented

LIMITS = Limits(time_limit_s=60)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("rules", [False, True], ids=["no rules", "replicas told apart"])
def test_two_workers_find_the_points_of_one_process(rules: bool) -> None:
    problem = fragmented(64, seed=5, deployments=20 if rules else 0, rules=rules)
    alone = frontier(problem, LIMITS, 12)
    assert len(alone) > 5
    assert frontier(problem, LIMITS, 12, workers=2) == alone
