"""A commented starter fleet and workloads, to be edited."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli.codes import Code
from optimizer.cli.terminal import Stop, guarded, say

NAMES = ("fleet.yaml", "workloads.yaml")


@guarded
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where to write them.")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a commented starter fleet.yaml and workloads.yaml.

    \b
    Examples:
      fleetslice init my-fleet
    """
    from optimizer.documents import write_text

    there = [folder / name for name in NAMES if (folder / name).exists()]
    if there and not force:
        lines = [f"{path}: is there already" for path in there]
        raise Stop(Code.USAGE, *lines, "nothing was written; --force replaces them")
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        write_text(folder / name, (files(__package__) / name).read_text("utf-8"))
        print(f"wrote {folder / name}")
    paths = " ".join(str(folder / name) for name in NAMES)
    say(f"next: fleetslice plan {paths}")
