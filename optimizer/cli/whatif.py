"""The command that asks many what-if questions at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code
from optimizer.cli.groups import DATA, Limiting, Working
from optimizer.cli.inputs import tell_notes
from optimizer.cli.options import Output
from optimizer.cli.terminal import (
    Stop,
    Verbosity,
    check_writable,
    finish,
    guarded,
    refuse_output,
    say,
    show_data,
    stderr,
    stdout,
    watching,
)

if TYPE_CHECKING:
    from optimizer.documents import Documents
    from optimizer.domain.outcome import Limits
    from optimizer.optimize import Inputs, Planned
    from optimizer.scenarios.answer import Answer
    from optimizer.scenarios.evaluate import Setting, Tally

FEW = 100  # of so many scenarios, what would serve who is short is solved for
QUICK = "A quick scenario without a file: one, in which all of these happen"


def _lost(kind: str) -> Any:
    text = f"A {kind} is lost; may be repeated."
    return typer.Option(
        f"--lose-{kind}", metavar="NAME", help=text, rich_help_panel=QUICK, show_default=False
    )


Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="PLAN",
        help="The plan to compare with; made first without it.",
        show_default=False,
    ),
]
ScaleDemand = Annotated[
    list[str] | None,
    typer.Option(
        "--scale-demand",
        metavar="FACTOR",
        help="All demand times this; tenant:NAME=FACTOR or deployment:NAME=FACTOR for one.",
        rich_help_panel=QUICK,
        show_default=False,
    ),
]
Add = Annotated[
    list[Path] | None,
    typer.Option(
        "--add",
        metavar="FILE",
        help="Deployments of another Workloads document come.",
        rich_help_panel=QUICK,
        show_default=False,
    ),
]
AnswersFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write answers as they come, a JSON line each; started again, an interrupted run "
        "goes on with what is missing.",
        rich_help_panel=options.SHOWN,
        show_default=False,
    ),
]
Assign = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field changes: deployments.chat.slo.tpot_ms=40; may be repeated.",
        rich_help_panel=QUICK,
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Quick:
    """A scenario that flags describe."""

    lose_node: Annotated[list[str] | None, _lost("node")] = None
    lose_rack: Annotated[list[str] | None, _lost("rack")] = None
    lose_zone: Annotated[list[str] | None, _lost("zone")] = None
    lose_gpu: Annotated[list[str] | None, _lost("gpu")] = None
    scale_demand: ScaleDemand = None
    add: Add = None
    assign: Assign = None

    def scenario(self) -> dict[str, Any] | None:
        """The same as a document would say it; None where no flag is given."""
        from optimizer.scenarios.quick import quick, scaling

        lost = {
            "node": self.lose_node,
            "rack": self.lose_rack,
            "zone": self.lose_zone,
            "gpu": self.lose_gpu,
        }
        return quick(
            lose=[(kind, name) for kind, names in lost.items() for name in names or ()],
            scale=[scaling(text) for text in self.scale_demand or ()],
            add=self.add or (),
            assign=self.assign or (),
        )


@guarded
def whatif(
    documents: options.DocumentFiles,
    *,
    baseline: Baseline = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Plan scenarios from scratch, not from the baseline's plan."),
    ] = False,
    fixes: Annotated[
        bool | None,
        typer.Option(
            "--fixes/--no-fixes",
            help=f"Solve for changes that would serve who is short; default: of up to {FEW} "
            "scenarios.",
            show_default=False,
        ),
    ] = None,
    quick: Quick,
    output: options.Shown = Output.TABLE,
    out: AnswersFile = None,
    ascii: options.Ascii = False,
    limiting: Limiting,
    working: Working,
) -> None:
    """Ask many scenarios at once, on Ray.

    Each scenario of the Scenarios documents is planned in full and compared with the baseline.
    One that fails does not stop the rest (exit code 6); where all are answered the exit code is 0,
    whatever the answers say.

    \b
    Examples:
      fleetslice whatif clusters/lab-64.yaml workloads/prod.yaml workloads/lab-64.scenarios.yaml
      fleetslice whatif fleet.yaml workloads.yaml scenarios.yaml --baseline p.json --workers 0
      fleetslice whatif fleet.yaml workloads.yaml --lose-node h100-01 --scale-demand 1.5
    """
    from optimizer.scenarios.compare import comparison
    from optimizer.scenarios.evaluate import comparing, setting
    from optimizer.scenarios.quick import load_with

    refuse_output(output, *DATA, Output.HTML)
    check_writable(out)
    found = load_with(documents, quick.scenario())
    tell_notes(found)
    if not found.scenarios and not found.bad_scenarios:
        raise Stop(
            Code.USAGE,
            "no scenarios; name a document of kind Scenarios, or ask one by flags (see --help)",
        )
    limits = limiting.limits()
    asked, planned = baseline_of(found, baseline, limits)
    ground = comparing(setting(asked, planned, limits, fresh=fresh))
    wanted = len(found.scenarios) <= FEW if fixes is None else fixes
    ground = replace(ground, fixes=wanted)
    data = comparison(ground.before, _answers(ground, found, working, out))
    _show(data, planned, output, ascii=ascii)
    if out is not None:
        say(f"wrote {out}")
    finish(Code.PARTLY if any(s["failed"] for s in data["scenarios"]) else Code.DONE)


def _answers(
    ground: "Setting", found: "Documents", working: Working, out: Path | None
) -> "list[Answer]":
    """The answers to all scenarios in document order, those that cannot be read as failed."""
    from optimizer.domain import words
    from optimizer.scenarios.answer import Answer
    from optimizer.scenarios.compare import in_order
    from optimizer.scenarios.evaluate import evaluate

    again = 0

    with progress_bar() as bar:

        def report(tally: "Tally") -> None:
            nonlocal again
            again = tally.reused
            if bar is not None:
                bar(tally)

        answers = evaluate(
            ground,
            found.scenarios,
            workers=working.workers,
            address=working.address,
            out=out,
            report=report,
        )
    if again:
        say(f"{words.plural(again, 'answer')} of an earlier run used again, from {out}")
    bad = [
        Answer(name, failed="; ".join(str(fault) for fault in faults))
        for name, faults in found.bad_scenarios
    ]
    return in_order([*answers, *bad], found.scenario_names)


def _show(data: dict[str, Any], planned: "Planned", output: Output, *, ascii: bool) -> None:
    from optimizer.report import render_html, render_whatif

    if output is Output.TABLE:
        render_whatif(data, stdout(), ascii=ascii)
    elif output is Output.HTML:
        print(render_html(planned.plan, data), end="")
    else:
        show_data(data, output)


def baseline_of(
    documents: "Documents", baseline: Path | None, limits: "Limits"
) -> "tuple[Inputs, Planned]":
    """What scenarios start from: the plan named, else one made now."""
    from optimizer.documents import read_plan
    from optimizer.optimize import Planned, optimize, pose
    from optimizer.verify import check_plan

    asked = inputs.inputs_of(documents, with_state=documents.state is not None)
    if baseline is not None:
        plan = read_plan(baseline)
        problem, sizing = pose(asked)
        if violations := check_plan(problem, plan):
            first = violations[0]
            raise Stop(
                Code.DRIFTED,
                f"{baseline}: is no plan of these documents any more; make it anew",
                f"{first.rule}: {first.subject}: {first.message}",
            )
        return asked, Planned(plan, problem, sizing)
    say("planning the baseline")
    with watching(asked.fleet.unit) as progress:
        return asked, optimize(asked, limits, progress=progress, version=inputs.version())


@contextmanager
def progress_bar() -> "Iterator[Callable[[Tally], None] | None]":
    """A live bar on a terminal: finished, failed, retried, time left."""
    console = stderr()
    if Verbosity.level < 0 or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("scenarios", total=None)

        def show(tally: "Tally") -> None:
            told = "scenarios"
            told += f", {tally.failed} failed" if tally.failed else ""
            told += f", {tally.retried} retried" if tally.retried else ""
            bar.update(task, total=tally.total, completed=tally.finished, description=told)

        yield show
