"""``python -m optimizer`` is ``fleetslice``."""

from optimizer.cli import main

main()
