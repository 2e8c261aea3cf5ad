"""Looking into raw values that may hold anything: what is not there is not found."""

from collections.abc import Iterator
from typing import Any

from optimizer.documents.faults import Path

Found = tuple[Path, Any]


def each(value: Any, pattern: str, base: Path = ()) -> Iterator[Found]:
    """Every value at a pattern such as ``measured[].gpu`` or ``devices{}.layout[].profile``."""
    steps = pattern.replace("[]", ".[]").replace("{}", ".{}").split(".") if pattern else []
    yield from _walk(value, [s for s in steps if s], base)


def _walk(value: Any, steps: list[str], path: Path) -> Iterator[Found]:
    if not steps:
        yield path, value
    elif steps[0] == "[]":
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _walk(item, steps[1:], (*path, index))
    elif isinstance(value, dict):
        if steps[0] == "{}":
            for key, item in value.items():
                yield from _walk(item, steps[1:], (*path, key))
        elif steps[0] in value:
            yield from _walk(value[steps[0]], steps[1:], (*path, steps[0]))


def texts(value: Any, pattern: str, base: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text at a pattern."""
    for path, item in each(value, pattern, base):
        if isinstance(item, str):
            yield path, item


def at(value: Any, pattern: str) -> Any:
    """The first value at a pattern, or None."""
    return next((item for _, item in each(value, pattern)), None)


def whole(value: Any, pattern: str) -> int | None:
    """The whole number at a pattern, or None."""
    found = at(value, pattern)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def text(value: Any, pattern: str) -> str | None:
    """The text at a pattern, or None."""
    found = at(value, pattern)
    return found if isinstance(found, str) else None


def given(value: Any, pattern: str) -> bool:
    """Whether anything but null stands at a pattern."""
    return at(value, pattern) is not None
