"""Stdout for data, stderr for progress and faults; what may be coloured; how a command ends."""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from optimizer.cli.codes import Code
from optimizer.cli.flags import spread
from optimizer.cli.options import Output

if TYPE_CHECKING:
    from rich.console import Console

    from optimizer.domain.outcome import Progress

P = ParamSpec("P")
R = TypeVar("R")

_WIDTH_PIPED = 100


class Verbosity:
    """How much stderr says: -1 faults only, 0 as usual, 1 a line per step of the work."""

    level = 0


@dataclass(frozen=True, slots=True)
class Saying:
    """The flags for it, which may stand before or after a command's name."""

    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Faults only on stderr.")] = False
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="A line on stderr per phase of the work.")
    ] = False

    def act(self) -> None:
        """Say so much from here on; without a flag as much as before."""
        if self.quiet or self.verbose:
            Verbosity.level = -1 if self.quiet else 1


class Stop(Exception):
    """The command ends here, for a reason to be told on stderr."""

    def __init__(self, code: Code, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.code = code
        self.lines = lines


def stdout() -> "Console":
    """Where results go. Piped: no colour, and a width that does not depend on the terminal."""
    return _console(sys.stdout)


def stderr() -> "Console":
    """Where progress, notes and faults go."""
    return _console(sys.stderr)


def _console(file: Any) -> "Console":
    from rich.console import Console

    piped = not file.isatty()
    asked = os.environ.get("COLUMNS", "")
    width = _WIDTH_PIPED if piped and not asked.isdigit() else None
    dumb = os.environ.get("TERM") == "dumb"

    class Piped(Console):
        """Tells us of a reader that has gone, and does not end the process itself."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped(file=file, width=width, soft_wrap=False, no_color=dumb or None, emoji=False)


def say(*lines: str) -> None:
    """Notes for a person; not with ``-q``."""
    if Verbosity.level >= 0:
        for line in lines:
            print(line, file=sys.stderr)


def finish(code: Code) -> None:
    """End the command with that code."""
    raise typer.Exit(int(code))


def show_data(data: Mapping[str, Any], output: Output) -> None:
    """Plain data on stdout, as JSON or YAML."""
    from optimizer.documents import json_text, yaml_text

    sys.stdout.write(json_text(data) if output is Output.JSON else yaml_text(data))


def write_result(path: Path | None, data: Mapping[str, Any]) -> None:
    """The JSON result of ``--out``, where one was asked for."""
    if path is not None:
        from optimizer.documents import write_json

        write_json(path, data)
        say(f"wrote {path}")


def check_writable(path: Path | None) -> None:
    """Say before hours of work that ``--out`` cannot be written. Raises Stop."""
    if path is None:
        return
    folder = path.resolve().parent
    if path.is_dir():
        raise Stop(Code.USAGE, f"--out {path}: is a folder; name a file")
    if not folder.is_dir():
        raise Stop(Code.USAGE, f"--out {path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise Stop(Code.USAGE, f"--out {path}: cannot write in {folder}")


def refuse_output(output: Output, *allowed: Output) -> None:
    """Say which forms a command knows. Raises Stop."""
    if output not in allowed:
        known = ", ".join(allowed)
        raise Stop(Code.USAGE, f"-o {output}: not a form of this command; it knows {known}")


def guarded(command: Callable[P, R]) -> Callable[..., R]:
    """The command with every expected way to fail turned into a message and an exit code.

    Groups among its parameters are spread into their flags.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _terminable():
            try:
                done = command(*args, **kwargs)
                sys.stdout.flush()
                return done
            except Stop as stop:
                _tell(stop.lines)
                raise typer.Exit(int(stop.code)) from None
            except BrokenPipeError:
                _leave_pipe()
                raise typer.Exit(int(Code.DONE)) from None
            except Exception as error:  # known ones are told in their words; the rest is raised on
                code = _told(error)
                if code is None:
                    raise
                raise typer.Exit(int(code)) from None
            except KeyboardInterrupt:
                terminated = _Heard.signal == signal.SIGTERM
                _tell(["terminated" if terminated else "interrupted"])
                code = Code.TERMINATED if terminated else Code.INTERRUPTED
                raise typer.Exit(int(code)) from None

    return spread(run, Saying)


def _told(error: Exception) -> Code | None:
    """Tell an expected failure; None for one that nobody expects."""
    match type(error).__name__:
        case "DocumentFaults":
            from optimizer.report import render_faults

            render_faults(error.faults, stderr())  # type: ignore[attr-defined]
            return Code.USAGE
        case "BrokenPlan":
            _tell(
                [
                    "The judge refuses the plan that was found, so it is not shown; this is a",
                    "defect of fleetslice. What was broken:",
                    *str(error).splitlines(),
                ]
            )
            return Code.BROKEN
        case "LaunchRefused":
            _tell(str(error).splitlines())
            return Code.ERROR
    if isinstance(error, OSError) and error.filename is not None:
        _tell([f"{error.filename}: {error.strerror}"])
        return Code.ERROR
    return None


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


@contextmanager
def as_far_as_read() -> Iterator[None]:
    """Show what a reader wants to see; one that left early, as ``| head`` does, is no error.

    The command goes on to the exit code that it has found.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_pipe()


def _leave_pipe() -> None:
    """Nobody reads any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Heard:
    """The last signal that ended the work."""

    signal: int | None = None


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends work in the tidy way of Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        _Heard.signal = number
        raise KeyboardInterrupt

    _Heard.signal = None
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted() -> Code:
    """The code of an interrupt that the search took as its end."""
    return Code.TERMINATED if _Heard.signal == signal.SIGTERM else Code.INTERRUPTED


@contextmanager
def watching(unit: str) -> "Iterator[Callable[[Progress], None]]":
    """A line on the terminal that says how the search stands; ``-v`` writes one per phase."""
    console = stderr()
    if Verbosity.level < 0 or not (console.is_terminal or Verbosity.level > 0):
        yield lambda progress: None
        return
    if not console.is_terminal:
        yield _phases(unit)
        return
    with console.status("reading the problem") as status:
        yield lambda progress: status.update(_progress(progress, unit))


def _phases(unit: str) -> "Callable[[Progress], None]":
    told: list[str] = []

    def tell(progress: "Progress") -> None:
        line = _progress(progress, unit)
        if told[-1:] != [line]:
            told.append(line)
            print(line, file=sys.stderr)

    return tell


def _progress(progress: "Progress", unit: str) -> str:
    from optimizer.domain.outcome import Objective
    from optimizer.report.status import NAMES, amount

    name = NAMES.get(progress.phase, progress.phase)
    if progress.incumbent is None or progress.phase not in NAMES:
        return name
    level = Objective(progress.phase, progress.incumbent, progress.bound or 0)
    told = f"{name}: {amount(level, level.value, unit)}"
    if progress.bound is None:
        return told
    return f"{told}, no plan below {amount(level, level.bound, unit)}, gap {level.gap:.2%}"
