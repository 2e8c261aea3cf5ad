"""The command line: arguments in, exit code out. One file a group of commands.

Whatever is slow to import is imported inside the command that needs it.
"""

import sys


def main() -> None:
    """Run ``fleetslice``."""
    from optimizer.cli.app import run

    sys.exit(run())
