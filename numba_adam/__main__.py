"""`python -m numba_adam` is `numba-adam`."""

import sys

from numba_adam.cli import main

if __name__ == "__main__":
    sys.exit(main())
