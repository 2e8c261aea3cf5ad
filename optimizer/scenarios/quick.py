"""Quick scenarios without a file: flags of a command line to a Scenarios document.

What the flags say is written as a document and read like one, so that a value means the same in
both and a fault is told in the same words.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimizer.documents import DocumentFaults, Documents, json_text, load
from optimizer.documents.faults import Fault

FLAGS = "the command line"  # where faults of flags are said to stand


def quick(
    *,
    lose: Sequence[tuple[str, str]] = (),
    scale: Sequence[tuple[str, float]] = (),
    add: Sequence[Path] = (),
    assign: Sequence[str] = (),
) -> dict[str, Any] | None:
    """A Scenarios document of one scenario with all that is asked; None: nothing is.

    ``lose``: kind and name, ``("rack", "r2")``. ``scale``: ``all``, or a tenant or deployment as
    ``tenant:acme``, and a factor. ``add``: files of kind Workloads. ``assign``: ``FIELD=VALUE`` as
    in ``deployments.support-chat.slo.tpot_ms=40``. Raises DocumentFaults.
    """
    names: list[str] = []
    changes: list[dict[str, Any]] = []
    for file in add:
        changes.append({"add_deployments": _deployments(file)})
        names.append(f"add {file.stem}")
    for kind, name in lose:
        changes.append({"lose": {kind: name}})
        names.append(f"lose {name}")
    for whom, factor in scale:
        kind, _, name = whom.partition(":")
        changes.append({"scale": {kind: name if name else True, "by": factor}})
        names.append(f"{name or 'demand'} x{factor:g}")
    for text in assign:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            message = f'--set "{text}": must read FIELD=VALUE, as in nodes.h100-01.gpus=4'
            raise DocumentFaults([Fault(FLAGS, 0, 0, "", message)])
        changes.append({"set": {path.strip(): _value(value)}})
        names.append(text.partition(".")[2])
    if not changes:
        return None
    scenario = {"name": ", ".join(names), "changes": changes}
    return {"kind": "Scenarios", "version": 1, "scenarios": [scenario]}


def scaling(text: str) -> tuple[str, float]:
    """``1.5`` or ``tenant:acme=2`` as ``quick`` takes it. Raises DocumentFaults."""
    whom, _, factor = text.rpartition("=")
    kind, colon, name = whom.partition(":")
    try:
        if not whom:
            return "all", float(factor)
        if kind in ("tenant", "deployment") and colon and name:
            return whom, float(factor)
    except ValueError:
        pass  # no number; told below
    message = f'--scale-demand "{text}": must read FACTOR or tenant:NAME=FACTOR, as in 1.5'
    raise DocumentFaults([Fault(FLAGS, 0, 0, "", message)])


def load_with(
    paths: Sequence[str | os.PathLike[str]], asked: dict[str, Any] | None, **options: Any
) -> Documents:
    """``documents.load``, with the quick scenario among the documents. Raises DocumentFaults."""
    if asked is None:
        return load(paths, **options)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "flags.json")
        Path(file).write_text(json_text(asked), encoding="utf-8")
        try:
            found = load([*paths, file], **options)
        except DocumentFaults as error:
            raise DocumentFaults([_of_flags(f, file) for f in error.faults]) from None
    wrong = [f for _, faults in found.bad_scenarios for f in faults if f.file == file]
    if wrong:  # a flag is at fault at once, not one of many scenarios
        raise DocumentFaults([_of_flags(fault, file) for fault in wrong])
    return replace(found, inputs=tuple(one for one in found.inputs if one.path != file))


def _of_flags(fault: Fault, file: str) -> Fault:
    """A fault of the document that nobody wrote, told of the flags."""
    return replace(fault, file=FLAGS, line=0, column=0) if fault.file == file else fault


def _value(text: str) -> Any:
    """A number, list or mapping where the text is one in JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _deployments(file: Path) -> list[dict[str, Any]]:
    """The deployments of a Workloads document as it was written, once it is known to be right."""
    from optimizer.documents.reading import read

    load([file], need=("Workloads",), apart=True)  # faults have their places only in their own file
    workloads = [d for d in read([file]).documents if d.kind == "Workloads"]
    return [entry for one in workloads for entry in one.value["deployments"]]
