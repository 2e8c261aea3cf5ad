"""JSON text to plain values; places are looked up only when a fault asks for them."""

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from optimizer.documents.faults import Path
from optimizer.documents.nodes import MAX_DEPTH, Node, TextFault
from optimizer.documents.scalars import Trap, resolve

_SPACE = re.compile(r"[ \t\n\r]*")
_WORD = re.compile(r"[^\s,\]}:]+")


class _LookCloserError(Exception):
    """Something that needs places: a duplicate key, a number nobody should write."""


_TOO_DEEP = TextFault(1, 1, (), f"nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _LookCloserError
    return found


def _constant(name: str) -> Any:
    raise _LookCloserError(name)


def _number(text: str) -> Any:
    value = resolve(text)
    if isinstance(value, Trap):
        raise _LookCloserError
    return value


def read_json(text: str) -> tuple[Any, Node | None, list[TextFault]]:
    """The value of a JSON text, its places where they were needed already, and its faults."""
    if not text.strip():
        return None, None, []
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_int=_number,
            parse_float=_number,
        )
    except _LookCloserError:
        return _Scanner(text).read()
    except RecursionError:
        return None, None, [_TOO_DEEP]
    except json.JSONDecodeError as error:
        return None, None, [TextFault(error.lineno, error.colno, (), f"not JSON: {_words(error)}")]
    return value, None, []


def places(text: str) -> Node:
    """The places of a JSON text that is known to be well formed."""
    node = _Scanner(text).read()[1]
    return node if node is not None else Node(1, 1)


def _words(error: json.JSONDecodeError) -> str:
    known = {
        "Expecting property name enclosed in double quotes": (
            "a field's name in double quotes is missing; a comma too many?"
        ),
        "Illegal trailing comma before end of object": "a comma too many",
        "Illegal trailing comma before end of array": "a comma too many",
        "Expecting ',' delimiter": 'a "," or a closing bracket is missing',
        "Expecting ':' delimiter": 'a ":" is missing',
        "Expecting value": "a value is missing, or a comma is too many",
        "Extra data": "more text follows the end; a file holds one JSON value",
        "Unterminated string starting at": "a quote is not closed",
        "Invalid control character at": "a line break or control character inside a text",
        "Invalid \\escape": "a backslash that escapes nothing; write it twice",
        "Invalid \\uXXXX escape": "a \\u escape needs four hexadecimal digits",
    }
    return known.get(error.msg.removesuffix(": "), "broken")


class _TooDeepError(Exception):
    """Carries the fault of a text that nests deeper than any document of ours."""


class _Scanner:
    """Walks a text that ``json.loads`` accepts, noting where things stand."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.faults: list[TextFault] = []
        self.line_starts = [0] + [m.end() for m in re.finditer("\n", text)]
        self.line = 0

    def read(self) -> tuple[Any, Node | None, list[TextFault]]:
        try:
            value, node, end = self._value(self._space(0), ())
            if self._space(end) != len(self.text):
                raise json.JSONDecodeError("Extra data", self.text, self._space(end))
        except json.JSONDecodeError as error:
            fault = TextFault(error.lineno, error.colno, (), f"not JSON: {_words(error)}")
            return None, None, [*self.faults, fault]
        except _TooDeepError as error:
            return None, None, [*self.faults, error.args[0]]
        return value, node, self.faults

    def _space(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return match.end() if match else at

    def _place(self, at: int) -> tuple[int, int]:
        # Places are asked for in text order, so the line is found by walking on from the last one.
        while self.line + 1 < len(self.line_starts) and self.line_starts[self.line + 1] <= at:
            self.line += 1
        return self.line + 1, at - self.line_starts[self.line] + 1

    def _value(self, at: int, path: Path) -> tuple[Any, Node, int]:
        first = self.text[at : at + 1]
        line, column = self._place(at)
        if len(path) > MAX_DEPTH:
            raise _TooDeepError(TextFault(line, column, (), _TOO_DEEP.message))
        if first == "{":
            return self._object(at, path, Node(line, column, {}))
        if first == "[":
            return self._array(at, path, Node(line, column, []))
        if first == '"':
            text, end = scanstring(self.text, at + 1)
            return text, Node(line, column, text=text), end
        match = _WORD.match(self.text, at)
        if match is None:
            raise json.JSONDecodeError("Expecting value", self.text, at)
        word = match.group()
        if word in ("NaN", "Infinity", "-Infinity"):
            value: Any = Trap(word, "a number that is not finite", number="a finite number")
        else:
            value = resolve(word)
            if isinstance(value, str):
                raise json.JSONDecodeError("Expecting value", self.text, at)
        return value, Node(line, column, text=word), match.end()

    def _object(self, at: int, path: Path, node: Node) -> tuple[Any, Node, int]:
        value: dict[str, Any] = {}
        at = self._space(at + 1)
        while self.text[at : at + 1] != "}":
            if self.text[at : at + 1] != '"':
                message = "Expecting property name enclosed in double quotes"
                raise json.JSONDecodeError(message, self.text, at)
            place = self._place(at)
            key, at = scanstring(self.text, at + 1)
            at = self._expect(":", at)
            inner, child, at = self._value(at, (*path, key))
            if key in value:
                self._twice(key, place, path, node)
            else:
                value[key], node.children[key], node.keys[key] = inner, child, place
            at = self._comma("}", at)
        return value, node, at + 1

    def _array(self, at: int, path: Path, node: Node) -> tuple[Any, Node, int]:
        value: list[Any] = []
        at = self._space(at + 1)
        while self.text[at : at + 1] != "]":
            inner, child, at = self._value(at, (*path, len(value)))
            value.append(inner)
            node.children.append(child)
            at = self._comma("]", at)
        return value, node, at + 1

    def _expect(self, sign: str, at: int) -> int:
        at = self._space(at)
        if self.text[at : at + 1] != sign:
            raise json.JSONDecodeError(f"Expecting '{sign}' delimiter", self.text, at)
        return self._space(at + 1)

    def _comma(self, close: str, at: int) -> int:
        at = self._space(at)
        return at if self.text[at : at + 1] == close else self._expect(",", at)

    def _twice(self, key: str, place: tuple[int, int], path: Path, node: Node) -> None:
        line, first = place[0], node.keys[key][0]
        where = f"at lines {first} and {line}" if first != line else f"on line {line}"
        message = f"written twice, {where}; keep one of them"
        self.faults.append(TextFault(*place, (*path, key), message))
