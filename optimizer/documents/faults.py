"""What is wrong in a document: where, what, and a way out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

Path = tuple[str | int, ...]

_MANY = 12  # names listed in full up to here
_MEANT = 5  # names that may all have been meant


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault. ``line`` and ``column`` count from 1; line 0 speaks of the whole file."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


class DocumentFaults(Exception):
    """Every fault of the documents read together, sorted by place."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: tuple[Fault, ...] = tuple(sorted(set(faults)))
        super().__init__("\n".join(map(str, self.faults)))


def dotted(path: Path) -> str:
    """``("nodes", 3, "gpu")`` as people read it: ``nodes[3].gpu``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = shown(part, 120) or '""'
            text += f".{name}" if text else name
    return text


def closest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """The known names that were probably meant, a few at most.

    Those that go on after the wrong one (``h100``: ``h100-80gb-sxm``, ``h100-94gb-nvl``), else the
    nearest ones. Case and punctuation do not count, and a name that the wrong one merely shortens
    counts as near: ``h100-sxm`` means ``h100-80gb-sxm``.
    """
    names = sorted(set(known))
    longer = [n for n in names if n.lower().startswith(f"{name.lower()}-")]
    if longer:
        return tuple(longer[:_MEANT])
    wanted = _plain(name)
    scores = {candidate: _likeness(wanted, _plain(candidate)) for candidate in names}
    best = max(scores.values(), default=0.0)
    if best <= 0.6:
        return ()
    return tuple(c for c in names if scores[c] == best)[:_MEANT]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _likeness(wanted: str, candidate: str) -> float:
    """1 for equal; 0.6 is about where a person still sees what was meant."""
    if not wanted or not candidate:
        return 0.0
    matcher = SequenceMatcher(None, wanted, candidate, autojunk=False)
    score = 0.0
    if matcher.real_quick_ratio() > 0.6 and matcher.quick_ratio() > 0.6:
        score = matcher.ratio()
    if len(wanted) >= 3 and _letters_in_order(wanted, candidate):
        score = max(score, 0.7 + 0.3 * len(wanted) / len(candidate))
    return score


def _letters_in_order(short: str, long: str) -> bool:
    """Whether ``short`` is ``long`` with one run of characters left out."""
    if len(short) > len(long):
        return False
    head = 0
    while head < len(short) and short[head] == long[head]:
        head += 1
    return long.endswith(short[head:]) and head > 0


def listed(names: Sequence[str]) -> str:
    """Names as a short list; a long one is cut and says so."""
    if len(names) <= _MANY:
        return ", ".join(names)
    return ", ".join(names[:_MANY]) + f" and {len(names) - _MANY} more"


def way_out(name: str, known: Iterable[str]) -> str:
    """``did you mean "x"?``, else the allowed names, else nothing."""
    names = list(dict.fromkeys(known))
    near = closest(name, names)
    if near:
        quoted = [f'"{n}"' for n in near]
        return f"did you mean {' or '.join(filter(None, [', '.join(quoted[:-1]), quoted[-1]]))}?"
    return f"known: {listed(names)}" if names else ""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """``no product "h100-sxm"; did you mean "h100-80gb-sxm"?``"""
    hint = way_out(name, known)
    return f'no {what} "{shown(name)}"' + (f"; {hint}" if hint else "")


def shown(text: str, limit: int = 60) -> str:
    """Text from a document, safe on one line and not too long."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
