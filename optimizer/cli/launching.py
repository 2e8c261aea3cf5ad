"""Commands that carry a plan out on a Ray cluster, look at it and take it down."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code
from optimizer.cli.groups import DATA
from optimizer.cli.options import Output
from optimizer.cli.terminal import (
    Stop,
    finish,
    guarded,
    refuse_output,
    say,
    show_data,
    stdout,
)

if TYPE_CHECKING:
    from optimizer.domain.plan import Plan
    from optimizer.engines import Known
    from optimizer.launch import Event, LaunchResult

RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="FOLDER",
        envvar="FLEETSLICE_RUN_DIR",
        help="Where the launch keeps its state and logs; one of its own per fleet by default.",
        show_default=False,
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="TENANT|DEPLOYMENT",
        help="Only the replicas of this tenant or deployment.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Running:
    """Where and how a launch runs, be it a person's or a night's."""

    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="auto|simulated",
            help="auto runs the plan's engines; simulated answers as they are predicted to.",
        ),
    ] = "auto"
    address: options.Address = None
    run_dir: RunDir = None
    router: Annotated[
        bool,
        typer.Option("--router", help="Give each deployment one address that stays as it moves."),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")
    ] = False
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline", min=1.0, metavar="SECONDS", help="Until all must serve; of each step."
        ),
    ] = 600.0


@dataclass(frozen=True, slots=True)
class Publishing:
    """How clients reach what was launched, beyond loopback and by Ray Serve."""

    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Where the router listens, and reaches other nodes from: loopback only unless an "
            "address is named, and then clients must bear a token.",
            show_default=False,
        ),
    ] = None
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Also a Ray Serve application for each deployment."),
    ] = False


@dataclass(frozen=True, slots=True)
class Consent:
    """What need not be asked or refused."""

    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
    changed_inputs: Annotated[
        bool,
        typer.Option(
            "--changed-inputs",
            help="Launch although a document has changed since: to go on with a launch cut short.",
        ),
    ] = False


@guarded
def launch(
    plan: options.MaybePlanFile = None,
    *,
    only: Only = None,
    running: Running,
    publishing: Publishing,
    consent: Consent,
    node_setup: Annotated[
        bool, typer.Option("--node-setup", help="Print the ray start line of each node.")
    ] = False,
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="Undo the last rebalance, whole or half, step by step."),
    ] = False,
    foreground: Annotated[
        bool,
        typer.Option("--foreground", help="Stay, and take everything down on Ctrl-C."),
    ] = False,
    documents: options.With = None,
    output: options.Shown = Output.TABLE,
) -> None:
    """Run a plan on a Ray cluster.

    Every replica runs on the very GPUs that the plan names. Without --address on a local Ray of
    our own, which stays until fleetslice stop. A plan of fleetslice rebalance is carried out step
    by step; after a kill or a failed step, launch it again to go on. Exits with 6 when something
    does not serve or a step failed, with 5 when the plan was made from something else than runs.

    \b
    Examples:
      fleetslice launch lab-64.plan.json --only acme --engine simulated --yes
      fleetslice launch lab-64.plan.json --address 10.0.0.5:6379 --dry-run
      fleetslice launch --rollback --yes
    """
    from optimizer import launch as launching
    from optimizer.documents import read_plan

    refuse_output(output, *DATA)
    if rollback:
        _roll_back(plan, running, consent, output)
        return
    if plan is None:
        raise Stop(Code.USAGE, "name the plan to launch, or say --rollback")
    found = read_plan(plan)
    if node_setup:
        print("\n".join(launching.node_setup(found, running.address or "HEAD:6379")))
        return
    if not consent.changed_inputs:
        _refuse_stale(found)
    _check_only(only, found)
    known = _known(plan, documents) if running.engine != launching.SIMULATED else None
    steps = launching.preview(found, only, engine=running.engine, known=known)
    if running.dry_run or not consent.yes:
        print("\n".join(steps))
    if running.dry_run:
        return
    if not consent.yes:
        _ask(f"Carry out these {len(steps)} steps?")
    result = _carried_out(found, only, running, publishing, known, detach=not foreground)
    _show_result(result, output)
    if foreground:
        launching.attend(result.run_dir)
    finish(Code.PARTLY if result.partial else Code.DONE)


def _refuse_stale(plan: "Plan") -> None:
    """A plan whose documents have changed is launched by nobody. Raises Stop."""
    if stale := inputs.changed(plan):
        lines = [f"{path} has changed since the plan was made from it" for path in stale]
        way_out = (
            "plan again, or launch it all the same with --changed-inputs; nothing was launched"
        )
        raise Stop(Code.DRIFTED, *lines, way_out)


def _carried_out(
    plan: "Plan",
    only: str | None,
    running: Running,
    publishing: Publishing,
    known: "Known | None",
    *,
    detach: bool,
) -> "LaunchResult":
    from optimizer import launch as launching

    try:
        return launching.launch(
            plan,
            engine=running.engine,
            address=running.address,
            only=only,
            detach=detach,
            run_dir=running.run_dir,
            progress=_tell,
            deadline_s=running.deadline,
            known=known,
            router=running.router,
            host=publishing.host,
            serve=publishing.serve,
        )
    except launching.PlanStale as differs:
        raise Stop(Code.DRIFTED, *str(differs).splitlines()) from differs


@guarded
def status(
    run_dir: RunDir = None, address: options.Address = None, output: options.Shown = Output.TABLE
) -> None:
    """Show what was launched and how it is.

    Exits with 6 when a replica that should serve does not.

    \b
    Examples:
      fleetslice status
      fleetslice status --run-dir runs/lab-64 -o json
    """
    from optimizer import launch as launching

    refuse_output(output, *DATA)
    rows = launching.status(run_dir, address)
    if not rows and output is Output.TABLE:
        print("Nothing is launched.")
        return
    _show_rows(rows, output)
    for row in rows:
        if row.get("planned") not in (None, row["devices"]):
            there = " and ".join(row["devices"]) or "nowhere"
            say(f"{row['replica']}: runs on {there}, is to run on {' and '.join(row['planned'])}")
    finish(Code.DONE if all(r["state"] == launching.State.READY for r in rows) else Code.PARTLY)


@guarded
def drift(
    plan: options.PlanFile,
    only: Only = None,
    run_dir: RunDir = None,
    address: options.Address = None,
    output: options.Shown = Output.TABLE,
) -> None:
    """List how what runs differs from a plan, and change nothing.

    Exits with 5 when it does.

    \b
    Examples:
      fleetslice drift lab-64.plan.json
      fleetslice drift lab-64.plan.json --only acme -o json
    """
    from dataclasses import asdict

    from optimizer import launch as launching
    from optimizer.documents import read_plan

    refuse_output(output, *DATA)
    made = read_plan(plan)
    _check_only(only, made)
    found = launching.drift(made, run_dir, address, only)
    if output is not Output.TABLE:
        show_data({"differences": [asdict(one) for one in found]}, output)
    else:
        print("\n".join(f"{one.replica}: {one.kind}: {one.detail}" for one in found) or "no drift")
    finish(Code.DRIFTED if found else Code.DONE)


@guarded
def stop(only: Only = None, run_dir: RunDir = None, address: options.Address = None) -> None:
    """Take down what was launched, and nothing else.

    \b
    Examples:
      fleetslice stop
      fleetslice stop --only acme
    """
    from optimizer import launch as launching
    from optimizer.domain.words import plural

    result = launching.stop(run_dir, address, only, progress=_tell)
    ended = "; the local Ray ended too" if result.cluster_ended else ""
    print(f"stopped {plural(len(result.stopped), 'replica')}{ended}")
    say(*result.notes, *(f"could not be ended: {name}" for name in result.left))
    finish(Code.PARTLY if result.partial else Code.DONE)


def _check_only(only: str | None, plan: "Plan") -> None:
    """A name that the plan does not know is a slip. Raises Stop."""
    from optimizer.documents.faults import unknown

    known = sorted({name for d in plan.deployments for name in (d.tenant, d.name)})
    if only is not None and only not in known:
        raise Stop(Code.USAGE, f"--only: {unknown('tenant or deployment', only, known)}")


def _roll_back(plan: Path | None, running: Running, consent: Consent, output: Output) -> None:
    """Back to the last good placement; of the plan's fleet when one is named."""
    from optimizer import launch as launching
    from optimizer.documents import read_plan
    from optimizer.launch.run import folder_of

    run_dir = running.run_dir
    if plan is not None and run_dir is None:
        run_dir = folder_of(read_plan(plan).fleet)
    if not consent.yes:
        _ask("Return to the placement before the last rebalance?")
    result = launching.rollback(
        run_dir, running.address, progress=_tell, deadline_s=running.deadline
    )
    _show_result(result, output)
    finish(Code.PARTLY if result.partial else Code.DONE)


def _show_result(result: "LaunchResult", output: Output) -> None:
    from optimizer.launch.traffic import token_path

    _show_rows(list(result.rows), output)
    for failure in result.failed:
        step = f"step {failure.step}: " if failure.step else ""
        say(f"{step}{failure.replica}: {failure.reason}", *(f"    {line}" for line in failure.log))
    if result.blocked:
        say(f"not done, because they need what failed: {', '.join(result.blocked)}")
    told = f"{len(result.ready)} of {len(result.rows)} replicas serve after {result.seconds:.0f} s"
    say(told, f"look: fleetslice status --run-dir {result.run_dir}")
    if result.endpoint is not None:
        token = token_path(result.run_dir)
        bearing = "" if token is None else f", bearing the token in {token}"
        say(f"ask:  {result.serve or result.endpoint}/DEPLOYMENT/v1{bearing}")
    say(f"end:  fleetslice stop --run-dir {result.run_dir}")


def _known(plan: Path, documents: list[Path] | None) -> "Known":
    """What real engines ask for and the plan does not carry."""
    from optimizer.engines import Known

    _, given = inputs.read_again(plan, documents)
    gpus = {gpu.name: gpu for gpu in given.fleet.products()}
    return Known.of(given.workloads.deployments, given.engines, gpus)


def _ask(question: str) -> None:
    import sys

    if not sys.stdin.isatty():
        raise Stop(Code.USAGE, "nobody can be asked here; say --yes to launch, --dry-run to look")
    if not typer.confirm(question, err=True):
        raise Stop(Code.ERROR, "nothing was launched")


def _tell(event: "Event") -> None:
    say(f"{event.replica}: {event.state}" + (f" ({event.detail})" if event.detail else ""))


def _show_rows(rows: list[dict[str, Any]], output: Output) -> None:
    if output is Output.TABLE:
        from optimizer.report import render_status

        render_status(rows, stdout())
    else:
        show_data({"replicas": rows}, output)
