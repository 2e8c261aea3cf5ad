"""A connection to a Ray cluster: quiet, with its token, and tidy when it ends."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from optimizer.launch.values import LaunchRefused

NAMESPACE = "fleetslice"
CONNECT_S = 5.0
SIGTERM_EXIT = 128 + signal.SIGTERM


def ray_environment(token_path: Path | None, *, ours: bool) -> dict[str, str]:
    """The variables that Ray reads.

    On a cluster of ours: everything on the loopback interface, and our token. On another's, the
    user's own settings stay.
    """
    said = {"RAY_USAGE_STATS_ENABLED": "0"}
    if ours:
        said["RAY_AUTH_MODE"] = "token"
        # The name is Ray's; what it does everywhere is to keep Ray on 127.0.0.1.
        said["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token_path is not None:
        said["RAY_AUTH_TOKEN_PATH"] = str(token_path)
    return said


@contextmanager
def session(
    address: str,
    token_path: Path | None,
    *,
    ours: bool,
    runtime_env: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """The ``ray`` module, connected to ``address``. Raises LaunchRefused when none answers.

    ``runtime_env`` is Ray's, of all that this connection starts.
    Ray's notices go to stderr, whatever they are printed to. SIGTERM ends the process with exit
    code 143 after all clean-up. A connection that this process has already is used and kept.
    """
    _answers(address)
    with (
        redirect_stdout(sys.stderr),
        _environment({"RAY_USAGE_STATS_ENABLED": "0"}),  # read while Ray is imported
        _as_ours(ours),
        _environment(ray_environment(token_path, ours=ours)),
    ):
        import ray

        if ray.is_initialized():
            there = ray.get_runtime_context().gcs_address
            if address not in ("auto", there):
                raise LaunchRefused(f"this process is connected to another Ray, at {there}")
            yield ray
            return
        _forget_tokens()
        _connect(ray, address, runtime_env)
        with _on_sigterm():
            try:
                yield ray
            finally:
                ray.shutdown()


def _connect(ray: Any, address: str, runtime_env: Mapping[str, Any] | None) -> None:
    import logging

    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=None if runtime_env is None else dict(runtime_env),
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LaunchRefused(f"cannot connect to Ray at {address}: {first}") from error


def _answers(address: str) -> None:
    """Refuse early where nobody listens: Ray itself would try for a long time."""
    if address.startswith("ray://"):
        raise LaunchRefused(
            f"{address}: Ray's client protocol is not supported; run this on a machine of the "
            "cluster and give the address of its head, as in --address 10.0.0.1:6379"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        if address != "auto":
            raise LaunchRefused(
                f"{address!r} is no address of a Ray cluster; say HOST:PORT or auto"
            )
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise LaunchRefused(f"no Ray answers at {address}: {error}") from error


@contextmanager
def _as_ours(ours: bool) -> Iterator[None]:
    """Reach our own Ray as it was started: on 127.0.0.1, with a token.

    Ray reads the variables for both once, when it is imported: too late where the process has it
    already, and for good where it goes on to another's cluster.
    """
    from ray._private import ray_constants

    _raylet: Any = import_module("ray._raylet")
    mode = getattr(_raylet, "get_authentication_mode", None)  # an older Ray has none
    if not ours or mode is None:
        yield
        return
    tokens = mode() == _raylet.AuthenticationMode.TOKEN
    reach = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    _raylet.Config.initialize(json.dumps({"AUTH_MODE": "token"}))
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = reach
        _raylet.Config.initialize(json.dumps({"AUTH_MODE": "token" if tokens else "disabled"}))


def _forget_tokens() -> None:
    """Ray reads a token once a process; another cluster of ours has another one."""
    import ray._raylet

    loader = getattr(ray._raylet, "AuthenticationTokenLoader", None)
    if loader is not None:  # an older Ray has no tokens
        loader.instance().reset_cache()


@contextmanager
def _environment(said: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _on_sigterm() -> Iterator[None]:
    """SIGTERM becomes an exit that runs all clean-up; Ray's own handler aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(SIGTERM_EXIT)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if callable(before) else signal.SIG_DFL)
