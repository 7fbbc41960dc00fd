"""What the GPU's tests share. Those under simulated/ run in a process of their own, with Numba's simulator."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # for `reference` and `lending`, which are no tests themselves

# Not skipped: test_simulator.py runs them, in a process in which the simulator is switched on.
collect_ignore = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["simulated"]
