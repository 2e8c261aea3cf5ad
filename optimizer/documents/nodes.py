"""Where each value of a document stands."""

from dataclasses import dataclass
from typing import Any

from optimizer.documents.faults import Path

MAX_DEPTH = 60
MAX_NODES = 2_000_000


class Node:
    """The place of a value (line and column from 1), and of what lies inside it.

    ``children`` is a dict for a mapping, a list for a list; ``keys`` the places of field names;
    ``text`` a scalar as it was written.
    """

    __slots__ = ("children", "column", "keys", "line", "text")

    def __init__(
        self, line: int, column: int, children: Any = None, text: str | None = None
    ) -> None:
        self.line = line
        self.column = column
        self.children = children
        self.keys: dict[str, tuple[int, int]] = {} if type(children) is dict else _NO_KEYS
        self.text = text

    def find(self, path: Path) -> "Node":
        """The node at ``path``, or the deepest one on the way to it."""
        node = self
        for part in path:
            inside = node._child(part)
            if inside is None:
                return node
            node = inside
        return node

    def place(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Line and column of a value, or of its field's name; of what encloses it if absent."""
        if key and path and isinstance(path[-1], str):
            holder = self.find(path[:-1])
            if path[-1] in holder.keys:
                return holder.keys[path[-1]]
        node = self.find(path)
        return node.line, node.column

    def _child(self, part: str | int) -> "Node | None":
        children = self.children
        if isinstance(children, dict):
            child = children.get(part)
        elif isinstance(children, list) and isinstance(part, int) and part < len(children):
            child = children[part]
        else:
            child = None
        return child if isinstance(child, Node) else None


_NO_KEYS: dict[str, tuple[int, int]] = {}


@dataclass(frozen=True, slots=True)
class TextFault:
    """A fault found while reading one text, before it is known which file it was."""

    line: int
    column: int
    path: Path
    message: str
