"""Commands that look at documents and plans: valid, true, why, what differs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code
from optimizer.cli.groups import DATA, Showing
from optimizer.cli.inputs import tell_notes
from optimizer.cli.options import Output
from optimizer.cli.planning import PlanShowing
from optimizer.cli.terminal import (
    Stop,
    as_far_as_read,
    finish,
    guarded,
    refuse_output,
    say,
    show_data,
    stdout,
    write_result,
)

if TYPE_CHECKING:
    from optimizer.documents import Documents
    from optimizer.domain.plan import Plan
    from optimizer.optimize import Inputs, Planned
    from optimizer.verify import Violation

DEAREST = 5  # deployments whose marginal prices an explanation of a whole plan shows


@guarded
def validate(documents: options.DocumentFiles, output: options.Shown = Output.TABLE) -> None:
    """Find every fault of the documents at once.

    Prints each as file:line:column: path: message and exits with 2 when there is one.

    \b
    Examples:
      fleetslice validate clusters/lab-64.yaml workloads/prod.yaml
      fleetslice validate my-folder/
    """
    from optimizer.documents import DocumentFaults, load

    refuse_output(output, *DATA)
    try:
        found = load(documents, need=(), strict_scenarios=True)
    except DocumentFaults as faults:
        if output is Output.TABLE:
            raise
        told = [asdict(fault) for fault in faults.faults]
        show_data({"valid": False, "documents": [], "faults": told}, output)
        raise Stop(Code.USAGE) from None
    tell_notes(found)
    if not found.inputs:
        raise Stop(Code.USAGE, "no documents there; name YAML or JSON files that say their kind")
    if output is Output.TABLE:
        for one in found.inputs:
            print(f"{one.path}: {one.kind}: valid")
        return
    valid = [{"file": one.path, "kind": one.kind} for one in found.inputs]
    show_data({"valid": True, "documents": valid, "faults": []}, output)


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
    output: options.Shown = Output.TABLE,
) -> None:
    """Judge a plan by code that never met the solver.

    Exits with 7 and lists what is broken when the plan does not hold.

    \b
    Examples:
      fleetslice verify clusters/lab-64.yaml workloads/prod.yaml lab-64.plan.json
    """
    from optimizer.optimize import pose
    from optimizer.verify import RULES, Violation, check_plan

    refuse_output(output, *DATA)
    found = _with_what_ran(documents, state)
    assert found.plan is not None
    tell_notes(found)
    _check_same(found)
    problem, _ = pose(inputs.inputs_of(found, with_state=found.state is not None))
    said = (Violation("document", *contradiction) for contradiction in found.contradictions)
    violations = (*check_plan(problem, found.plan), *said)
    with as_far_as_read():
        _show_verdict(found.plan, violations, len(RULES), output)
    finish(Code.BROKEN if violations else Code.DONE)


def _show_verdict(
    plan: "Plan", violations: Sequence["Violation"], rules: int, output: Output
) -> None:
    from optimizer.domain.units import money
    from optimizer.domain.words import plural
    from optimizer.report import render_violations

    counted = len(plan.placement.replicas)
    if output is not Output.TABLE:
        told = [asdict(one) for one in violations]
        bound = plan.certificate.get("bound_micros")
        holds = {
            "holds": not violations,
            "replicas": counted,
            "rules": rules,
            "certified_price_per_hour": None if bound is None else money(bound),
        }
        show_data({**holds, "violations": told}, output)
    elif violations:
        render_violations(violations, stdout())
    else:
        print(
            f"The plan holds: {plural(counted, 'replica')} under {rules} rules; rates, "
            "prices, uses, predictions, moves and steps counted again."
        )
        for line in _certified(plan):
            print(line)


def _certified(plan: "Plan") -> Iterator[str]:
    """How much of the bound on the price was proved again, and how much is the solver's word."""
    from optimizer.domain.words import price

    bound = next((o.bound for o in plan.objectives if o.name == "price_per_hour"), None)
    proved = plan.certificate.get("bound_micros")
    told = "" if bound is None else price(bound, plan.unit)
    if proved is not None:
        least = price(proved, plan.unit)
        yield f"Its certificate proves that no plan that serves all costs less than {least}."
        if told and told != least:
            yield f"Its own bound is {told}: what lies between is the search's word."
    elif bound:
        yield f"It carries no certificate: its bound of {told} is the search's word."


def _with_what_ran(documents: list[Path], state: Path | None) -> "Documents":
    """The documents with their plan, and what ran when it was made. Raises DocumentFaults, Stop."""
    from optimizer.documents import load

    need = ("Fleet", "Workloads", "Plan")
    found = load(documents, need=need, state_path=state)
    assert found.plan is not None
    before = inputs.ran_before(found.plan)
    if found.state is not None or before is None:
        return found
    if not before.is_file():
        raise Stop(Code.USAGE, f"the plan was made from {before}: name it with --state FILE")
    say(f"note: what ran before is read from {before}")
    return load(documents, need=need, state_path=before)


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
    output: options.Shown = Output.TABLE,
) -> None:
    """Say why it is so and what would have to change.

    \b
    Examples:
      fleetslice explain lab-64.plan.json support-chat
      fleetslice explain lab-64.plan.json h100-01/3
    """
    from optimizer import report

    refuse_output(output, *DATA)
    known = _mended(*inputs.read_again(plan, documents), subject)
    try:
        told = report.explain(known.plan, known.problem, known.sizing.dropped, subject)
    except report.UnknownSubject as error:
        raise Stop(Code.USAGE, str(error)) from None
    prices, more = _marginal(known, subject)
    if output is not Output.TABLE:
        data = {"subject": subject, "sentences": [*told, *more], "marginal_prices": prices}
        show_data(data, output)
        return
    console = stdout()
    for sentence in (*told, *more):
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _mended(plan: "Plan", given: "Inputs", subject: str | None) -> "Planned":
    """A plan with its problem posed anew, and what would serve the subject if it goes short."""
    from optimizer.optimize import Planned, mended, pose

    problem, sizing = pose(given)
    if subject in {one.deployment for one in plan.unmet}:
        plan = replace(plan, unmet=mended(plan, problem, given, only=subject))
    return Planned(plan, problem, sizing)


def _marginal(known: "Planned", subject: str | None) -> tuple[dict[str, Any] | None, list[str]]:
    """Marginal prices as data and sentences: of a deployment, a GPU, or what costs most."""
    from optimizer import report
    from optimizer.solver.marginal import marginal_prices

    plan = known.plan
    dear = sorted(plan.deployments, key=lambda d: (-d.price_micros, d.name))
    asked = {d.name for d in dear[:DEAREST]} if subject is None else {subject}
    node = subject.rpartition("/")[0] if subject in {g.id for g in plan.gpus} else None
    if subject is not None and node is None and subject not in {d.name for d in dear}:
        return None, []  # a replica: its deployment has a price
    found = marginal_prices(known.problem, asked)
    if found is None:
        return None, []
    short = bool(plan.unmet)
    told = report.marginal_sentences(found, plan.unit, gpu_node=node, short=short)
    return report.marginal_data(found, plan.unit), list(told)


@guarded
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A plan or a state.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    *,
    shown: Showing,
) -> None:
    """Compare two plans, or a plan and a state. Exits with 10 when they differ.

    \b
    Examples:
      fleetslice diff clusters/lab-64.state.yaml tonight.plan.json
    """
    from optimizer import report

    shown.check(*Output)
    found = report.diff(_side(a), _side(b))
    data = report.diff_data(found)
    if shown.output is Output.MARKDOWN:
        print(report.diff_markdown(found), end="")
        write_result(shown.out, data)
    elif shown.output is Output.HTML:
        print(report.render_diff_html(found, a.name, b.name), end="")
        write_result(shown.out, data)
    else:
        shown.show(data, lambda console: report.render_diff(found, console, ascii=shown.ascii))
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
        PlanShowing(output, None, ascii, summary).show_plan(found)
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
    """The answers of a file that were asked of the plan; of one scenario the last counts."""
    from optimizer.scenarios.answer import read_entry, summary
    from optimizer.scenarios.compare import comparison

    text, before = path.read_text("utf-8"), summary(plan)
    try:
        try:
            whole = json.loads(text)
            asked_of = whole["baseline"]
            asked_of = asked_of["fingerprint"] if isinstance(asked_of, dict) else asked_of
            entries = [{**one, "baseline": asked_of} for one in whole.get("scenarios", [whole])]
        except json.JSONDecodeError:
            entries = [json.loads(line) for line in text.splitlines() if line]
        mine = [one for one in entries if one["baseline"] == before.fingerprint]
        answers = {str(one["name"]): read_entry(one) for one in mine}
    except (ValueError, KeyError, TypeError, AttributeError):
        what = "holds no answers; name what whatif -o json showed or whatif --out wrote"
        raise Stop(Code.USAGE, f"{path}: {what}") from None
    if entries and not mine:
        what = "its answers are of another baseline; ask again with --baseline and this plan"
        raise Stop(Code.USAGE, f"{path}: {what}")
    if len(mine) < len(entries):
        say(f"note: {path}: {len(entries) - len(mine)} answers of another baseline are left out")
    return comparison(before, list(answers.values()))


def _side(path: Path) -> Any:
    """A plan, or the placement of a state."""
    from optimizer.documents import load

    found = load([path], need=())
    side = found.plan or found.state
    if side is None:
        raise Stop(Code.USAGE, f"{path}: holds neither a Plan nor a State")
    return side
