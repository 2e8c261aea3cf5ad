"""Files and folders to raw documents: plain values that can say where they stand."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

from optimizer.documents import json_reader, yaml_reader
from optimizer.documents.faults import Fault, Path, dotted, listed, shown, way_out
from optimizer.documents.nodes import Node, TextFault
from optimizer.documents.schema import KINDS
from optimizer.documents.wording import quoted

SUFFIXES = (".yaml", ".yml", ".json")
CATALOGUE_FOLDERS = ("gpus", "models", "engines")


@dataclass(slots=True)
class RawDocument:
    """One document as written. ``file`` is the path as it was given."""

    file: str
    kind: str
    value: dict[str, Any]
    sha256: str
    text: str = field(repr=False, default="")
    node: Node | None = field(repr=False, default=None)

    def fault(self, path: Path, message: str, *, key: bool = False) -> Fault:
        """A fault at the value of ``path``, or at its field's name."""
        if self.node is None:
            self.node = json_reader.places(self.text)
        line, column = self.node.place(path, key=key)
        return Fault(self.file, line, column, dotted(path), message)

    def line(self, path: Path) -> int:
        """The line where ``path`` stands."""
        return self.fault(path, "").line


@dataclass(slots=True)
class Reading:
    """Documents in order of files, then of documents in a file, and what could not be read.

    ``broken`` files may hold anything: what seems to be missing may stand in one of them.
    """

    documents: list[RawDocument] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    broken: bool = False

    def of(self, kind: str) -> list[RawDocument]:
        """The documents of one kind."""
        return [d for d in self.documents if d.kind == kind]


def files_of(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, str | None]]:
    """Each file once, folders opened and sorted; with what is wrong with it, if anything."""
    seen: set[str] = set()
    for path in paths:
        name = os.fspath(path)
        if os.path.isdir(name):
            found = list(_inside(name))
            if not found:
                yield name, "no .yaml, .yml or .json file in this folder"
        else:
            found = [name]
        for file in found:
            real = os.path.realpath(file)
            if real not in seen:
                seen.add(real)
                yield file, None if os.path.isfile(file) else _absent(file)


def _absent(file: str) -> str:
    if os.path.exists(file):
        return "neither a file nor a folder"
    folder = os.path.dirname(file) or "."
    try:
        names = sorted(n for n in os.listdir(folder) if n.endswith(SUFFIXES))
    except OSError:
        names = []
    hint = way_out(os.path.basename(file), names)
    return "no such file" + (f"; {hint}" if hint.startswith("did") else "")


def _inside(folder: str) -> Iterator[str]:
    """The documents below a folder; the catalogue's folders are read by name, not here."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            f for f in folders if f not in CATALOGUE_FOLDERS and not f.startswith(".")
        )
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(here, name)


def read(paths: Sequence[str | os.PathLike[str]]) -> Reading:
    """Every document of the files and folders. Raises nothing: faults are collected."""
    reading = Reading()
    for file, problem in files_of(paths):
        if problem is not None:
            reading.faults.append(Fault(file, 0, 0, "", problem))
            reading.broken = True
            continue
        reading.files.append(file)
        _read_file(file, reading)
    return reading


def _read_file(file: str, reading: Reading) -> None:
    try:
        data = File(file).read_bytes()
    except OSError as error:
        reading.faults.append(Fault(file, 0, 0, "", f"cannot be read: {error.strerror}"))
        reading.broken = True
        return
    documents, faults = read_bytes(file, data)
    reading.faults += faults
    reading.broken |= bool(faults)
    if not documents and not faults:
        message = f'holds no document; it should start with "kind: {KINDS[0]}" or another kind'
        reading.faults.append(Fault(file, 1, 1, "", message))
        reading.broken = True
    for document in documents:
        if _has_kind(document, reading):
            reading.documents.append(document)
        else:
            reading.broken = True


def read_bytes(file: str, data: bytes) -> tuple[list[RawDocument], list[Fault]]:
    """The documents of one file's bytes; ``kind`` is not judged yet."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return [], [_not_utf8(file, data, error)]
    found: list[tuple[Any, Node | None]]
    if file.endswith(".json"):
        value, node, text_faults = json_reader.read_json(text)
        found = [] if value is None else [(value, node)]
    else:
        composed, text_faults = yaml_reader.read_yaml(text)
        found = list(composed)
    faults = [_placed(file, fault) for fault in text_faults]
    documents = []
    for value, node in found:
        document = RawDocument(file, "", value, digest, text, node)
        if isinstance(value, dict):
            documents.append(document)
        else:
            message = f"a document must be a mapping (field: value), got {quoted(value)}"
            faults.append(document.fault((), message))
    return documents, faults


def _placed(file: str, fault: TextFault) -> Fault:
    return Fault(file, fault.line, fault.column, dotted(fault.path), fault.message)


def _not_utf8(file: str, data: bytes, error: UnicodeDecodeError) -> Fault:
    before = data[: error.start]
    line = before.count(b"\n") + 1
    column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
    message = f"not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
    return Fault(file, line, column, "", message)


def _has_kind(document: RawDocument, reading: Reading) -> bool:
    """Whether the document says what it is; the fault is noted where it does not."""
    kind = document.value.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        document.kind = kind
        return True
    if kind is None:
        is_so = "is empty" if "kind" in document.value else "is missing"
        message = f"{is_so}; every document starts with one of: {listed(KINDS)}"
    elif isinstance(kind, str):
        message = f'no kind "{shown(kind)}"; {way_out(kind, KINDS)}'
    else:
        message = f"must be one of {listed(KINDS)}, got {quoted(kind)}"
    reading.faults.append(document.fault(("kind",), message))
    return False
