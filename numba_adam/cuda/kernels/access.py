"""Loads and stores at an address (int64) in a GPU's memory: of one element, and of all of a thread's lanes.

Numba has no vector types, so the 16-byte accesses are written in the language of each package's code generator: LLVM
IR in `access_llvm`, MLIR in `access_mlir`. In the simulator, `access_simulated` reads and writes this process's memory.
"""

from __future__ import annotations

import functools

from numba_adam.cuda import seam

if seam.SIMULATED:
    from numba_adam.cuda.kernels.access_simulated import lanes_of as _lanes_of
    from numba_adam.cuda.kernels.access_simulated import scalar
elif seam.TAKES_MLIR:
    from numba_adam.cuda.kernels.access_mlir import lanes_of as _lanes_of
    from numba_adam.cuda.kernels.access_mlir import scalar
else:
    from numba_adam.cuda.kernels.access_llvm import lanes_of as _lanes_of
    from numba_adam.cuda.kernels.access_llvm import scalar

__all__ = ["lanes_of", "scalar"]

lanes_of = functools.cache(_lanes_of)
