"""Node names with brace ranges: ``h100-{01..04}``."""

import re
from collections.abc import Iterator
from itertools import product

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PLAIN = re.compile(r"\w[\w.:@+\-]*\Z")
MOST_NAMES = 100_000


class BadNameError(ValueError):
    """Says what is wrong with a name."""


def expand(pattern: str) -> tuple[str, ...]:
    """The names a pattern stands for, the last range running fastest. Raises BadNameError.

    Numbers keep the width of a bound that starts with a zero: ``{08..10}`` is 08, 09, 10.
    """
    parts = _RANGE.split(pattern)
    ranges = [_numbers(parts[i], parts[i + 1]) for i in range(1, len(parts), 3)]
    fixed = parts[0::3]
    total = 1
    for numbers in ranges:
        total *= len(numbers)
    if total > MOST_NAMES:
        raise BadNameError(f"stands for {total:,} nodes; at most {MOST_NAMES:,} fit one entry")
    names = tuple(_joined(fixed, chosen) for chosen in product(*ranges))
    _check(pattern, names[0])
    return names


def _joined(fixed: list[str], chosen: tuple[str, ...]) -> str:
    pieces = [fixed[0]]
    for number, rest in zip(chosen, fixed[1:], strict=True):
        pieces += [number, rest]
    return "".join(pieces)


def _numbers(low: str, high: str) -> list[str]:
    if len(low) > 9 or len(high) > 9:
        raise BadNameError("numbers in a range have at most 9 digits")
    first, last = int(low), int(high)
    if first > last:
        raise BadNameError(f"the range {{{low}..{high}}} counts down; write {{{high}..{low}}}")
    if last - first >= MOST_NAMES:
        message = f"stands for {last - first + 1:,} nodes; at most {MOST_NAMES:,} fit one entry"
        raise BadNameError(message)
    padded = any(len(bound) > 1 and bound.startswith("0") for bound in (low, high))
    width = max(len(low), len(high)) if padded else 0
    return [str(n).zfill(width) for n in range(first, last + 1)]


def _check(pattern: str, name: str) -> None:
    if "{" in name or "}" in name:
        raise BadNameError(f'"{pattern}" holds a range that is not like {{01..04}}')
    if not _PLAIN.match(name):
        raise BadNameError(
            f'"{name}" must start with a letter or digit and hold only letters, digits '
            "and . _ - + : @"
        )


def expanded(patterns: list[str]) -> Iterator[str]:
    """The names of every pattern that makes sense."""
    for pattern in patterns:
        try:
            yield from expand(pattern)
        except BadNameError:
            continue
