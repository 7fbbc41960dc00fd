"""The update on NVIDIA GPUs, from the same element mathematics and codecs as on the CPU.

    cache        machine code kept between processes
    seam         the one choice of a CUDA package: numba-cuda, numba-cuda-mlir, or the numba.cuda that Numba brings
    mlir         what numba-cuda-mlir has to be told
    arrays       borrow_cuda: where an array lies on which GPU, without a copy and without waiting
    dlpack       what a DLPack capsule says, for arrays without __cuda_array_interface__
    streams      the stream that the caller works on
    memory       memory of our own on a GPU
    columns      a table's arrays, checked
    batches      arrays by what their kernels are compiled for, and the launches
    squares      the sum of squares of a table's gradients
    accumulator  sums of gradients, and how they are added to
    table        CudaTable: arrays that are updated together, in one launch
    outcomes     results of steps that the GPU decides
    copies       master weights, moving averages and low-precision copies
    part         CudaPart: an optimizer's parameters on one GPU, with their state; fulfils settings/contract.py
    kernels/     what is compiled

Importing this package imports neither Numba nor a framework. Nothing here has run on a GPU yet: the kernels are proven
in the simulator and read as PTX (tests/cuda/).
"""

from numba_adam.cuda.arrays import CudaArray, borrow_cuda, is_on_cuda
from numba_adam.errors import CudaUnavailableError

__all__ = ["CudaArray", "CudaUnavailableError", "borrow_cuda", "is_on_cuda"]
