"""Groups of flags: a frozen dataclass that a command takes as one parameter."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Protocol, TypeVar, get_type_hints

from typer.core import TyperCommand

R = TypeVar("R")


class Common(Protocol):
    """A group that acts by itself."""

    def act(self) -> None:
        """Do what its flags say."""


def spread(command: Callable[..., R], common: type[Common]) -> Callable[..., R]:
    """The command as Typer must see it: a parameter that is a group as one flag for each field.

    Typer knows no groups of its own (its issues 153 and 154). A group may hold groups. ``common``:
    flags that every command takes, which act before it does.
    """
    own = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hints[name] for name in own.parameters if is_dataclass(hints[name])}

    @functools.wraps(command)
    def run(**given: Any) -> R:
        _made(common, given).act()
        made = {name: _made(group, given) for name, group in groups.items()}
        return command(**made, **given)

    flags = [
        flag
        for name, one in own.parameters.items()
        for flag in (_flags(groups[name]) if name in groups else [one])
    ]
    flags += _flags(common)
    run.__signature__ = own.replace(parameters=flags)  # type: ignore[attr-defined]
    run.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return run


def _flags(group: type[Any]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for one in fields(group):
        if is_dataclass(hints[one.name]):
            yield from _flags(hints[one.name])
            continue
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        kind = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(one.name, kind, default=default, annotation=hints[one.name])


def _made(group: type[Any], given: dict[str, Any]) -> Any:
    """The group's value of its flags, which are taken out of those given."""
    hints = get_type_hints(group)
    return group(
        **{
            one.name: _made(hints[one.name], given)
            if is_dataclass(hints[one.name])
            else given.pop(one.name, one.default)
            for one in fields(group)
        }
    )


class Command(TyperCommand):
    """A command whose help lists its flags under the titles of their panels, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, then each panel in the order of its first flag, --help last."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for one in self.get_params(ctx):
            if (record := one.get_help_record(ctx)) is not None:
                usual = "Arguments" if one.param_type_name == "argument" else "Options"
                panel = getattr(one, "rich_help_panel", None) or usual
                panels.setdefault(panel, []).append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
