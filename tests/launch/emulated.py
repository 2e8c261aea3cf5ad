"""Ray nodes of one machine that stand for the nodes of a plan. As a script: holds them.

    python emulated.py RESOURCES_JSON    ([{"host:n1": 1, "dev:n1/0": 1}, ...], one a node)

It prints the cluster's address, then, for each line on its standard input, kills the node of that
number, or brings it back where a plus stands before it; it ends with its standard input.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimizer.domain.placement import node_of
from optimizer.domain.plan import Plan
from optimizer.launch.devices import declared
from optimizer.launch.environment import with_package

# Ray notices a dead node within a second.
QUICK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


class Emulated:
    """A running cluster."""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self._process, self.address = process, address

    def kill_node(self, number: int) -> None:
        """End one node at once, as a power cut would."""
        self._say(f"{number}")

    def bring_back(self, number: int) -> None:
        """Start it again, empty."""
        self._say(f"+{number}")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


def environment(token: Path) -> dict[str, str]:
    """Ray's settings for this cluster: on the loopback interface only, with a token."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }


@contextmanager
def cluster(plan: Plan, folder: Path) -> Iterator[Emulated]:
    """A cluster with a Ray node for each node of the plan."""
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    nodes = sorted({node_of(gpu.id) for gpu in plan.gpus})
    said = environment(token)
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps([declared(plan, node) for node in nodes])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "cluster.log").open("w"),
        text=True,
        env=with_package(os.environ),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        address = process.stdout.readline().strip()
        assert address, (folder / "cluster.log").read_text()
        yield Emulated(process, address)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def hold(resources: list[dict[str, float]]) -> None:
    from contextlib import redirect_stdout

    from ray.cluster_utils import Cluster

    with redirect_stdout(sys.stderr):
        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        held = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "num_gpus": 0, "_system_config": QUICK, **small},
        )
        nodes = [held.add_node(num_cpus=1, num_gpus=0, resources=r, **small) for r in resources]
    print(held.address, flush=True)
    for line in sys.stdin:
        number = int(line)
        if line.startswith("+"):
            nodes[number] = held.add_node(
                num_cpus=1, num_gpus=0, resources=resources[number], **small
            )
        else:
            held.remove_node(nodes[number], allow_graceful=False)
        print("done", flush=True)
    held.shutdown()


if __name__ == "__main__":
    hold(json.loads(sys.argv[1]))
