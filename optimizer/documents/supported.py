"""What documents may say that this version does not honour yet: refused, never ignored."""

from collections.abc import Callable, Iterator
from typing import Any

from optimizer.documents import look
from optimizer.documents.faults import Fault
from optimizer.documents.wording import quoted

_ANY = object()


class _But:
    """Everything except one value."""

    def __init__(self, value: Any) -> None:
        self.value = value


# Kind of thing, where in it, which value (any, one, all but one), and what it would need. A rule
# that lands takes its lines out here.
NOT_SUPPORTED_YET: tuple[tuple[str, str, Any, str], ...] = (
    ("Deployment", "allow.pipeline_parallel[]", _But(1), "pipeline parallelism"),
)


def unsupported(thing: str, raw: Any, say: Callable[..., Fault]) -> Iterator[Fault]:
    """The faults of every value that is known and not honoured yet."""
    for kind, pattern, wanted, what in NOT_SUPPORTED_YET:
        if kind != thing:
            continue
        for path, value in look.each(raw, pattern):
            if value is not None and _matches(value, wanted):
                named = what if wanted is _ANY else f"{quoted(value)} ({what})"
                yield say(path, f"not supported yet: {named}; leave it out")


def _matches(value: Any, wanted: Any) -> bool:
    if wanted is _ANY:
        return True
    if isinstance(wanted, _But):
        return bool(value != wanted.value)
    return bool(value == wanted)
