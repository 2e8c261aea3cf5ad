"""Plain scalars: what a word without quotes means, and the traps that YAML sets.

YAML readers disagree on ``no``, ``010``, ``12:30`` or ``0x1F``. Such a word becomes a ``Trap``,
which no field takes; the fault then says how to write what was meant.
"""

import re
from dataclasses import dataclass

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_DECIMAL = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?\Z")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(?::[0-5]?[0-9])+(?:\.[0-9]*)?\Z")
_OTHER_BASE = re.compile(r"[-+]?0(?:x[0-9a-fA-F][0-9a-fA-F_]*|o[0-7][0-7_]*|b[01][01_]*)\Z")
_UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")
_LIKE_NUMBERS = (_UNDERSCORES, _OTHER_BASE, _SEXAGESIMAL)
_BOOLEANS = {"true": True, "false": False}
_TRUTHS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_NULLS = {"", "~", "null", "Null", "NULL"}
_LONGEST_NUMBER = 40
_NUMBER_STARTS = frozenset("0123456789+-.")


@dataclass(frozen=True, slots=True)
class Trap:
    """A word that YAML readers take for different things.

    ``reading`` tells what some take it for; ``number`` and ``boolean`` what to write instead.
    """

    text: str
    reading: str
    number: str | None = None
    boolean: str | None = None


Scalar = None | bool | int | float | str | Trap


def resolve(text: str) -> Scalar:
    """The value of a scalar written without quotes.

    Only ``true`` and ``false`` are booleans. ``1e3`` is the number 1000, and a whole number.
    """
    if text and text[0] in _NUMBER_STARTS:
        return _number(text)
    if text in _NULLS:
        return None
    word = text.lower()
    if word in _BOOLEANS:
        if text == word:
            return _BOOLEANS[word]
        return Trap(text, "a boolean", boolean=word)
    if word in _TRUTHS and text in (word, word.capitalize(), word.upper()):
        return Trap(text, "a boolean", boolean=_TRUTHS[word])
    return text


def _number(text: str) -> Scalar:
    if len(text) > _LONGEST_NUMBER and any(p.match(text) for p in _LIKE_NUMBERS):
        return Trap(text, "a number", number="a shorter number")
    if _INTEGER.match(text):
        return int(text)
    if _DECIMAL.match(text):
        return _decimal(text)
    return _trapped(text)


def _decimal(text: str) -> Scalar:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        return Trap(text, "a number", number="a smaller number")
    if "e" in text.lower() and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def _trapped(text: str) -> Scalar:
    """Text, or a trap that looks like a number."""
    if _NOT_FINITE.match(text):
        return Trap(text, "a number that is not finite", number="a finite number")
    if _LEADING_ZERO.match(text):
        plain = text.lstrip("+-0") or "0"
        sign = "-" if text.startswith("-") else ""
        return Trap(text, "octal", number=sign + ("0" + plain if plain[0] in ".e" else plain))
    if _SEXAGESIMAL.match(text):
        return Trap(text, "a number in base 60", number=_base_60(text))
    if _OTHER_BASE.match(text):
        return Trap(text, "a number in another base", number=str(int(text.replace("_", ""), 0)))
    if "_" in text and _UNDERSCORES.match(text):
        return Trap(text, "a number", number=text.replace("_", "").lstrip("+"))
    return text


def _base_60(text: str) -> str:
    """What readers in base 60 take ``text`` for, as a decimal number."""
    total = 0.0
    for part in text.lstrip("+-").split(":"):
        total = total * 60 + float(part)
    return f"{'-' if text.startswith('-') else ''}{total:.10g}"
