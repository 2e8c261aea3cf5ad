"""Arguments and flags that several commands share, each with one spelling and one help text."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Output(StrEnum):
    """What stdout shows."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    MARKDOWN = "markdown"
    HTML = "html"


LIMITS = "Limits of the search"
SHOWN = "What is shown and written"
WORK = "Where the work is done"

DocumentFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="DOCUMENT...",
        help="Files or folders with documents of any kind, YAML or JSON, in any order.",
        show_default=False,
    ),
]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan written with --out.", show_default=False)
]
MaybePlanFile = Annotated[
    Path | None,
    typer.Argument(metavar="[PLAN]", help="A plan written with --out.", show_default=False),
]
With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        metavar="FILE",
        help="Documents to read in place of the plan's inputs; may be repeated.",
        show_default=False,
    ),
]
Shown = Annotated[
    Output,
    typer.Option(
        "-o",
        "--output",
        envvar="FLEETSLICE_OUTPUT",
        help="What stdout shows.",
        rich_help_panel=SHOWN,
    ),
]
OutFile = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Also write the result as JSON, whole or not at all.",
        rich_help_panel=SHOWN,
        show_default=False,
    ),
]
Summary = Annotated[
    bool, typer.Option("--summary", help="Ten lines at most.", rich_help_panel=SHOWN)
]
Ascii = Annotated[
    bool, typer.Option("--ascii", help="Draw with plain ASCII.", rich_help_panel=SHOWN)
]
Gap = Annotated[
    float,
    typer.Option(
        "--gap",
        min=0.0,
        max=1.0,
        envvar="FLEETSLICE_GAP",
        help="Stop when the price is proved within this part of the best, as 0.01 for 1 %.",
        rich_help_panel=LIMITS,
    ),
]
TimeLimit = Annotated[
    float,
    typer.Option(
        "--time-limit",
        min=1.0,
        envvar="FLEETSLICE_TIME_LIMIT",
        metavar="SECONDS",
        help="Safety stop. A plan that it cuts short says that it is not reproducible.",
        rich_help_panel=LIMITS,
    ),
]
Effort = Annotated[
    float,
    typer.Option(
        "--effort",
        min=1.0,
        envvar="FLEETSLICE_EFFORT",
        help="Deterministic effort of the search, roughly seconds on one core.",
        rich_help_panel=LIMITS,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        min=0,
        max=2**31 - 1,
        envvar="FLEETSLICE_SEED",
        help="Seed of the search.",
        rich_help_panel=LIMITS,
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=0,
        max=1024,
        envvar="FLEETSLICE_WORKERS",
        help="Ray workers; 0 works in this process, without Ray.",
        rich_help_panel=WORK,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="FLEETSLICE_ADDRESS",
        metavar="HOST:PORT",
        help="A running Ray cluster; without it, a local Ray of our own.",
        rich_help_panel=WORK,
        show_default=False,
    ),
]
