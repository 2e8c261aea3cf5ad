"""The judge: every rule and the objectives, stated a second time, without the solver.

It judges answers, hints, hand-written placements and each state between two steps of a plan.
"""

from optimizer.verify.claims import check_outcome, check_plan
from optimizer.verify.facts import Violation
from optimizer.verify.judge import RULES, verify
from optimizer.verify.recount import Score, objectives
from optimizer.verify.transition import replay

__all__ = [
    "RULES",
    "Score",
    "Violation",
    "check_outcome",
    "check_plan",
    "objectives",
    "replay",
    "verify",
]
