"""Flags that several commands share, as the groups that those commands take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimizer.cli import options
from optimizer.cli.options import Output
from optimizer.cli.terminal import (
    as_far_as_read,
    check_writable,
    refuse_output,
    show_data,
    stdout,
    write_result,
)

if TYPE_CHECKING:
    from rich.console import Console

    from optimizer.domain.outcome import Limits

DATA = (Output.TABLE, Output.JSON, Output.YAML)
# Logical workers of one search: the same everywhere, or the same input would give two plans.
SEARCH_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Showing:
    """What stdout shows, and the file that gets the result."""

    output: options.Shown = Output.TABLE
    out: options.OutFile = None
    ascii: options.Ascii = False

    def check(self, *forms: Output) -> None:
        """Say before the work what can be neither shown nor written. Raises Stop."""
        refuse_output(self.output, *(forms or DATA))
        check_writable(self.out)

    def show(self, data: Mapping[str, Any], table: "Callable[[Console], None]") -> None:
        """The result on stdout in the form asked for, and as JSON in the file."""
        write_result(self.out, data)  # first: whoever reads stdout may end before it does
        with as_far_as_read():
            if self.output is Output.TABLE:
                table(stdout())
            else:
                show_data(data, self.output)


@dataclass(frozen=True, slots=True)
class Limiting:
    """When a search may stop."""

    gap: options.Gap = 0.0
    time_limit: options.TimeLimit = 300.0
    effort: options.Effort = 60.0
    seed: options.Seed = 0

    def limits(self) -> "Limits":
        """The same for the solver."""
        from optimizer.domain.outcome import Limits

        return Limits(
            gap=self.gap,
            effort=self.effort,
            time_limit_s=self.time_limit,
            workers=SEARCH_WORKERS,
            seed=self.seed,
        )

    def said(self) -> Mapping[str, Any]:
        """What a plan records of it; the safety stop is no part of what was asked for."""
        return {"gap": self.gap, "effort": self.effort, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Working:
    """On how many Ray workers, and where."""

    workers: options.Workers = 2
    address: options.Address = None
