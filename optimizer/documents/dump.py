"""Writing: JSON and YAML texts, State documents, and files that are whole or not there."""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from optimizer.documents.plan_json import empty_json, replica_json
from optimizer.documents.scalars import resolve
from optimizer.domain.placement import Placement

_SHORT = 100


def json_text(data: Mapping[str, Any]) -> str:
    """JSON with one line for each entry of a list: quick to write, easy to compare.

    Raises ValueError on a number that JSON does not have.
    """
    rows = [f"  {_compact(str(key))}: {_value(value, 2)}" for key, value in data.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n" if rows else "{}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _value(value: Any, indent: int) -> str:
    """Lists of mappings row by row, mappings that are too long field by field."""
    pad = " " * (indent + 2)
    if isinstance(value, Mapping) and value:
        line = _compact(value)
        if len(line) <= _SHORT:
            return line
        rows = [f"{pad}{_compact(str(k))}: {_value(v, indent + 2)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        rows = [pad + _compact(item) for item in value]
        return "[\n" + ",\n".join(rows) + "\n" + " " * indent + "]"
    return _compact(value)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes every text that some YAML reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, value: str) -> Any:
    style = None if resolve(value) == value else '"'
    if "\n" in value.rstrip("\n"):
        style = "|"  # a text of several lines stays legible
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(data: Mapping[str, Any]) -> str:
    """YAML in the order given; the innermost mappings and lists on one line."""
    return str(
        yaml.dump(
            dict(data),
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=None,
            width=_SHORT,
        )
    )


def state_document(placement: Placement, fleet: str | None) -> dict[str, Any]:
    """A placement as a State document."""
    head: dict[str, Any] = {"kind": "State", "version": 1}
    if fleet is not None:
        head["fleet"] = fleet
    found = {**head, "replicas": [replica_json(r) for r in placement.replicas]}
    if placement.instances:
        found["instances"] = empty_json(placement)
    return found


def sha256(path: str | os.PathLike[str]) -> str | None:
    """The hash of a file's bytes as inputs name it; None when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Writes ``data`` as JSON, whole or not at all. Raises OSError."""
    write_text(path, json_text(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file through a temporary one beside it, whole or not at all. Raises OSError."""
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        Path(target).write_text(text, "utf-8")  # a pipe or a device has nothing to replace
        return
    folder, name = os.path.split(target)
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _permissions() if mode is None else stat.S_IMODE(mode))
        os.replace(temporary, target)
    except BaseException:  # an interrupt too must leave nothing half-written behind
        os.unlink(temporary)
        raise
    _sync_folder(folder)


def _permissions() -> int:
    """What a plain open() would give a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: str) -> None:
    """Makes the rename itself last; not every file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
