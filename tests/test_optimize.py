"""The flow: what the judge refuses is never shown, and a false proof is never kept."""

from dataclasses import replace

import pytest

from builders import candidate, deployment, fleet, problem
from optimizer.domain.outcome import Limits
from optimizer.optimize import WITHOUT_CERTIFICATE, BrokenPlan, judged
from optimizer.solver import solve


@pytest.fixture
def small():
    return problem(fleet(), [deployment("chat")], [candidate("chat")])


def test_a_false_certificate_is_withdrawn_and_told(small):
    def boasting(asked, limits, progress):
        found = solve(asked, limits, progress)
        claim = {"objective": "price_per_hour", "bound_micros": 10**12, "values": []}
        return replace(found, certificate=claim)

    outcome = judged(small, Limits(effort=5), search=boasting)
    assert outcome.certificate == {}
    assert WITHOUT_CERTIFICATE in outcome.notes


def test_a_false_price_is_refused(small):
    def cheap(asked, limits, progress):
        found = solve(asked, limits, progress)
        wrong = tuple(
            replace(o, value=0, bound=0) if o.name == "price_per_hour" else o
            for o in found.objectives
        )
        return replace(found, objectives=wrong)

    with pytest.raises(BrokenPlan, match="price_per_hour"):
        judged(small, Limits(effort=5), search=cheap)
