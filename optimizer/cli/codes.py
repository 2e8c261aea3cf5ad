"""What an exit code tells whoever called."""

from enum import IntEnum

from optimizer.domain.plan import Plan


class Code(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    ERROR = 1
    USAGE = 2  # wrong usage, or an invalid document
    UNMET = 3  # infeasible, or demand left unmet
    NO_PLAN = 4  # the limit came before any plan
    DRIFTED = 5  # what runs, or what was read, is no longer what the plan was made for
    PARTLY = 6
    BROKEN = 7  # the judge found a broken rule or a false claim
    CHANGED = 10
    INTERRUPTED = 130
    TERMINATED = 143


def of_plan(plan: Plan) -> Code:
    """How a planning command ends that made this plan."""
    if plan.run.stopped_by == "interrupt":
        return Code.INTERRUPTED
    if plan.status == "nothing_found":
        return Code.NO_PLAN
    if plan.status == "infeasible" or plan.unmet:
        return Code.UNMET
    return Code.PARTLY if plan.left else Code.DONE
