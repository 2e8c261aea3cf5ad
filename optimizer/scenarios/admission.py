"""New deployments beside a plan, one after the other, while nothing that runs is moved."""

import time
from collections.abc import Sequence
from dataclasses import replace

from optimizer.domain import words
from optimizer.domain.units import money
from optimizer.domain.workload import Deployment
from optimizer.optimize import BrokenPlan, Inputs, Planned
from optimizer.scenarios.answer import Json
from optimizer.sizing import size


def admission(inputs: Inputs, planned: Planned, new: Sequence[Deployment]) -> Json:
    """``admit -o json``: where each runs and what that adds, or why it does not fit.

    ``seconds`` is the solving part: the fleet read already, the ways to run it known. Raises
    BrokenPlan where the judge finds fault with the placement.
    """
    from optimizer.solver.admit import admit, after
    from optimizer.solver.beside import Planned as Beside
    from optimizer.verify import verify

    unit = inputs.fleet.unit
    problem, placement = planned.problem, planned.plan.placement
    says, rows, marginal, seconds, fits, exact = [], [], 0, 0.0, True, True
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
            says.append(f"{one.name} does not fit beside what runs: {found.reason}.")
            continue
        price = words.price(found.marginal_micros, unit)
        surely = "exact, while nothing moves" if found.exact else "at most"
        says.append(f"{one.name}: {price} more an hour; {surely}.")
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
        "replicas": rows,
        "rows": rows,
    }
