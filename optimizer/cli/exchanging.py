"""Commands that write a plan in other people's formats."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code
from optimizer.cli.terminal import Stop, guarded, say

if TYPE_CHECKING:
    from optimizer.exchange import Artifact, Export, Source


@guarded
def export(
    to: Annotated[
        str,
        typer.Argument(
            metavar="TO",
            help="csv, dynamo, engines, kserve, kuberay, kubernetes, mig-parted, nvidia-smi, "
            "prometheus or ray-serve.",
            show_default=False,
        ),
    ],
    plan: options.PlanFile,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            metavar="FOLDER",
            help="Write the files there; without it all go to stdout.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="ENGINE=IMAGE",
            help="Container image of an engine; may be repeated.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", help="Kubernetes namespace.")
    ] = "default",
    documents: options.With = None,
) -> None:
    """Write a plan in other people's formats.

    What a format cannot say is noted on stderr.

    \b
    Examples:
      fleetslice export mig-parted lab-64.plan.json --out-dir mig
      fleetslice export kubernetes lab-64.plan.json | kubectl apply -f -
    """
    from optimizer.documents.faults import unknown
    from optimizer.exchange import EXPORTERS, CannotExport

    if to not in EXPORTERS:
        raise Stop(Code.USAGE, unknown("format", to, EXPORTERS))
    source = _source(plan, documents, image or [], namespace)
    try:
        found = EXPORTERS[to](source)
    except CannotExport as refusal:
        raise Stop(Code.ERROR, str(refusal)) from None
    _write(found, plan, out_dir)
    say(*(f"note: {note}" for note in found.notes))


def _source(plan: Path, documents: list[Path] | None, image: list[str], namespace: str) -> "Source":
    from optimizer.engines import Known
    from optimizer.exchange import Source

    found, given = inputs.read_again(plan, documents)
    gpus = {gpu.name: gpu for gpu in given.fleet.products()}
    known = Known.of(given.workloads.deployments, given.engines, gpus)
    images = {}
    for one in image:
        engine, _, name = one.partition("=")
        if not name:
            raise Stop(Code.USAGE, f"--image {one}: write ENGINE=IMAGE, as vllm=my/vllm:1")
        images[engine] = name
    return Source(found, given.fleet, known, images, namespace)


def _write(found: "Export", plan: Path, out_dir: Path | None) -> None:
    from optimizer.documents import sha256, write_text

    heading = (f"fleetslice {inputs.version()}, {found.format}, plan sha256 {sha256(plan)}",)
    if out_dir is None:
        for artifact in found.artifacts:
            sys.stdout.write(_text(artifact, (*heading, artifact.name)))
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    for artifact in found.artifacts:
        path = out_dir / artifact.name
        write_text(path, _text(artifact, heading))
        if artifact.executable:
            os.chmod(path, 0o755)
        say(f"wrote {path}")


def _text(artifact: "Artifact", heading: tuple[str, ...]) -> str:
    from optimizer.documents import yaml_text

    comments = "".join(f"{artifact.comment} {line}\n" for line in heading)
    if artifact.documents:
        return "".join(f"---\n{comments}{yaml_text(d)}" for d in artifact.documents)
    first, _, rest = artifact.text.partition("\n")
    if first.startswith("#!"):
        return f"{first}\n{comments}{rest}"
    return comments + artifact.text
