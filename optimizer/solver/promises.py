"""The least that a promise of an SLO must give way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from optimizer.domain import words
from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Fleet
from optimizer.domain.workload import Deployment
from optimizer.solver.easing import least

SLO_STEPS = 300  # hundredths by which a promise is relaxed at most


class Resize(Protocol):
    """The ways to run a deployment that was changed; ``fleet``: on that one, not on today's."""

    def __call__(
        self, deployment: Deployment, fleet: Fleet | None = None
    ) -> Sequence[Candidate]: ...


def slo_fixes(
    asked: Deployment, helps: Callable[[Deployment], bool | None]
) -> Iterator[tuple[float, str]]:
    """The least relaxed promise of the SLO that helps: each alone, else both; with its factor."""
    slo = asked.slo
    if slo is None or asked.model is None:
        return
    promised = {n: v for n in ("tpot_ms", "ttft_ms") if (v := getattr(slo, n)) is not None}

    def relaxed(names: tuple[str, ...], step: int) -> Deployment:
        changed = {n: _relaxed_ms(promised[n], step) for n in names}
        return replace(asked, slo=replace(slo, **changed))

    alone = False
    for names in dict.fromkeys([*((name,) for name in promised), tuple(promised)]):
        if len(names) > 1 and alone:
            return
        if not names or not helps(relaxed(names, SLO_STEPS)):
            continue
        step = least(SLO_STEPS, partial(_helps, helps, relaxed, names))
        if step is not None:
            alone = True
            told = [
                f"{n} {words.number(promised[n])} -> {words.number(_relaxed_ms(promised[n], step))}"
                for n in names
            ]
            yield 1 + step / 100, " and ".join(told)


def _helps(
    helps: Callable[[Deployment], bool | None],
    relaxed: Callable[[tuple[str, ...], int], Deployment],
    names: tuple[str, ...],
    step: int,
) -> bool:
    return helps(relaxed(names, step)) is True


def _relaxed_ms(promised: float, step: int) -> float:
    """So many hundredths more, in whole milliseconds where it promises at least ten."""
    value = promised * (1 + step / 100)
    return float(-(-value // 1)) if promised >= 10 else round(value, 2)
