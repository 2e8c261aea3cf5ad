"""Commands that make plans and look at them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code, of_plan
from optimizer.cli.options import Output
from optimizer.cli.rebalancing import Wishes, drained, frontier_data
from optimizer.cli.terminal import (
    Stop,
    check_writable,
    finish,
    guarded,
    interrupted,
    refuse_output,
    say,
    show_data,
    stdout,
    watching,
    write_result,
)

if TYPE_CHECKING:
    from optimizer.documents import Documents
    from optimizer.domain.outcome import Limits
    from optimizer.domain.plan import Plan

# Logical workers of one search: the same everywhere, or the same input would give two plans.
SEARCH_WORKERS = 2


NIGHT = "What a night may do"


@guarded
def validate(documents: options.DocumentFiles) -> None:
    """Find every fault of the documents at once.

    Prints each as file:line:column: path: message and exits with 2 when there is one.

    \b
    Examples:
      fleetslice validate clusters/lab-64.yaml workloads/prod.yaml
      fleetslice validate my-folder/
    """
    from optimizer.documents import load

    found = load(documents, need=(), strict_scenarios=True)
    tell_notes(found)
    if not found.inputs:
        raise Stop(Code.USAGE, "no documents there; name YAML or JSON files that say their kind")
    for one in found.inputs:
        print(f"{one.path}: {one.kind}: valid")


@guarded
def plan(
    documents: options.DocumentFiles,
    output: options.Shown = Output.TABLE,
    out: options.OutFile = None,
    summary: options.Summary = False,
    ascii: options.Ascii = False,
    gap: options.Gap = options.GAP,
    time_limit: options.TimeLimit = options.TIME_LIMIT_S,
    effort: options.Effort = options.EFFORT,
    seed: options.Seed = 0,
) -> None:
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

    check_writable(out)
    found = load(documents)
    tell_notes(found)
    for one in found.inputs:
        if one.kind in ("State", "Plan"):
            say(f"note: {one.path} ({one.kind}) is not used: plan places from scratch;")
            say("      to start from what runs now: fleetslice rebalance")
    asked = inputs.settings(command="plan", gap=gap, effort=effort, seed=seed)
    made = _optimized(found, limits_of(gap, time_limit, effort, seed), asked, with_state=False)
    _show_plan(made, output, out, summary=summary, ascii=ascii)
    finish(_code(made))


@guarded
def rebalance(
    documents: options.DocumentFiles,
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
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier",
            help="Show price against disruption as a curve, in place of a plan.",
            rich_help_panel=NIGHT,
        ),
    ] = False,
    points: Annotated[
        int, typer.Option("--points", min=2, max=200, help="Of the curve.", rich_help_panel=NIGHT)
    ] = 10,
    knee: Annotated[
        bool,
        typer.Option("--knee", help="Go where the curve bends.", rich_help_panel=NIGHT),
    ] = False,
    keep_configs: Annotated[
        bool,
        typer.Option(
            "--keep-configs",
            help="Only move what runs in MIG slices, as it runs; proved at any size.",
            rich_help_panel=NIGHT,
        ),
    ] = False,
    max_moves: Annotated[
        int | None,
        typer.Option(
            "--max-moves",
            min=0,
            help="Start at most so many copies; stops are free.",
            show_default=False,
            rich_help_panel=NIGHT,
        ),
    ] = None,
    max_load_gib: Annotated[
        float | None,
        typer.Option(
            "--max-load-gib",
            min=0,
            help="Load at most so much of weights.",
            show_default=False,
            rich_help_panel=NIGHT,
        ),
    ] = None,
    free_gpus: Annotated[
        str | None,
        typer.Option(
            "--free-gpus",
            metavar="N|all",
            help="Free so many GPUs with the least disruption.",
            show_default=False,
            rich_help_panel=NIGHT,
        ),
    ] = None,
    drain: Annotated[
        list[str] | None,
        typer.Option(
            "--drain",
            metavar="NODE",
            help="Empty this node; may be repeated.",
            show_default=False,
            rich_help_panel=NIGHT,
        ),
    ] = None,
    loads_at_once: Annotated[
        int | None,
        typer.Option(
            "--loads-at-once",
            min=1,
            help="Start at most so many copies at once.",
            show_default=False,
            rich_help_panel=NIGHT,
        ),
    ] = None,
    loads_per_node: Annotated[
        int | None,
        typer.Option(
            "--loads-per-node",
            min=1,
            help="Of those, on one node.",
            show_default=False,
            rich_help_panel=NIGHT,
        ),
    ] = None,
    window_minutes: Annotated[
        float | None,
        typer.Option(
            "--window-minutes",
            min=1,
            help="Leave what would end later, least valuable first.",
            show_default=False,
            rich_help_panel=NIGHT,
        ),
    ] = None,
    whole_gpus: Annotated[
        bool,
        typer.Option(
            "--whole-gpus",
            help="Cut a GPU anew only when nobody is on it, as mig-parted does.",
            rich_help_panel=NIGHT,
        ),
    ] = False,
    output: options.Shown = Output.TABLE,
    out: options.OutFile = None,
    summary: options.Summary = False,
    ascii: options.Ascii = False,
    gap: options.Gap = options.GAP,
    time_limit: options.TimeLimit = options.TIME_LIMIT_S,
    effort: options.Effort = options.EFFORT,
    seed: options.Seed = 0,
) -> None:
    """Make a running fleet cheaper with the fewest moves.

    The plan has ordered steps: a new replica serves before the old one stops.

    \b
    Examples:
      fleetslice rebalance clusters/lab-64.yaml workloads/prod.yaml \\
          --state clusters/lab-64.state.yaml --out tonight.plan.json
      fleetslice rebalance fleet.yaml workloads.yaml --state now.yaml --frontier
      fleetslice rebalance fleet.yaml workloads.yaml --state now.yaml --drain h100-03
    """
    from optimizer.documents import load

    check_writable(out)
    found = load(documents, need=("Fleet", "Workloads", "State"), state_path=state)
    tell_notes(found)
    limits = limits_of(gap, time_limit, effort, seed)
    if frontier:
        _show_frontier(found, limits, drain or (), points, output, out, ascii=ascii)
        finish(Code.DONE)
    wishes = Wishes(
        max_moves,
        max_load_gib,
        free_gpus,
        knee,
        keep_configs,
        loads_at_once,
        loads_per_node,
        window_minutes,
        whole_gpus,
    )
    asked = inputs.settings(
        command="rebalance",
        gap=gap,
        effort=effort,
        seed=seed,
        drain=drain,
        **wishes.said(),
    )
    made = _optimized(found, limits, asked, with_state=True, wishes=wishes, drain=drain or ())
    _show_plan(made, output, out, summary=summary, ascii=ascii, moves=True)
    code = _code(made)
    if detailed_exitcode and code is Code.DONE and made.moves:
        code = Code.CHANGED
    finish(code)


@guarded
def verify(
    documents: options.DocumentFiles,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="What ran before a rebalancing plan.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Judge a plan by code that never met the solver.

    Exits with 7 and lists what is broken when the plan does not hold.

    \b
    Examples:
      fleetslice verify clusters/lab-64.yaml workloads/prod.yaml lab-64.plan.json
    """
    from optimizer.documents import load
    from optimizer.optimize import pose
    from optimizer.report import render_violations
    from optimizer.verify import RULES, check_plan

    need = ("Fleet", "Workloads", "Plan")
    found = load(documents, need=need, state_path=state)
    assert found.plan is not None
    before = inputs.ran_before(found.plan)
    if found.state is None and before is not None:
        if not before.is_file():
            raise Stop(Code.USAGE, f"the plan was made from {before}: name it with --state FILE")
        say(f"note: what ran before is read from {before}")
        found = load(documents, need=need, state_path=before)
    assert found.plan is not None
    tell_notes(found)
    _check_same(found)
    problem, _ = pose(inputs.inputs_of(found, with_state=found.state is not None))
    violations = check_plan(problem, found.plan)
    if violations:
        render_violations(violations, stdout())
        finish(Code.BROKEN)
    counted = len(found.plan.placement.replicas)
    print(
        f"The plan holds: {counted} replicas under {len(RULES)} rules; rates, prices, uses, moves "
        "and steps counted again."
    )


def _check_same(found: "Documents") -> None:
    """Whether the plan is of this fleet, and of these very documents. Raises Stop."""
    assert found.plan is not None
    assert found.fleet is not None
    if found.plan.fleet != found.fleet.name:
        told = f"the plan is of fleet {found.plan.fleet}, the documents describe {found.fleet.name}"
        raise Stop(Code.BROKEN, told)
    given = {one.sha256 for one in found.inputs}
    for one in found.plan.inputs:
        if one.sha256 not in given:
            say(f"note: the plan was made from another version of {one.path}")


@guarded
def explain(
    plan: options.PlanFile,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[DEPLOYMENT|REPLICA|GPU]",
            help="What to explain; the whole plan without it.",
            show_default=False,
        ),
    ] = None,
    documents: options.With = None,
) -> None:
    """Say why it is so and what would have to change.

    \b
    Examples:
      fleetslice explain lab-64.plan.json support-chat
      fleetslice explain lab-64.plan.json h100-01/3
    """
    from optimizer import report

    known = inputs.posed_again(plan, documents)
    try:
        told = report.explain(known.plan, known.problem, known.sizing.dropped, subject)
    except report.UnknownSubject as error:
        raise Stop(Code.USAGE, str(error)) from None
    console = stdout()
    for sentence in told:
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)


@guarded
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A plan or a state.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    output: options.Shown = Output.TABLE,
    out: options.OutFile = None,
    ascii: options.Ascii = False,
) -> None:
    """Compare two plans, or a plan and a state. Exits with 10 when they differ.

    \b
    Examples:
      fleetslice diff clusters/lab-64.state.yaml tonight.plan.json
    """
    from optimizer import report

    check_writable(out)
    found = report.diff(_side(a), _side(b))
    match output:
        case Output.TABLE:
            report.render_diff(found, stdout(), ascii=ascii)
        case Output.MARKDOWN:
            print(report.diff_markdown(found), end="")
        case Output.HTML:
            print(report.render_diff_html(found, a.name, b.name), end="")
        case _:
            show_data(report.diff_data(found), output)
    write_result(out, report.diff_data(found))
    finish(Code.DONE if found.same else Code.CHANGED)


@guarded
def report(
    plan: options.PlanFile,
    output: options.Shown = Output.TABLE,
    summary: options.Summary = False,
    ascii: options.Ascii = False,
    whatif: Annotated[
        Path | None,
        typer.Option(
            "--whatif",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Put these answers on the HTML page too: what whatif -o json showed or "
            "whatif --out wrote, asked of this plan.",
            show_default=False,
        ),
    ] = None,
    frontier: Annotated[
        Path | None,
        typer.Option(
            "--frontier",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Put this curve on the HTML page too: what rebalance --frontier --out wrote.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show a plan again.

    \b
    Examples:
      fleetslice report lab-64.plan.json --summary
      fleetslice report lab-64.plan.json -o markdown
      fleetslice report lab-64.plan.json -o html --whatif answers.jsonl > lab-64.html
    """
    from optimizer import report
    from optimizer.documents import read_plan

    found = read_plan(plan)
    if whatif is None and frontier is None:
        _show_plan(found, output, None, summary=summary, ascii=ascii)
        return
    if output is not Output.HTML:
        raise Stop(Code.USAGE, "--whatif and --frontier: only the page shows them; add -o html")
    answers = None if whatif is None else _answers(whatif, found)
    curve = None if frontier is None else _curve(frontier)
    print(report.render_html(found, answers, curve), end="")


def _curve(path: Path) -> dict[str, Any]:
    """What ``rebalance --frontier --out`` wrote."""
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if {"unit", "points"} <= data.keys():
            return data
    except (ValueError, AttributeError):
        pass  # said below
    raise Stop(Code.USAGE, f"{path}: holds no curve; name what rebalance --frontier --out wrote")


def _answers(path: Path, plan: "Plan") -> dict[str, Any]:
    """The answers of a file compared with the plan; of one scenario the last counts."""
    from optimizer.scenarios.answer import read_entry, summary
    from optimizer.scenarios.compare import comparison

    text = path.read_text("utf-8")
    try:
        try:
            whole = json.loads(text)
            entries = whole.get("scenarios", [whole])
        except json.JSONDecodeError:
            entries = [json.loads(line) for line in text.splitlines() if line]
        answers = {str(one["name"]): read_entry(one) for one in entries}
    except (ValueError, KeyError, TypeError, AttributeError):
        what = "holds no answers; name what whatif -o json showed or whatif --out wrote"
        raise Stop(Code.USAGE, f"{path}: {what}") from None
    return comparison(summary(plan), list(answers.values()))


def _side(path: Path) -> Any:
    """A plan, or the placement of a state."""
    from optimizer.documents import load

    found = load([path], need=())
    side = found.plan or found.state
    if side is None:
        raise Stop(Code.USAGE, f"{path}: holds neither a Plan nor a State")
    return side


def limits_of(gap: float, time_limit: float, effort: float, seed: int) -> "Limits":
    from optimizer.domain.outcome import Limits

    return Limits(
        gap=gap, effort=effort, time_limit_s=time_limit, workers=SEARCH_WORKERS, seed=seed
    )


def _optimized(
    documents: "Documents",
    limits: "Limits",
    asked: Any,
    *,
    with_state: bool,
    wishes: Wishes | None = None,
    drain: Sequence[str] = (),
) -> "Plan":
    from optimizer.optimize import optimize

    asked_of = drained(inputs.inputs_of(documents, with_state=with_state), drain)
    policy = documents.policy if wishes is not None else None
    with watching(asked_of.fleet.unit) as progress:
        return optimize(
            asked_of,
            limits,
            options=asked,
            progress=progress,
            version=inputs.version(),
            search=wishes.search(policy) if wishes is not None else None,
            pace=wishes.pace(policy) if wishes is not None else None,
        ).plan


def _show_frontier(
    documents: "Documents",
    limits: "Limits",
    drain: Sequence[str],
    points: int,
    output: Output,
    out: Path | None,
    *,
    ascii: bool,
) -> None:
    """The curve on stdout in the form asked for, and as JSON in ``out``."""
    from optimizer.optimize import pose
    from optimizer.report import render_frontier_html
    from optimizer.report.frontier import render_frontier
    from optimizer.solver.rebalance import frontier

    refuse_output(output, Output.TABLE, Output.JSON, Output.YAML, Output.HTML)
    asked_of = drained(inputs.inputs_of(documents, with_state=True), drain)
    problem, _ = pose(asked_of)
    data = frontier_data(frontier(problem, limits, points), asked_of.fleet.unit)
    if output is Output.TABLE:
        render_frontier(data, stdout(), ascii=ascii)
    elif output is Output.HTML:
        print(render_frontier_html(data, asked_of.fleet.name), end="")
    else:
        show_data(data, output)
    write_result(out, data)


def _code(plan: "Plan") -> Code:
    code = of_plan(plan)
    return interrupted() if code is Code.INTERRUPTED else code


def _show_plan(
    plan: "Plan",
    output: Output,
    out: Path | None,
    *,
    summary: bool,
    ascii: bool,
    moves: bool = False,
) -> None:
    """The plan on stdout in the form asked for, and as JSON in ``out``."""
    from optimizer import report
    from optimizer.documents import plan_json

    data = plan_json(plan)
    match output:
        case Output.TABLE if moves:
            report.render_rebalance(plan, stdout(), summary=summary, ascii=ascii)
        case Output.TABLE:
            report.render_plan(plan, stdout(), summary=summary, ascii=ascii)
        case Output.MARKDOWN:
            print(report.markdown(plan), end="")
        case Output.HTML:
            print(report.render_html(plan), end="")
        case _:
            show_data(data, output)
    write_result(out, data)


def tell_notes(documents: "Documents") -> None:
    say(*(f"note: {note}" for note in documents.notes))
