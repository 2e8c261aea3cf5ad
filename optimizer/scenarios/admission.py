"""New deployments beside a plan, one after the other, while nothing that runs is moved."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from optimizer.domain import words
from optimizer.domain.units import money
from optimizer.domain.workload import Deployment
from optimizer.optimize import BrokenPlan, Inputs, Planned, resizing
from optimizer.scenarios.answer import Json
from optimizer.sizing import size

if TYPE_CHECKING:
    from optimizer.solver.remedy import Remedy


def admission(inputs: Inputs, planned: Planned, new: Sequence[Deployment]) -> Json:
    """``admit -o json``: where each runs and what that adds, or why it does not fit.

    ``seconds`` is the solving part: the fleet read already, the ways to run it known. Raises
    BrokenPlan where the judge finds fault with the placement.
    """
    from optimizer.solver.admit import admit, after
    from optimizer.solver.beside import Planned as Beside
    from optimizer.solver.remedy import admitting
    from optimizer.verify import verify

    unit = inputs.fleet.unit
    problem, placement = planned.problem, planned.plan.placement
    says, rows, refused = list[str](), list[Json](), list[Json]()
    marginal, seconds, fits, exact = 0, 0.0, True, True
    for one in new:
        ways = size(inputs.fleet, (one,), inputs.engines, None, inputs.gpus).candidates[one.name]
        beside = Beside.of(problem, placement)
        beside.ready()
        started = time.monotonic()
        found = admit(beside, one, ways)
        seconds += time.monotonic() - started
        exact &= found.exact
        if found.reason is not None:
            fits = False
            cure = admitting(beside, one, ways, resizing(inputs))
            refused.append(_refusal(one.name, found.reason, cure))
            says.append(_sentence(**refused[-1]))
            continue
        price = words.price(found.marginal_micros, unit)
        surely = "exact, while nothing moves" if found.exact else "at most"
        says.append(f"{one.name}: {price} more; {surely}.")
        marginal += found.marginal_micros
        rows += [
            {"replica": r.id, "where": words.place(r), "how": words.settings(r.config)}
            for r in found.replicas
        ]
        problem = replace(
            problem,
            deployments=(*problem.deployments, one),
            candidates={**problem.candidates, one.name: ways},
        )
        placement = after(beside, found)
        broken = verify(problem, placement)
        if broken:
            raise BrokenPlan(broken)
    return {
        "question": "admit",
        "unit": unit,
        "says": says,
        "fits": fits,
        "exact": exact,
        "price_per_hour": money(marginal),
        "seconds": round(seconds, 4),
        "refused": refused,
        "replicas": rows,
        "rows": rows,
    }


def _refusal(name: str, reason: str, cure: "Remedy") -> Json:
    """Why it does not fit, with every rule without which it would."""
    if cure.rules and not any(reason.startswith(rule) for rule in cure.rules):
        reason = f"{' or '.join(cure.rules)}: without it, it fits; {reason}"
    fix = ", or ".join(cure.fixes) or None
    return {"deployment": name, "reason": reason, "smallest_fix": fix}


def _sentence(deployment: str, reason: str, smallest_fix: str | None) -> str:
    told = f"{deployment} does not fit beside what runs: {reason}."
    return told if smallest_fix is None else f"{told} Would help: {smallest_fix}."
