"""Amounts as they are printed: rounded so that the parts add up to the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from optimizer.domain.plan import Plan
from optimizer.domain.units import MICROS

CENT = MICROS // 100


def adding_up(parts: Sequence[int], whole: int | None = None, unit: int = CENT) -> list[int]:
    """The parts in whole units that add up to ``whole``, by default their sum, rounded.

    The method of largest remainders: all are rounded down, and what is missing goes to those that
    lost most.
    """
    total = round(sum(parts) / unit) if whole is None else whole
    found = [part // unit for part in parts]
    by_loss = sorted(range(len(parts)), key=lambda i: (-(parts[i] % unit), i))
    for i in by_loss[: total - sum(found)]:
        found[i] += 1
    return found


@dataclass(frozen=True, slots=True)
class TenantPaid:
    """What a tenant pays, in hundredths, and its part of the whole in percent."""

    name: str
    cents: int
    unused_cents: int
    percent: int
    deployments: Mapping[str, int]  # hundredths by deployment, what costs most first


def paid(plan: Plan) -> list[TenantPaid]:
    """Who pays what, who pays most first; each column adds up."""
    tenants = sorted(plan.tenants, key=lambda t: (-t.price_micros, t.name))
    prices = [t.price_micros for t in tenants]
    cents = adding_up(prices)
    unused = adding_up([t.stranded_micros for t in tenants])
    whole = sum(prices)
    percents = (
        adding_up([100 * price for price in prices], 100, whole) if whole else [0] * len(cents)
    )
    ranked = sorted(plan.deployments, key=lambda d: (d.tenant, -d.price_micros, d.name))
    of_tenant = {name: list(group) for name, group in groupby(ranked, lambda d: d.tenant)}
    found = []
    for i, tenant in enumerate(tenants):
        own = of_tenant.get(tenant.name, [])
        each = adding_up([d.price_micros for d in own], cents[i]) if own else []
        costs = dict(zip([d.name for d in own], each, strict=True))
        found.append(TenantPaid(tenant.name, cents[i], unused[i], percents[i], costs))
    return found


def by_deployment(plan: Plan) -> dict[str, str]:
    """The price of each deployment with two digits; those of a tenant add up to its own."""
    return {name: two(c) for tenant in paid(plan) for name, c in tenant.deployments.items()}


def two(cents: int) -> str:
    """Hundredths with two digits after the point."""
    return f"{cents / 100:,.2f}"
