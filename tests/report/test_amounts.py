"""Amounts that people add up in their heads."""

from itertools import product

import plans
from optimizer.report.amounts import adding_up, by_deployment, paid


def test_parts_add_up_to_the_rounded_whole() -> None:
    for parts in product((0, 3_333, 5_000, 14_999, -7_000), repeat=4):
        found = adding_up(parts)
        assert sum(found) == round(sum(parts) / 10_000)
        pairs = zip(found, parts, strict=True)
        assert all(abs(10_000 * cents - part) < 10_000 for cents, part in pairs)


def test_deployments_add_up_to_their_tenant_and_tenants_to_the_plan() -> None:
    plan = plans.rebalanced_plan()
    tenants = paid(plan)
    assert sum(t.cents for t in tenants) == round(plan.price_micros / 10_000)
    assert sum(t.percent for t in tenants) == 100
    for tenant in tenants:
        assert sum(tenant.deployments.values()) == tenant.cents
    assert by_deployment(plan).keys() == {d.name for d in plan.deployments}
