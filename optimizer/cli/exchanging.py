"""Commands that read and write other people's formats."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import inputs, options
from optimizer.cli.codes import Code
from optimizer.cli.live import RAY, asked_of_ray
from optimizer.cli.terminal import Stop, finish, guarded, say

if TYPE_CHECKING:
    from optimizer.domain.gpu import Gpu
    from optimizer.exchange import Artifact, Export, File, Import, Imported, Input, Source


OutDir = Annotated[
    Path | None,
    typer.Option(
        "--out-dir",
        metavar="FOLDER",
        help="Write the files there; without it all go to stdout.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Manifests:
    """What manifests say beyond the plan."""

    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="ENGINE=IMAGE",
            help="Container image of an engine; may be repeated.",
            show_default=False,
        ),
    ] = None
    namespace: Annotated[str, typer.Option("--namespace", help="Kubernetes namespace.")] = "default"
    pods: Annotated[
        Path | None,
        typer.Option(
            "--pods",
            metavar="FILE",
            help="What runs now (kubectl get nodes,pods -A -o json): pods that no engine of ours "
            "serves are written as they are, on the plan's nodes and devices.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Unsaid:
    """What files may leave unsaid."""

    name: Annotated[str, typer.Option("--name", help="Name of the documents.")] = "imported"
    node: Annotated[
        str | None,
        typer.Option("--node", help="The node that all files are of.", show_default=False),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="PRODUCT",
            help="The GPU product, where the files do not say it.",
            show_default=False,
        ),
    ] = None
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            min=1,
            help="GPUs of a node, where the files do not say it.",
            show_default=False,
        ),
    ] = None

    def check(self) -> None:
        """What cannot be a name in a document. Raises Stop."""
        for flag, word in (("--name", self.name), ("--node", self.node)):
            if word is not None and not _NAME.fullmatch(word):
                raise Stop(Code.USAGE, f'{flag} "{word}": letters, digits and . _ - + : @ only')


@guarded
def export(
    to: Annotated[
        str,
        typer.Argument(
            metavar="TO",
            help="csv, dynamo, engines, kserve, kuberay, kubernetes, mig-parted, nvidia-smi, "
            "prometheus, ray-serve or triton.",
            show_default=False,
        ),
    ],
    plan: options.PlanFile,
    *,
    out_dir: OutDir = None,
    said: Manifests,
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
    source = _source(plan, documents, said)
    if said.pods is not None:
        source = replace(source, pods=_running(said.pods))
    try:
        found = EXPORTERS[to](source)
    except CannotExport as refusal:
        raise Stop(Code.ERROR, str(refusal)) from None
    _write(found, plan, out_dir)
    say(*(f"note: {note}" for note in found.notes))


def _source(plan: Path, documents: list[Path] | None, said: Manifests) -> "Source":
    from optimizer.engines import Known
    from optimizer.exchange import Source

    found, given = inputs.read_again(plan, documents)
    gpus = {gpu.name: gpu for gpu in given.fleet.products()}
    known = Known.of(given.workloads.deployments, given.engines, gpus)
    images = {}
    for one in said.image or []:
        engine, _, name = one.partition("=")
        if not name:
            raise Stop(Code.USAGE, f"--image {one}: write ENGINE=IMAGE, as vllm=my/vllm:1")
        images[engine] = name
    return Source(found, given.fleet, known, images, said.namespace)


def _running(pods: Path) -> "Mapping[str, Any]":
    from optimizer.exchange import CannotRead, Input, running_pods

    try:
        return running_pods(Input(tuple(_given([pods])), _products([pods]), _parsed))
    except CannotRead as refusal:
        raise Stop(Code.USAGE, *refusal.reasons) from None


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
        path.parent.mkdir(parents=True, exist_ok=True)
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


@guarded
def import_(
    from_: Annotated[
        str,
        typer.Argument(
            metavar="FROM",
            help="csv, huggingface, kubernetes, mig-parted, nvidia-smi, openb, ray or trace.",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="Files of that format; a folder holds those of one node; - is stdin. Without any, "
            "the driver (NVML, else nvidia-smi) or the cluster (as kubectl would) is asked.",
            show_default=False,
        ),
    ] = None,
    *,
    out_dir: OutDir = None,
    unsaid: Unsaid,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            envvar="FLEETSLICE_ADDRESS",
            metavar="HOST:PORT",
            help="The Ray cluster to ask; without it, that of what this user launched.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Read what others write into documents.

    Nothing is guessed: what the source does not say is listed on stderr and at the head of the
    document. Exit code 6 when something had to be left out.

    \b
    Examples:
      nvidia-smi -L > n1.txt; sudo nvidia-smi mig -lgi >> n1.txt
      fleetslice import nvidia-smi n1.txt --out-dir cluster
      sudo fleetslice import nvidia-smi --node this-machine
      fleetslice import kubernetes --out-dir cluster
      fleetslice import ray --address 10.0.0.5:6379 --out-dir cluster
      kubectl get nodes,pods -A -o json | fleetslice import kubernetes - --out-dir cluster
    """
    from optimizer.documents.faults import unknown
    from optimizer.exchange import IMPORTERS, CannotRead, Input

    if from_ not in IMPORTERS:
        raise Stop(Code.USAGE, unknown("format", from_, IMPORTERS))
    unsaid.check()
    if not files and from_ not in (*ASKS, RAY):
        raise Stop(Code.USAGE, f"import {from_}: name a file, or - for stdin")
    asked = (asked_of_ray(address),) if from_ == RAY and not files else ()
    given = Input(
        files=asked or tuple(_given(files or [])),
        gpus=_products(files or []),
        parse=_parsed,
        name=unsaid.name,
        node=unsaid.node,
        gpu=unsaid.gpu,
        count=unsaid.gpus,
    )
    try:
        found = IMPORTERS[from_](given) if given.files else _asked_here(from_, given)
    except CannotRead as refusal:
        raise Stop(Code.USAGE, *refusal.reasons) from None
    _write_documents(found, [f.name for f in given.files] or ["what is here"], out_dir)
    if found.left_out:
        finish(Code.PARTLY)


# Tools that tell the present state where nothing else can be asked: as many as answer are read.
ASKS = {
    "kubernetes": (
        ("kubectl", "get", "nodes,pods", "-A", "-o", "json"),
        ("kubectl", "get", "resourceslices,resourceclaims", "-A", "-o", "json"),
    ),
    "nvidia-smi": (
        ("nvidia-smi", "-L"),
        ("nvidia-smi", "--query-gpu=index,uuid,memory.total,mig.mode.current", "--format=csv"),
        ("nvidia-smi", "mig", "-lgi"),
        ("nvidia-smi", "mig", "-lgip"),
    ),
}
_PATIENCE_S = 60
_NAME = re.compile(r"\w[\w.:@+\-]*")


def _asked_here(from_: str, given: "Input") -> "Import":
    """What the driver or the cluster says: by its library, else by its tool on this machine."""
    from optimizer.exchange import IMPORTERS, LIVE, NotHere

    if from_ == "nvidia-smi":  # what is asked here is of this machine
        given = replace(given, node=given.node or _host())
    try:
        return LIVE[from_](given)
    except NotHere as why:
        tool = ASKS[from_][0][0]
        if shutil.which(tool) is None:
            lacks = f"{why}, and {tool} is not on this machine"
            raise Stop(
                Code.ERROR, f"import {from_}: {lacks}; name a file, or - for stdin"
            ) from None
    return IMPORTERS[from_](replace(given, files=tuple(_answers(from_))))


def _host() -> str:
    name = re.sub(r"[^\w.:@+\-]", "-", socket.gethostname().split(".")[0])
    return name if _NAME.fullmatch(name) else "node-1"


def _answers(from_: str) -> "Iterator[File]":
    """The answers of the tool: a capture with prompts, or one file of each command."""
    from optimizer.exchange import File

    told = ""
    for place, command in enumerate(ASKS[from_]):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PATIENCE_S, errors="replace"
            )
        except subprocess.TimeoutExpired:
            raise Stop(Code.ERROR, f"{' '.join(command)}: no answer in {_PATIENCE_S} s") from None
        if from_ == "nvidia-smi":
            told += f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n"
        elif done.returncode == 0:
            yield File(" ".join(command), done.stdout)
        elif place == 0:
            raise Stop(Code.ERROR, f"{' '.join(command)}: {_last_line(done.stderr)}")
        elif "the server doesn't have a resource type" not in done.stderr:
            say(f"note: {' '.join(command)}: {_last_line(done.stderr)}; read without")
    if told:
        yield File(f"{from_} here", told)


def _last_line(text: str) -> str:
    """kubectl ends with the reason, after lines of its log."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def _given(paths: list[Path]) -> "Iterator[File]":
    for path in paths:
        if str(path) == "-":
            yield _file("stdin", sys.stdin.buffer.read(), None)
        elif path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
            if not inside:
                raise Stop(Code.USAGE, f"{path}: no file in this folder")
            for file in inside:
                yield _file(str(file), file.read_bytes(), path.resolve().name)
        else:
            yield _file(str(path), path.read_bytes(), None)


def _file(name: str, data: bytes, folder: str | None) -> "File":
    from optimizer.exchange import File

    try:
        # A terminal under Windows writes UTF-16 with a mark in front.
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        return File(name, data.decode("utf-16" if wide else "utf-8-sig"), folder)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Stop(Code.USAGE, f"{name}:{line}: not UTF-8; save the file as UTF-8") from None


def _products(paths: list[Path]) -> "tuple[Gpu, ...]":
    from optimizer.documents import catalogue

    beside = {path if path.is_dir() else path.parent for path in paths}
    return catalogue([Path.cwd(), *sorted(beside)]).gpus.all()


def _parsed(file: "File") -> list[Any]:
    """Plain values of a YAML or JSON text. Raises CannotRead."""
    from optimizer.documents.yaml_reader import read_yaml
    from optimizer.exchange import CannotRead

    found, faults = read_yaml(file.text)
    if faults:
        raise CannotRead(*(file.at(f.line, f.message) for f in faults))
    return [value for value, _ in found]


def _write_documents(found: "Import", files: list[str], out_dir: Path | None) -> None:
    from optimizer.documents import write_text

    read = " ".join(", ".join(files).split())
    head = f"Imported by fleetslice {inputs.version()} from {found.format}: {read}"
    if out_dir is None:
        sys.stdout.write("---\n".join(_document_text(d, head) for d in found.documents))
    for document in found.documents:
        if out_dir is None:
            continue
        path = out_dir / _document_file(document)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _document_text(document, head))
        say(f"wrote {path}")
    for document in found.documents:
        say(*(f"{document.kind} does not say: {one}" for one in document.unsaid))
        say(*(f"note: {one}" for one in document.notes))
    say(*(f"left out: {one}" for one in found.left_out))


def _document_file(document: "Imported") -> str:
    if document.kind in ("Gpu", "Model"):
        return f"{document.kind.lower()}s/{document.data['name']}.yaml"
    return f"{document.kind.lower()}.yaml"


def _document_text(document: "Imported", head: str) -> str:
    from optimizer.documents import yaml_text

    lines = [head]
    for title, told in (
        ("Not said there, so not written:", document.unsaid),
        ("How it was read:", document.notes),
    ):
        if told:
            lines += [title, *(f"  {' '.join(one.split())}" for one in told)]
    comments = "".join(f"# {line}\n" for line in lines)
    return comments + yaml_text(document.data)
