"""The table of contents of the command line."""

import os
import sys
from typing import Annotated

import typer

from optimizer.cli import (
    catalogue,
    config,
    exchanging,
    launching,
    looking,
    night,
    planning,
    questions,
    simulating,
    sizing,
    starter,
    whatif,
)
from optimizer.cli.codes import Code
from optimizer.cli.flags import Command
from optimizer.cli.terminal import Verbosity

app = typer.Typer(
    name="fleetslice",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 error, 2 wrong usage or invalid document, 3 infeasible or demand "
    "unmet, 4 no plan in time, 5 drifted, 6 partly done, 7 plan refused by the judge, 10 changes "
    "found, 130 interrupted.",
)

for command in (
    starter.init,
    looking.validate,
    sizing.size,
    planning.plan,
    planning.rebalance,
    whatif.whatif,
    questions.quote,
    questions.admit,
    questions.headroom,
    questions.survive,
    questions.buy,
    questions.retire,
    questions.sensitivity,
    looking.verify,
    simulating.simulate,
    simulating.calibrate,
    looking.explain,
    looking.diff,
    looking.report,
    launching.launch,
    launching.status,
    launching.drift,
    launching.stop,
    night.nightly,
    exchanging.export,
):
    app.command(cls=Command)(command)
app.command(name="import", cls=Command)(exchanging.import_)
app.add_typer(catalogue.app, name="catalogue")


def _version(asked: bool) -> None:
    if asked:
        from optimizer.cli.inputs import version

        print(f"fleetslice {version()}")
        raise typer.Exit


@app.callback()
def fleetslice(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Faults only on stderr.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="A line on stderr per phase of the work.")
    ] = False,
) -> None:
    """Place model deployments on a GPU fleet, MIG slices included, at the least cost.

    Two documents go in, a fleet and its workloads; a verified plan with a proved bound comes out.

    \b
    Start here:
      fleetslice init
      fleetslice plan fleet.yaml workloads.yaml
    """
    Verbosity.level = -1 if quiet else 1 if verbose else 0


def run() -> int:
    """Parse, work, and give the exit code."""
    # Ray reports usage over the network unless told not to, before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    command = typer.main.get_command(app)
    try:
        defaults = config.defaults(_flags(command))
    except ValueError as error:
        print(error, file=sys.stderr)
        return int(Code.USAGE)
    try:
        command.main(prog_name="fleetslice", default_map=defaults)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(Code.ERROR)
    return int(Code.DONE)


def _flags(command: object) -> dict[str, list[str]]:
    """The flags that each command has, by its name."""
    commands = getattr(command, "commands", {})
    return {
        name: [p.name for p in one.params if p.param_type_name == "option"]
        for name, one in commands.items()
    }
