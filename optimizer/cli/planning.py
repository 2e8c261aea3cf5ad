"""Commands that make plans."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code, of_plan
from optimizer.cli.groups import DATA, Limiting, Showing
from optimizer.cli.inputs import tell_notes
from optimizer.cli.options import Output
from optimizer.cli.rebalancing import CURVE, Wishes, frontier_data
from optimizer.cli.terminal import (
    as_far_as_read,
    finish,
    guarded,
    interrupted,
    say,
    show_data,
    stdout,
    watching,
    write_result,
)

if TYPE_CHECKING:
    from optimizer.domain.plan import Plan
    from optimizer.optimize import Inputs, Search
    from optimizer.planning import Pace


@dataclass(frozen=True, slots=True)
class PlanShowing(Showing):
    """What stdout shows of a plan, and the file that gets it."""

    summary: options.Summary = False

    def show_plan(self, plan: "Plan", *, moves: bool = False) -> None:
        """The plan, or with ``moves`` what changes, in the form asked for and in the file."""
        from optimizer import report
        from optimizer.documents import plan_json

        data = plan_json(plan)
        write_result(self.out, data)  # first: whoever reads stdout may end before it does
        with as_far_as_read():
            match self.output:
                case Output.TABLE:
                    render = report.render_rebalance if moves else report.render_plan
                    render(plan, stdout(), summary=self.summary, ascii=self.ascii)
                case Output.MARKDOWN:
                    print(report.markdown(plan), end="")
                case Output.HTML:
                    print(report.render_html(plan), end="")
                case _:
                    show_data(data, self.output)


@guarded
def plan(documents: options.DocumentFiles, *, shown: PlanShowing, limiting: Limiting) -> None:
    """Place deployments from scratch at the least cost.

    The plan is judged before it is shown, and carries a proved bound on what any plan must cost.

    Exits with 0 when all demand is met, 3 when some is not or hard rules clash, 4 when no plan was
    found in time.

    \b
    Examples:
      fleetslice plan clusters/lab-64.yaml workloads/prod.yaml --out lab-64.plan.json
      fleetslice plan fleet.yaml workloads.yaml --gap 0.01 --time-limit 30 -o markdown
    """
    from optimizer.documents import load

    shown.check(*Output)
    found = load(documents)
    tell_notes(found)
    for one in found.inputs:
        if one.kind in ("State", "Plan"):
            say(f"note: {one.path} ({one.kind}) is not used: plan places from scratch;")
            say("      to start from what runs now: fleetslice rebalance")
    asked = inputs.settings(command="plan", **limiting.said())
    made = _optimized(inputs.inputs_of(found, with_state=False), limiting, asked)
    shown.show_plan(made)
    finish(_code(made))


@dataclass(frozen=True, slots=True)
class Curve:
    """Price against disruption, in place of a plan."""

    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier",
            help="Show price against disruption as a curve, in place of a plan.",
            rich_help_panel=CURVE,
        ),
    ] = False
    points: Annotated[
        int, typer.Option("--points", min=2, max=200, help="Of the curve.", rich_help_panel=CURVE)
    ] = 10
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=0,
            help="Ray workers for the curve; 0 works in this process, without Ray.",
            rich_help_panel=CURVE,
        ),
    ] = 0


@guarded
def rebalance(
    documents: options.DocumentFiles,
    *,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="What runs now: a State, or an earlier plan.",
            show_default=False,
        ),
    ] = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 10 when something would move.")
    ] = False,
    wishes: Wishes,
    curve: Curve,
    shown: PlanShowing,
    limiting: Limiting,
) -> None:
    """Make a running fleet cheaper with the fewest moves.

    The plan has ordered steps: a new replica serves before the old one stops. Above 256 GPUs,
    where no --gap is given, a price within 1 % will do, so that little moves.

    \b
    Examples:
      fleetslice rebalance clusters/lab-64.yaml workloads/prod.yaml \\
          --state clusters/lab-64.state.yaml --out tonight.plan.json
      fleetslice rebalance fleet.yaml workloads.yaml --state now.yaml --frontier
      fleetslice rebalance fleet.yaml workloads.yaml --state now.yaml --drain h100-03
    """
    from optimizer.documents import load
    from optimizer.optimize import nearly

    shown.check(*((*DATA, Output.HTML) if curve.frontier else Output))
    found = load(documents, need=("Fleet", "Workloads", "State"), state_path=state)
    tell_notes(found)
    asked_of = wishes.drained(inputs.inputs_of(found, with_state=True))
    if curve.frontier:
        _show_frontier(asked_of, limiting, curve, shown)
        finish(Code.DONE)
    search, pace = wishes.search(found.policy), wishes.pace(found.policy)
    if search is None:
        limiting = replace(limiting, gap=nearly(limiting.limits(), asked_of.fleet).gap)
    asked = inputs.settings(command="rebalance", **limiting.said(), **wishes.said(found.policy))
    made = _optimized(asked_of, limiting, asked, search, pace)
    shown.show_plan(made, moves=True)
    code = _code(made)
    if detailed_exitcode and code is Code.DONE and made.moves:
        code = Code.CHANGED
    finish(code)


def _optimized(
    asked_of: "Inputs",
    limiting: Limiting,
    asked: Mapping[str, Any],
    search: "Search | None" = None,
    pace: "Pace | None" = None,
) -> "Plan":
    from optimizer.optimize import optimize

    with watching(asked_of.fleet.unit) as progress:
        return optimize(
            asked_of,
            limiting.limits(),
            options=asked,
            progress=progress,
            version=inputs.version(),
            search=search,
            pace=pace,
        ).plan


def _show_frontier(
    asked_of: "Inputs", limiting: Limiting, curve: Curve, shown: PlanShowing
) -> None:
    """The curve on stdout in the form asked for, and as JSON in the file."""
    from optimizer.optimize import pose
    from optimizer.report import render_frontier_html
    from optimizer.report.frontier import render_frontier
    from optimizer.scenarios.curve import frontier
    from optimizer.solver.rebalance import unserved

    problem, _ = pose(asked_of)
    found = frontier(problem, limiting.limits(), curve.points, workers=curve.workers)
    data = frontier_data(found, asked_of.fleet.unit, unserved(problem))
    if shown.output is Output.HTML:
        print(render_frontier_html(data, asked_of.fleet.name), end="")
        write_result(shown.out, data)
    else:
        shown.show(data, lambda console: render_frontier(data, console, ascii=shown.ascii))


def _code(plan: "Plan") -> Code:
    code = of_plan(plan)
    return interrupted() if code is Code.INTERRUPTED else code
