"""Tells somebody how a night ended, by a program of theirs."""

import os
import subprocess

from optimizer.domain.policy import Policy
from optimizer.night.values import Ending


def notify(policy: Policy, ending: Ending) -> str | None:
    """Run the policy's program, without a shell, with the summary on its standard input.

    Why it failed, or None. It gets FLEETSLICE_OUTCOME, FLEETSLICE_EXIT_CODE and FLEETSLICE_RUN,
    the run folder; it is ended when its time is over.
    """
    if not policy.notify:
        return None
    said = {
        "FLEETSLICE_OUTCOME": str(ending.outcome),
        "FLEETSLICE_EXIT_CODE": str(int(ending.code)),
        "FLEETSLICE_RUN": str(ending.folder or ""),
    }
    name = policy.notify[0]
    try:
        done = subprocess.run(
            policy.notify,
            input="\n".join(ending.lines) + "\n",
            text=True,
            capture_output=True,
            timeout=policy.notify_within_s,
            env=os.environ | said,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{name} did not end within {policy.notify_within_s:g} s"
    except OSError as error:
        return f"{name}: {error.strerror}"
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return f"{name} ended with exit code {done.returncode}" + "".join(f": {x}" for x in last)
    return None
