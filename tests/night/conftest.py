"""Tests of nights use the emulated cluster of the launch's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "launch"))
