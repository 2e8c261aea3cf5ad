"""The run folder: what a launch left behind so that another shell can look and take down.

``run.json`` names the cluster, its processes and the replicas (written before anything starts),
``token`` is Ray's, ``head.log`` and ``logs/`` are for people. Only its owner may look inside.
"""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from optimizer.launch.processes import Process
from optimizer.launch.values import LaunchRefused

RECORD = "run.json"
TOKEN = "token"  # Ray's
TRAFFIC_TOKEN = "traffic.token"  # of the router, where it listens beyond loopback
HEAD_LOG = "head.log"
LOGS = "logs"
LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Run:
    """What one launch started, and where. ``head`` is the process that holds our own Ray."""

    id: str
    fleet: str
    folder: Path
    address: str | None = None  # None: our own Ray is about to start
    head: Process | None = None
    temp: str | None = None
    replicas: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()  # of Ray Serve
    serve_ours: bool = False  # whether Serve was started for them

    @property
    def embedded(self) -> bool:
        """Whether the Ray cluster is ours to end."""
        return self.temp is not None

    @property
    def token_path(self) -> Path | None:
        """Ray's token; None on a cluster that is not ours, whose token the user names."""
        return self.folder / TOKEN if self.embedded else None

    @property
    def alive(self) -> bool:
        """Whether our own Ray runs; a cluster that is not ours is taken to."""
        return self.head.alive if self.head is not None else not self.embedded


def state_home() -> Path:
    """Where run folders lie when no other place is named."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "fleetslice"


def folder_of(fleet: str) -> Path:
    """The run folder of a fleet."""
    return state_home() / re.sub(r"[^A-Za-z0-9._-]", "_", fleet)


def find(run_dir: Path | str | None, address: str | None = None) -> tuple[Run, ...]:
    """The runs of one folder, or of all folders of this user; only those on ``address``."""
    if run_dir is not None:
        folders = [Path(run_dir)]
    else:
        home = state_home()
        folders = sorted(p for p in home.iterdir() if p.is_dir()) if home.is_dir() else []
    runs = [run for folder in folders if (run := read(folder)) is not None]
    return tuple(run for run in runs if address in (None, run.address))


def the_run(run_dir: Path | str | None, address: str | None) -> Run:
    """The one run that is meant. Raises LaunchRefused when it is unclear which."""
    runs = find(run_dir, address)
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(f"{run.fleet} (--run-dir {run.folder})" for run in runs)
        raise LaunchRefused(f"several launches run; say which: {names}")
    where = f" in {run_dir}" if run_dir is not None else ""
    where += f" on {address}" if address is not None else ""
    raise LaunchRefused(f"nothing was launched{where or ' by this user'}")


def new_run(fleet: str, folder: Path, address: str | None = None) -> Run:
    """A run that has not started anything."""
    return Run(id=secrets.token_hex(8), fleet=fleet, folder=folder, address=address)


def read(folder: Path) -> Run | None:
    """What the folder says; None when nothing was launched there. Raises LaunchRefused."""
    path = folder / RECORD
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        head = said.pop("head")
        return Run(
            **{
                **said,
                "replicas": tuple(said["replicas"]),
                "applications": tuple(said.get("applications", ())),
            },
            folder=folder,
            head=None if head is None else Process(**head),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LaunchRefused(
            f"{path} cannot be read ({error}); remove the folder if it is stale"
        ) from error


def write(run: Run) -> None:
    """Put the record in its folder, whole or not at all."""
    said = asdict(replace(run, folder=Path()))
    said.pop("folder")
    text = json.dumps(said | {"replicas": list(run.replicas)}, indent=2)
    write_private(run.folder / RECORD, text + "\n")


def forget(run: Run) -> None:
    """Remove the record and the tokens; logs stay for people to read."""
    for name in (RECORD, TOKEN, TRAFFIC_TOKEN):
        with suppress(FileNotFoundError):
            (run.folder / name).unlink()


def make_folder(folder: Path) -> None:
    """A folder that only its owner can look into. Raises LaunchRefused when it is another's."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise LaunchRefused(f"run folder {folder} belongs to another user; name one: --run-dir")
        folder.chmod(0o700)
    except OSError as error:
        raise LaunchRefused(
            f"run folder {folder}: {error.strerror}; name another: --run-dir"
        ) from error


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        draft.unlink()
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(draft, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One launch or stop at a time in a run folder. Raises LaunchRefused when it is taken."""
    make_folder(folder)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchRefused(
                f"another launch or stop is at work in {folder}; wait for it to end"
            ) from None
        yield
    finally:
        os.close(handle)
