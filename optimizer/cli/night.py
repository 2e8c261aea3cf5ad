"""The command that a scheduler starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code
from optimizer.cli.groups import DATA, Limiting
from optimizer.cli.launching import Running
from optimizer.cli.options import Output
from optimizer.cli.terminal import Stop, finish, guarded, refuse_output, say, show_data

if TYPE_CHECKING:
    from optimizer.documents import Documents
    from optimizer.night import Ending

ENGINES = ("auto", "simulated")


@guarded
def nightly(
    documents: options.DocumentFiles,
    *,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs",
            metavar="FOLDER",
            envvar="FLEETSLICE_NIGHTS",
            help="Where each night gets a folder; nights/ in the launch's run folder by default.",
            show_default=False,
        ),
    ] = None,
    running: Running,
    hours: Annotated[
        float,
        typer.Option("--hours", min=0.01, help="Of traffic that is replayed, where a Trace is."),
    ] = 1.0,
    output: options.Shown = Output.TABLE,
    limiting: Limiting,
) -> None:
    """Rebalance what runs, by itself, within a policy.

    Reads what runs from the cluster, plans, judges the plan, replays a Trace against it, launches
    it step by step, and leaves a folder with inputs, plan, journal, report and metrics. Started
    again after a kill it goes on, goes back, or says what a person must do. Exits with 10 when the
    plan waits for approval, with 6 when a step failed.

    \b
    Examples:
      fleetslice nightly policy.yaml fleet.yaml workloads.yaml --address 10.0.0.5:6379
      fleetslice nightly policy.yaml fleet.yaml workloads.yaml --dry-run
    """
    from optimizer.documents import load
    from optimizer.launch.run import folder_of
    from optimizer.night import NightRefused, Order
    from optimizer.night import nightly as carry_out

    refuse_output(output, *DATA)
    if running.engine not in ENGINES:
        raise Stop(Code.USAGE, f"--engine {running.engine}: choose {' or '.join(ENGINES)}")
    found = load(documents, need=("Policy", "Fleet", "Workloads"))
    inputs.tell_notes(found)
    _check(found)
    assert found.fleet is not None
    folder = (running.run_dir or folder_of(found.fleet.name)).resolve()
    order = Order(
        documents=found,
        limits=limiting.limits(),
        runs=(runs or folder / "nights").resolve(),
        run_dir=folder,
        address=running.address,
        engine=running.engine,
        router=running.router,
        dry_run=running.dry_run,
        hours=hours,
        step_s=running.deadline,
        version=inputs.version(),
    )
    try:
        ending = carry_out(order, tell=say)
    except NightRefused as refused:
        raise Stop(Code(refused.code), *refused.lines) from None
    _show(ending, output)
    finish(Code(ending.code))


def _check(found: "Documents") -> None:
    """What a night cannot be made from. Raises Stop."""
    for one in found.inputs:
        if one.kind in ("State", "Plan"):
            raise Stop(
                Code.USAGE,
                f"{one.path}: a {one.kind}, but a night reads from the cluster what runs",
                "leave it out; to plan from it: fleetslice rebalance",
            )
    if len(found.traces) > 1:
        names = ", ".join(trace.name for trace in found.traces)
        raise Stop(Code.USAGE, f"several traces: {names}; name one")


def _show(ending: "Ending", output: Output) -> None:
    """How it ended, in as many lines as it needs, and where its report is."""
    if output is Output.TABLE:
        print("\n".join(ending.lines))
        if ending.folder is not None:
            print(f"report: {ending.folder / 'report.html'}")
        return
    data = {
        "outcome": str(ending.outcome),
        "exit_code": int(ending.code),
        "run": None if ending.folder is None else str(ending.folder),
        "lines": list(ending.lines),
        **ending.facts,
    }
    show_data(data, output)
