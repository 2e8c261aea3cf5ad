"""``python3 -m optimizer.launch.simulated``."""

import sys

from optimizer.launch.simulated.server import main

if __name__ == "__main__":
    sys.exit(main())
