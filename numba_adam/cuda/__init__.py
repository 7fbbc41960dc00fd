"""The GPU backend: the update of arrays in the memory of an NVIDIA GPU.

The kernels are compiled from the same element mathematics and codecs as the CPU's.

    cache        the on-disk cache of machine code
    seam         chooses a CUDA package, numba-cuda, numba-cuda-mlir or Numba's own numba.cuda, and compiles with it
    mlir         an extension of numba-cuda-mlir
    arrays       borrow_cuda: an array's address on its GPU, without a copy and without waiting
    dlpack       reads DLPack capsules, for arrays without __cuda_array_interface__
    streams      the caller's current stream
    memory       allocations on a GPU, and copies to and from them
    columns      the arrays of a step, validated
    batches      arrays grouped by layout, and their launches
    squares      the sum of squares of all gradients
    accumulator  sums of gradients
    table        CudaTable: arrays that are updated together, in one launch
    outcomes     results of steps that the GPU decides
    copies       master weights, moving averages and low-precision copies
    part         CudaPart: an optimizer's parameters on one GPU, with their state; fulfils settings/contract.py
    kernels/     the kernels

Importing this package imports neither Numba nor a framework. Nothing here has run on a GPU yet: tests/cuda/ runs the
kernels in the simulator and reads their PTX.
"""

from numba_adam.cuda.arrays import CudaArray, borrow_cuda, is_on_cuda
from numba_adam.errors import CudaUnavailableError

__all__ = ["CudaArray", "CudaUnavailableError", "borrow_cuda", "is_on_cuda"]
