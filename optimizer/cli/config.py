"""Defaults from a file: ``fleetslice.toml`` here, else the user's own."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = "fleetslice.toml"


def config_file() -> Path | None:
    """The file that holds: FLEETSLICE_CONFIG, ./fleetslice.toml, or the user's config.toml."""
    named = os.environ.get("FLEETSLICE_CONFIG")
    if named:
        return Path(named)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (Path(HERE), home / "fleetslice" / "config.toml"):
        if path.is_file():
            return path
    return None


def defaults(flags: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Defaults by command, from the config file; ``flags`` are those that each command has.

    A flag at the top of the file holds for every command that has it, one in a table only for the
    command of that name. Raises ValueError naming the file and what is wrong with it.
    """
    path = config_file()
    if path is None:
        return {}
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    known = {name: set(has) for name, has in flags.items()}
    tables = {k: v for k, v in said.items() if isinstance(v, dict)}
    common = {_plain(k): v for k, v in said.items() if not isinstance(v, dict)}
    faults = [f"no command {name!r}" for name in tables if name not in known]
    every = {flag for has in known.values() for flag in has}
    faults += [f"no command has a flag {k!r}" for k in common if k not in every]
    found = {name: {k: v for k, v in common.items() if k in has} for name, has in known.items()}
    for name in tables.keys() & known.keys():
        own = {_plain(k): v for k, v in tables[name].items()}
        faults += [f"{name} has no flag {k!r}" for k in own if k not in known[name]]
        found[name] |= own
    if faults:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in sorted(faults)))
    return {name: values for name, values in found.items() if values}


def _plain(flag: str) -> str:
    return flag.replace("-", "_")
