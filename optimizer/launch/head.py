"""Our own Ray: a background process that starts it on this machine, holds it and ends it.

It listens on the loopback interface only and asks for a token that lies in the run folder. A
launch that stays in the foreground holds a pipe to it: when that closes, however the launch went,
Ray and all replicas end.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from optimizer.launch import processes
from optimizer.launch.environment import with_package
from optimizer.launch.run import HEAD_LOG, TOKEN, Run, forget, make_folder, write, write_private
from optimizer.launch.session import NAMESPACE, ray_environment
from optimizer.launch.values import LaunchRefused

REQUEST = "request.json"  # what the head is to start
UP = "head.json"  # written by the head once Ray answers
OBJECT_STORE_BYTES = 80 << 20  # no data passes through it; Ray wants 75 MiB at least
START_S = 60.0
END_S = 15.0
POLL_S = 0.05
LOG_LINES = 10

# Pipes to heads that shall not outlive this process.
_attended: list[subprocess.Popen[bytes]] = []


def start(run: Run, resources: Mapping[str, float], *, detach: bool, deadline_s: float) -> Run:
    """Start Ray on this machine with these custom resources; the run with its address.

    Raises LaunchRefused, with the log's last lines, when it is not up within the deadline.
    """
    make_folder(run.folder)
    # Ray's sockets lie there; their paths must be short, so not in the run folder.
    temp = tempfile.mkdtemp(prefix="fleetslice-", dir="/tmp" if Path("/tmp").is_dir() else None)
    run = replace(run, temp=temp)
    with suppress(FileNotFoundError):
        (run.folder / UP).unlink()
    write_private(run.folder / TOKEN, os.urandom(32).hex())
    request = {"temp": temp, "resources": dict(resources), "cpus": os.cpu_count() or 1}
    write_private(run.folder / REQUEST, json.dumps(request))
    environment = with_package(os.environ) | ray_environment(run.token_path, ours=True)
    environment |= {processes.MARK: run.id}
    log = os.open(run.folder / HEAD_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        head = subprocess.Popen(
            [sys.executable, "-m", __name__, str(run.folder)],
            stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=run.folder,
            start_new_session=True,
        )
    finally:
        os.close(log)
    run = replace(run, head=processes.process(head.pid))
    write(run)
    _attended.append(head)
    try:
        address = _wait_up(run, head, min(deadline_s, START_S))
    except BaseException:
        end(run)
        raise
    run = replace(run, address=address)
    write(run)
    return run


def _wait_up(run: Run, head: subprocess.Popen[bytes], deadline_s: float) -> str:
    end_at = time.monotonic() + deadline_s
    while time.monotonic() < end_at:
        with suppress(FileNotFoundError):
            return str(json.loads((run.folder / UP).read_text(encoding="utf-8"))["address"])
        if head.poll() is not None:
            raise LaunchRefused(f"Ray did not start (exit code {head.poll()}):", *_log_lines(run))
        time.sleep(POLL_S)
    raise LaunchRefused(f"Ray was not up within {deadline_s:g} s:", *_log_lines(run))


def _log_lines(run: Run) -> list[str]:
    text = (run.folder / HEAD_LOG).read_text(encoding="utf-8", errors="replace")
    return [f"  {line}" for line in text.splitlines()[-LOG_LINES:]]


def end(run: Run) -> tuple[processes.Process, ...]:
    """End our own Ray and whatever the run started; what could not be ended.

    Works whatever state the head is in, also when it was killed. Forgets the run.
    """
    started = processes.of_run(run.id, run.head)
    if run.head is not None and run.head.alive:
        with suppress(ProcessLookupError):
            os.kill(run.head.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_S
        while run.head.alive and time.monotonic() < deadline:
            _reap()
            time.sleep(POLL_S)
    left = {*started, *processes.of_run(run.id, run.head)}
    # Guards end their engines when their supervisors go; they get a moment for it.
    left = set(processes.wait_gone(left, 1.0))
    lasting = processes.end(sorted(left, key=lambda p: p.pid), grace_s=3.0)
    _reap()
    if run.temp is not None:
        shutil.rmtree(run.temp, ignore_errors=True)
    for name in (REQUEST, UP):
        with suppress(FileNotFoundError):
            (run.folder / name).unlink()
    if not lasting:
        forget(run)
    return lasting


def _reap() -> None:
    """Collect heads that ended as children of this very process."""
    for head in list(_attended):
        if head.poll() is not None:
            if head.stdin is not None:
                head.stdin.close()
            _attended.remove(head)


def hold(folder: Path, temp: str, resources: Mapping[str, float], cpus: int) -> None:
    """Start Ray in this process and keep it until told to end, or until the launch is gone."""
    import logging

    import ray

    attended = not os.path.samestat(os.fstat(0), os.stat(os.devnull))
    ray.init(
        address="local",
        namespace=NAMESPACE,
        num_cpus=cpus,
        num_gpus=0,
        resources=dict(resources),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _temp_dir=temp,
    )
    try:
        # After init, because Ray's own handler of SIGTERM aborts the process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        address = ray.get_runtime_context().gcs_address
        write_private(folder / UP, json.dumps({"address": address}))
        if attended:
            select.select([0], [], [])
        else:
            while True:
                signal.pause()
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    os.umask(0o077)
    place = Path(sys.argv[1])
    hold(place, **json.loads((place / REQUEST).read_text(encoding="utf-8")))
