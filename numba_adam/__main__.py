"""Run `numba-adam` as `python -m numba_adam`. Imports numba_adam.cli alone."""

import sys

from numba_adam.cli import main

if __name__ == "__main__":
    sys.exit(main())
