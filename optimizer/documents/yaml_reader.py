"""YAML text to plain values that know where they stand.

Built from the parser's events, so that duplicate keys, traps, depth and size are ours to judge.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from optimizer.documents.faults import Path, shown
from optimizer.documents.nodes import MAX_DEPTH, MAX_NODES, Node, TextFault
from optimizer.documents.scalars import resolve

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
_HARMLESS = {None, "!", f"{_CORE}str", f"{_CORE}map", f"{_CORE}seq"}


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is being read."""

    value: Any
    node: Node
    anchor: str | None
    key: str | None = None
    key_at: tuple[int, int] = (0, 0)
    wants_key: bool = True
    size: int = 1
    depth: int = 1
    merges: list[tuple[dict[str, Any], Node]] = field(default_factory=list)


class _Composer:
    """Takes events one by one; holds one document at a time."""

    def __init__(self) -> None:
        self.faults: list[TextFault] = []
        self.frames: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, Node, int, int]] = {}
        self.nodes = 0
        self.done: tuple[Any, Node] | None = None

    def start(self) -> None:
        self.frames, self.anchors, self.done = [], {}, None

    def path(self) -> Path:
        """Where the value that comes next will stand."""
        return tuple(
            len(f.value) if isinstance(f.value, list) else (f.key or "") for f in self.frames
        )

    def fault(self, mark: Any, message: str) -> None:
        self.faults.append(TextFault(mark.line + 1, mark.column + 1, self.path(), message))

    def take(self, event: Any) -> None:
        """One event of a document's inside."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.MappingStartEvent:
            self._open(event, {}, {})
        elif kind is yaml.SequenceStartEvent:
            self._open(event, [], [])
        elif kind is yaml.AliasEvent:
            self._alias(event)
        else:
            self._close()

    def _too_deep(self, mark: Any) -> None:
        message = f"nested more than {MAX_DEPTH} deep"
        self.faults.append(TextFault(mark.line + 1, mark.column + 1, (), message))
        raise _TooMuchError

    def _count(self, event: Any, size: int = 1) -> None:
        self.nodes += size
        if self.nodes > MAX_NODES:
            self.fault(event.start_mark, f"more than {MAX_NODES:,} values in one file")
            raise _TooMuchError

    def _tag(self, event: Any) -> None:
        if event.tag not in _HARMLESS:
            tag = event.tag.replace(_CORE, "!!")
            self.fault(event.start_mark, f'the tag "{shown(tag)}" is not read here; leave it out')

    def _scalar(self, event: Any) -> None:
        self._count(event)
        mark, text = event.start_mark, event.value
        self._tag(event)
        frame = self.frames[-1] if self.frames else None
        if frame is not None and frame.wants_key and isinstance(frame.value, dict):
            self._key(frame, text, mark, merge=text == "<<" and event.implicit[0])
            return
        value = resolve(text) if event.implicit[0] else text
        self._put(value, Node(mark.line + 1, mark.column + 1, text=text), event.anchor)

    def _key(self, frame: _Frame, text: str, mark: Any, *, merge: bool) -> None:
        frame.key, frame.key_at, frame.wants_key = text, (mark.line + 1, mark.column + 1), False
        if merge or text not in frame.value:
            return
        first = frame.node.keys[text][0]
        line = mark.line + 1
        where = f"at lines {first} and {line}" if first != line else f"on line {line}"
        self.fault(mark, f"written twice, {where}; keep one of them")

    def _put(
        self, value: Any, node: Node, anchor: str | None, size: int = 1, depth: int = 0
    ) -> None:
        if anchor is not None:
            self.anchors[anchor] = (value, node, size, depth)
        if not self.frames:
            self.done = (value, node)
            return
        frame = self.frames[-1]
        frame.size += size
        frame.depth = max(frame.depth, depth + 1)
        if isinstance(frame.value, list):
            frame.value.append(value)
            frame.node.children.append(node)
            return
        if frame.wants_key:
            message = "a field's name must be a word"
            self.faults.append(TextFault(node.line, node.column, self.path()[:-1], message))
            frame.key, frame.wants_key = None, False
            return
        frame.wants_key = True
        if frame.key == "<<" and not isinstance(value, str):
            self._merge(frame, value, node)
        elif frame.key is not None and frame.key not in frame.value:
            frame.value[frame.key] = value
            frame.node.children[frame.key] = node
            frame.node.keys[frame.key] = frame.key_at

    def _merge(self, frame: _Frame, value: Any, node: Node) -> None:
        parts = value if isinstance(value, list) else [value]
        nodes = node.children if isinstance(value, list) else [node]
        for part, at in zip(parts, nodes, strict=True):
            if not isinstance(part, dict):
                message = 'merges a mapping here, as in "<<: *name"'
                self.faults.append(TextFault(*frame.key_at, self.path(), message))
                return
            frame.merges.append((part, at))

    def _open(self, event: Any, value: Any, children: Any) -> None:
        self._count(event)
        self._tag(event)
        mark = event.start_mark
        if len(self.frames) >= MAX_DEPTH:
            self._too_deep(mark)
        node = Node(mark.line + 1, mark.column + 1, children)
        self.frames.append(_Frame(value, node, event.anchor))
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)

    def _close(self) -> None:
        frame = self.frames.pop()
        for part, at in frame.merges:
            for key, value in part.items():
                if key not in frame.value:
                    frame.value[key] = value
                    frame.node.children[key] = at.children[key]
                    frame.node.keys[key] = at.keys[key]
        self._put(frame.value, frame.node, frame.anchor, frame.size, frame.depth)

    def _alias(self, event: Any) -> None:
        mark, name = event.start_mark, shown(event.anchor)
        found = self.anchors.get(event.anchor)
        if found is None:
            self.fault(mark, f'no "&{name}" stands before "*{name}"')
            found = (None, Node(mark.line + 1, mark.column + 1), 1, 0)
        value, node, size, depth = found
        self._count(event, size)
        if len(self.frames) + depth > MAX_DEPTH:
            self._too_deep(mark)
        self._put(value, node, None, size, depth)


class _TooMuchError(Exception):
    """The file is larger or deeper than any fleet."""


def read_yaml(text: str) -> tuple[list[tuple[Any, Node]], list[TextFault]]:
    """Every document of a YAML text, and its faults. Empty documents are left out."""
    composer = _Composer()
    found: list[tuple[Any, Node]] = []
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.DocumentStartEvent):
                composer.start()
            elif isinstance(event, yaml.DocumentEndEvent):
                found += _finished(composer)
            elif isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                composer.take(event)
    except yaml.YAMLError as error:
        composer.faults.append(_syntax(error, text))
    except _TooMuchError:
        pass
    return found, composer.faults


def _finished(composer: _Composer) -> Iterator[tuple[Any, Node]]:
    if composer.done is not None and composer.done[0] is not None:
        yield composer.done


_WORDS = (
    ("found character '\\t'", "a tab stands where YAML wants spaces; indent with spaces"),
    ("mapping values are not allowed", 'a ":" too many; put text that contains ": " in quotes'),
    ("did not find expected key", "the line does not fit its neighbours; check the indentation"),
    ("expected <block end>", "the line does not fit its neighbours; check the indentation"),
    ("did not find expected '-' indicator", "the line fits no list entry; check the indentation"),
    ("did not find expected ',' or '}'", 'a "{" is not closed, or a "," is missing'),
    ("did not find expected ',' or ']'", 'a "[" is not closed, or a "," is missing'),
    ("could not find expected ':'", 'a ":" is missing after a field\'s name'),
    ("expected ',' or '}'", 'a "{" is not closed, or a "," is missing'),
    ("expected ',' or ']'", 'a "[" is not closed, or a "," is missing'),
    ("<document start>", "text after the end of the document; check the indentation"),
    ("unexpected document indicator", 'a "---" or "..." inside a value; put it in quotes'),
    ("comment or line break", "text after a value that has ended; check quotes and signs"),
    ("whitespace or line break", "text after a sign that stands alone; check quotes and signs"),
    ("sequence entries are not allowed", 'a "- " where no list entry fits; put text in quotes'),
    ("block collections are not allowed", 'a "- " where no list entry fits; put text in quotes'),
    ("mapping keys are not allowed", 'a "? " where no field fits; put text in quotes'),
    ("expected node content", "a value is missing, or a comma is too many"),
    ("alphabetic or numeric character", 'a name is missing after "&" or "*"; put text in quotes'),
    ("tag handle", 'a "!" starts a tag, which is not read here; put text in quotes'),
    ("URI", 'a "!" starts a tag, which is not read here; put text in quotes'),
    ("hexdecimal", 'a "\\" in double quotes escapes; use single quotes or "\\\\"'),
    ("unexpected ':'", 'a ":" inside a word; put it in quotes, or a space after the ":"'),
    ("non-alphabetical", 'a line that starts with "%" is for YAML itself; put text in quotes'),
    ("directive", 'a line that starts with "%" is for YAML itself; put text in quotes'),
    ("unexpected end of stream", "a quote is not closed"),
    ("unknown escape", 'a "\\" in double quotes escapes; use single quotes or "\\\\"'),
    ("control characters", "a control character stands here; remove it"),
    ("special characters", "a control character stands here; remove it"),
    ("that cannot start any token", "a character that may not start a value; put it in quotes"),
)


def _syntax(error: yaml.YAMLError, text: str) -> TextFault:
    """Where YAML itself breaks, in our words where we have some."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "broken")
    if "unexpected end of stream" in problem:  # where the quote opens says more than the file's end
        mark = getattr(error, "context_mark", None) or mark
    if mark is None:
        before = text[: getattr(error, "position", 0) or 0]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    else:
        line, column = mark.line + 1, mark.column + 1
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    if here[column - 1 : column] == "\t" or here.startswith("\t"):
        problem = "found character '\\t'"
    words = next((w for start, w in _WORDS if start in problem), problem)
    return TextFault(line, column, (), f"not YAML: {words}")
