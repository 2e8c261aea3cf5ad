"""A launcher of the show that is killed at a point: after so many journal writes, or seconds.

python -m scripts.bench.launch_killed ADDRESS FOLDER rebalance|rollback writes|seconds POINT
"""

import os
import signal
import sys
import threading

from optimizer.launch import SIMULATED, journal, launch, rollback
from scripts.bench.launch_plans import AFTER, BEFORE, show_plan
from scripts.bench.launch_watch import QUICK

WRITES = ("mark", "set_copy", "begin", "record", "put_copy", "close")


def die() -> None:
    """As a power cut would end it."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run until the point; 0 when it was done before."""
    address, folder, what, kind, point = sys.argv[1:]
    if kind == "seconds":
        timer = threading.Timer(float(point), die)
        timer.daemon = True
        timer.start()
    else:
        left = [int(point)]
        for name in WRITES:
            setattr(journal.Journal, name, _counted(getattr(journal.Journal, name), left))
    if what == "rollback":
        rollback(folder)
        return
    plan = show_plan(AFTER, BEFORE)
    launch(plan, engine=SIMULATED, address=address, run_dir=folder, patience=QUICK)


def _counted(write, left):  # type: ignore[no-untyped-def]
    def doing(*said, **more):  # type: ignore[no-untyped-def]
        left[0] -= 1
        if left[0] == 0 and int(sys.argv[-1]) % 2:
            die()
        done = write(*said, **more)
        if left[0] == 0:
            die()
        return done

    return doing


if __name__ == "__main__":
    main()
