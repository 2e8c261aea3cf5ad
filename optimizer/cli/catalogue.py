"""What ships with the package: products, profiles, models, engines, schemas."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import options
from optimizer.cli.codes import Code
from optimizer.cli.options import Output
from optimizer.cli.terminal import Stop, guarded, refuse_output, show_data, stdout

if TYPE_CHECKING:
    from optimizer.documents import Catalogue

app = typer.Typer(
    no_args_is_help=True,
    help="List GPU products, profiles, models, engines, schemas.\n\n"
    "Folders gpus/, models/ and engines/ in the current folder come first.",
)


def _known() -> "Catalogue":
    from optimizer.documents import catalogue

    return catalogue([Path.cwd()])


def _listed(rows: list[dict[str, Any]], key: str, output: Output) -> None:
    refuse_output(output, Output.TABLE, Output.JSON, Output.YAML)
    show_data({key: rows}, output)


@app.command("gpus")
@guarded
def gpus(output: options.Shown = Output.TABLE, ascii: options.Ascii = False) -> None:
    """GPU products with memory, bandwidth and dense peaks."""
    from optimizer.report import gpu_rows, render_gpus

    found = _known().gpus.all()
    if output is Output.TABLE:
        render_gpus(found, stdout(), ascii=ascii)
    else:
        _listed(gpu_rows(found), "gpus", output)


@app.command("profiles")
@guarded
def profiles(
    gpu: Annotated[
        str | None,
        typer.Argument(metavar="[GPU]", help="One product only.", show_default=False),
    ] = None,
    output: options.Shown = Output.TABLE,
    ascii: options.Ascii = False,
) -> None:
    """MIG profiles with their sizes and starts."""
    from optimizer.documents.faults import unknown
    from optimizer.report import profile_rows, render_profiles

    known = _known()
    if gpu is None:
        found = known.gpus.all()
    else:
        one = known.gpu(gpu)
        if one is None:
            raise Stop(Code.USAGE, unknown("GPU product", gpu, known.gpus.names()))
        if one.mig is None:
            raise Stop(Code.USAGE, f"{one.name} cannot be divided: it has no MIG")
        found = (one,)
    if output is Output.TABLE:
        render_profiles(found, stdout(), ascii=ascii)
    else:
        _listed(profile_rows(found), "profiles", output)


@app.command("models")
@guarded
def models(output: options.Shown = Output.TABLE, ascii: options.Ascii = False) -> None:
    """Model cards: architecture, attention, context."""
    from optimizer.report import model_rows, render_models

    found = _known().models.all()
    if output is Output.TABLE:
        render_models(found, stdout(), ascii=ascii)
    else:
        _listed(model_rows(found), "models", output)


@app.command("engines")
@guarded
def engines(output: options.Shown = Output.TABLE, ascii: options.Ascii = False) -> None:
    """Engine cards: versions known, batching, measured error bands."""
    from optimizer.report import engine_rows, render_engines

    found = _known().engine_cards()
    if output is Output.TABLE:
        render_engines(found, stdout(), ascii=ascii)
    else:
        _listed(engine_rows(found), "engines", output)


@app.command("schema")
@guarded
def schema(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="Such as Fleet or Workloads.", show_default=False)
    ],
) -> None:
    """The JSON schema of a kind of document."""
    from optimizer.documents.faults import unknown
    from optimizer.documents.schema import KINDS, schema_of

    wanted = next((known for known in KINDS if known.lower() == kind.lower()), None)
    if wanted is None:
        raise Stop(Code.USAGE, unknown("kind", kind, KINDS))
    try:
        found = schema_of(wanted)
    except KeyError:
        raise Stop(Code.USAGE, f"not supported yet: documents of kind {wanted}") from None
    show_data(found.model_json_schema(), Output.JSON)
