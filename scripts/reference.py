"""Writes the reference pages from the code: commands, documents, rules, formulas.

Usage: reference.py FOLDER
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from optimizer.cli.app import app
from optimizer.documents.schema import KINDS, schema_of
from optimizer.domain import prices
from optimizer.sizing import batching, kvcache, memory, performance, weights
from optimizer.verify import RULES

COUNTING = (weights, kvcache, memory, performance, batching, prices)

HEADINGS = {
    "commands": "Commands\n\nWhat `fleetslice COMMAND --help` says.",
    "documents": "Documents\n\nEvery field of every kind of document, from the schemas.",
    "formulas": "Formulas\n\nWhat is counted how, and by which source, as the code says it.",
    "rules": "Rules\n\nWhat `verify` holds every plan against; each has one name everywhere.",
}


def commands() -> Iterator[str]:
    """A section per command, in the order of the command line."""
    root: Any = typer.main.get_command(app)
    context = root.context_class(root, info_name="fleetslice")
    for name, command in root.commands.items():
        yield from _command(name, command, context)


def _command(name: str, command: Any, parent: Any) -> Iterator[str]:
    context = parent.__class__(command, info_name=name, parent=parent, terminal_width=88)
    yield f"## {context.command_path}"
    yield f"```text\n{command.get_help(context).rstrip()}\n```"
    for inner, one in getattr(command, "commands", {}).items():
        yield from _command(inner, one, context)


def documents() -> Iterator[str]:
    """A section per kind, a table per part of it."""
    for kind in KINDS:
        schema = schema_of(kind).model_json_schema()
        yield f"## {kind}"
        yield from _part(schema, schema)
        for name, part in sorted(schema.get("$defs", {}).items()):
            if part.get("properties"):
                yield f"### {kind}: {name.removesuffix('Doc')}"
                yield from _part(part, schema)


def _part(part: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    if part.get("description"):
        yield part["description"]
    needed = set(part.get("required", ()))
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for name, field in part.get("properties", {}).items():
        default = "required" if name in needed else _shown(field.get("default"))
        rows.append(f"| `{name}` | {_type(field)} | {default} | {field.get('description', '')} |")
    yield "\n".join(rows)


def _shown(default: Any) -> str:
    return "" if default in (None, [], {}) else f"`{default}`"


def _type(field: dict[str, Any]) -> str:
    """The type in a few words."""
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[1].removesuffix("Doc"))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        kinds = [_type(one) for one in field["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))


def rules() -> Iterator[str]:
    """A line per rule, from the judge's own words."""
    rows = ["| rule | |", "|---|---|"]
    for rule in RULES:
        first = (rule.__doc__ or "").strip().splitlines()[0]
        rows.append(f"| `{rule.__name__}` | {first} |")
    yield "\n".join(rows)


def formulas() -> Iterator[str]:
    """A section per module that counts: its functions and values that state a formula."""
    for module in COUNTING:
        told = inspect.getdoc(module) or ""
        yield f"## {told.splitlines()[0].rstrip('.:')}"
        yield f"From `{module.__name__.replace('.', '/')}.py`."
        if rest := "\n".join(told.splitlines()[1:]).strip("\n"):
            yield f"```text\n{rest}\n```"
        for name, one in vars(module).items():
            said = inspect.getdoc(one) or ""
            own = getattr(one, "__module__", "") == module.__name__
            if own and not name.startswith("_") and "\n" in said:
                yield f"### `{name}`\n\n```text\n{said}\n```"


def main(folder: Path) -> None:
    """Write all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"commands": commands, "documents": documents, "formulas": formulas, "rules": rules}
    for name, write in pages.items():
        parts = [f"# {HEADINGS[name]}", *write()]
        (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
