"""Answers on file as they come, one JSON line each, so that an interrupted run goes on later."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from optimizer.domain.scenario import Scenario
from optimizer.scenarios.answer import Answer, entry, read_entry

if TYPE_CHECKING:
    from optimizer.scenarios.evaluate import Setting


class Journal:
    """The file of answers. A line's ``key`` is a hash of all that its answer depends on."""

    def __init__(self, path: Path, setting: "Setting") -> None:
        self.path = path
        inputs = setting.inputs
        self.base = _digest(
            replace(inputs, engines={}, gpus={}),
            sorted(inputs.engines.items()),
            sorted(inputs.gpus.items()),
            setting.limits,
            setting.before,
            setting.fixes,
        )
        self.fingerprint = setting.before.fingerprint
        self._file: Any = None

    def __enter__(self) -> Self:
        torn = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = self.path.open("a", encoding="utf-8")
        if torn:  # the run was ended in the middle of a line
            self._file.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def key(self, scenario: Scenario) -> str:
        """The same for the same scenario of the same baseline under the same limits."""
        return _digest(self.base, scenario)

    def known(self, scenarios: Sequence[Scenario]) -> dict[int, Answer]:
        """Answers that the file holds, by the scenario's place; failures are tried again."""
        found: dict[str, Answer] = {}
        with self.path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    said = json.loads(line)
                    answer = read_entry(said)
                    key = str(said["key"])
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # torn by the interrupt, or not ours
                if answer.failed is None:
                    found[key] = answer
        keys = [self.key(scenario) for scenario in scenarios]
        return {i: found[key] for i, key in enumerate(keys) if key in found}

    def write(self, scenario: Scenario, answer: Answer) -> None:
        """Add an answer; it is on file when this returns."""
        said = {"key": self.key(scenario), "baseline": self.fingerprint, **entry(answer)}
        self._file.write(json.dumps(said, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()


def _digest(*values: object) -> str:
    """A hash of values whose ``repr`` is all of them: frozen values without sets."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:32]
