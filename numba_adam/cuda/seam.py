"""The one place that chooses a CUDA package, and compiles with it.

Three generations of packages offer the same decorators and intrinsics. The first of these that is installed is used:

    numba-cuda        NVIDIA's; once installed, it replaces numba.cuda by itself
    numba-cuda-mlir   the successor of both. Version 0.6.0 cannot make a named tuple in a kernel: `mlir` adds that. It
                      compiles min and max of unsigned integers as if they were signed: kernels get our own functions.
                      Every process compiles its kernels again
    numba.cuda        part of Numba, deprecated. From Numba 0.66.0 on it cannot compile min and max of two numbers
                      (numba issue 10753): kernels get our own functions here too

Kernels import from here everything that differs between the packages, and between them and the simulator. That runs
kernels in Python (NUMBA_ENABLE_CUDASIM=1), without libdevice and LLVM; plain operators do, because Python never fuses.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Callable
from importlib import import_module, util
from types import ModuleType, SimpleNamespace
from typing import Any, ParamSpec, cast

import numpy as np

from numba_adam.cuda import cache
from numba_adam.errors import CudaUnavailableError
from numba_adam.installing import CUDA_PACKAGE
from numba_adam.numerics import operations
from numba_adam.numerics.bind import bind

_Arguments = ParamSpec("_Arguments")


def _choose() -> tuple[str, ModuleType]:
    """Return the name of the installed package, and its module `cuda`."""
    if util.find_spec("numba_cuda") is not None:
        name, module = "numba-cuda", "numba.cuda"
    elif util.find_spec("numba_cuda_mlir") is not None and not SIMULATED:  # it has no simulator; Numba has one
        name, module = "numba-cuda-mlir", "numba_cuda_mlir.cuda"
    else:
        name, module = "numba.cuda", "numba.cuda"
    try:
        return name, import_module(module)
    except ImportError as error:
        raise CudaUnavailableError(
            f"expected a CUDA package, got {name}, which cannot be imported: {error}. Install one: {CUDA_PACKAGE}"
        ) from error


SIMULATED = bool(import_module("numba.core.config").ENABLE_CUDASIM)
PACKAGE, cuda = _choose()
TAKES_MLIR = PACKAGE == "numba-cuda-mlir"  # intrinsics generate MLIR; for the other packages LLVM IR
_mlir: Any = import_module("numba_adam.cuda.mlir") if TAKES_MLIR else None
_WHOLE_WARP = -1  # a mask of 32 threads
THREADS = 16 if SIMULATED else 256  # of a thread block; the simulator runs each as a thread of this process


def _extending() -> tuple[Any, Any]:
    """Return Numba's types and its decorator for intrinsics; None in the simulator, which has neither."""
    if SIMULATED:
        return None, None
    if TAKES_MLIR:
        return _mlir.types, _mlir.intrinsic
    return import_module("numba").types, import_module("numba.cuda.extending").intrinsic


types, intrinsic = _extending()


def require_gpu() -> None:
    """Refuse to continue without a GPU.

    Raises:
        CudaUnavailableError: there is no GPU, or its driver does not respond.
    """
    if not cuda.is_available():
        raise CudaUnavailableError(
            f"expected a GPU with its driver, got none: {PACKAGE} finds no GPU. For a CUDA package: {CUDA_PACKAGE}"
        )


def device(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call. It is inlined into them, so it is compiled with them for their GPU."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(_understood(function))


def _understood(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that the package's compiler can compile."""
    if PACKAGE == "numba-cuda":
        return function
    if TAKES_MLIR:
        _mlir.register_named_tuples(function)
    return bind(function, min=_smaller, max=_larger)


def kernel(function: Callable[..., Any], *identity: object) -> Any:
    """Compile an entry point at its first launch, or load it from the cache; `configured` makes it ready for a launch.

    Args:
        function: the entry point.
        identity: its name, then all that it is compiled for. An earlier process' machine code is loaded where the
            identity is equal, so it must tell apart any two kernels that differ. `kernel_builder` sees to that.
    """
    if SIMULATED:
        return cuda.jit(function)
    made = cuda.jit(_understood(function))
    dispatchers = "numba_cuda_mlir.descriptor" if TAKES_MLIR else "numba.cuda.dispatcher"
    cache.keep(made, import_module(dispatchers), *identity)
    return made


def kernel_builder(name: str) -> Callable[[Callable[_Arguments, Any]], Callable[_Arguments, Any]]:
    """Make kernels of a function that returns an entry point: one for each combination of its arguments.

    The entry point is a closure. All that it captures comes from the function's arguments and from our sources, so
    `name` and the arguments identify the kernel in the cache. They must have a `repr` that is equal in every process.
    """

    def decorate(build: Callable[_Arguments, Any]) -> Callable[_Arguments, Any]:
        @functools.cache
        @functools.wraps(build)
        def made(*arguments: Any) -> Any:
            return kernel(build(*arguments), name, *arguments)  # type: ignore[call-arg]

        return cast("Callable[_Arguments, Any]", made)

    return decorate


def configured(kernel: Any, blocks: int, threads: int, stream: Any) -> Any:
    """Return a kernel configured for a launch: thread blocks, threads in each, and the stream."""
    return kernel[blocks, threads] if SIMULATED else _configured(kernel, blocks, threads, stream)


@functools.lru_cache(maxsize=1024)
def _configured(kernel: Any, blocks: int, threads: int, stream: Any) -> Any:
    with warnings.catch_warnings():
        # A small array's grid is small on purpose.
        warnings.filterwarnings("ignore", message=r"Grid size \d+ will likely result in GPU under-utilization")
        return kernel[blocks, threads, stream]


SEGMENT = 16  # neighbouring threads that exchange their largest numbers; half a warp

if SIMULATED:
    product = product64 = operations.product
    bits_of, from_bits = operations.bits_of, operations.from_bits
    arithmetic: ModuleType = np
    # The simulator replaces `cuda` while a kernel runs, in that kernel's module alone. Functions of others use this.
    within: Any = SimpleNamespace(local=SimpleNamespace(array=np.zeros))
    _passed: dict[int, Any] = {}

    def largest_of_segment(bits: Any) -> Any:
        """Return the largest of the numbers that a segment's threads pass. The simulator has a barrier, no shuffles."""
        thread: Any = threading.current_thread()
        number = thread.thread_id
        _passed[number] = bits
        thread.syncthreads()
        first = number - number % SEGMENT
        largest = max(_passed[other] for other in range(first, first + SEGMENT))
        thread.syncthreads()  # no thread passes its next number before all have read this one
        return largest

else:
    if PACKAGE != "numba-cuda":

        @cuda.jit(device=True, inline="always")  # type: ignore[untyped-decorator, unused-ignore]
        def _smaller(a, b):  # type: ignore[no-untyped-def]
            """Return the smaller of two integers."""
            return b if b < a else a

        @cuda.jit(device=True, inline="always")  # type: ignore[untyped-decorator, unused-ignore]
        def _larger(a, b):  # type: ignore[no-untyped-def]
            """Return the larger of two integers."""
            return b if b > a else a

    arithmetic = math  # CUDA has math's square root, rounded as IEEE 754 requires, and not NumPy's
    within = cuda

    @device
    def largest_of_segment(bits):  # type: ignore[no-untyped-def]
        """Return the largest of the uint32 that a segment's threads pass; all threads of the warp must call this."""
        bits = max(bits, np.uint32(cuda.shfl_xor_sync(_WHOLE_WARP, np.int32(bits), 8)))
        bits = max(bits, np.uint32(cuda.shfl_xor_sync(_WHOLE_WARP, np.int32(bits), 4)))
        bits = max(bits, np.uint32(cuda.shfl_xor_sync(_WHOLE_WARP, np.int32(bits), 2)))
        return max(bits, np.uint32(cuda.shfl_xor_sync(_WHOLE_WARP, np.int32(bits), 1)))

    @device
    def product(a, b):  # type: ignore[no-untyped-def]
        """Return a * b, float32, never fused with an addition."""
        return cuda.libdevice.fmul_rn(a, b)

    @device
    def product64(a, b):  # type: ignore[no-untyped-def]
        """Return a * b, float64, never fused with an addition."""
        return cuda.libdevice.dmul_rn(a, b)

    @device
    def bits_of(value):  # type: ignore[no-untyped-def]
        """Return a float32's bits."""
        return np.uint32(cuda.libdevice.float_as_int(value))

    @device
    def from_bits(bits):  # type: ignore[no-untyped-def]
        """Return the float32 with these bits."""
        return cuda.libdevice.int_as_float(np.int32(bits))


def compile_ptx(function: Any, arguments: tuple[str, ...], capability: tuple[int, int]) -> str:
    """Return the PTX of a kernel; needs no GPU.

    Args:
        function: a kernel, from `kernel` or a kernel builder.
        arguments: its arguments' types by name: "int64", or "7 int64" for a tuple.
        capability: compute capability, (9, 0) for instance.
    """
    signature = types.void(*map(type_of, arguments))
    ptx, _ = cuda.compile_ptx(function.py_func, signature, cc=capability)
    return str(ptx)


def type_of(argument: str) -> Any:
    """Return Numba's type for "int64", or "7 int64"."""
    count, _, name = argument.rpartition(" ")
    return types.UniTuple(getattr(types, name), int(count)) if count else getattr(types, name)


def current_device() -> int:
    """Return the number of the GPU that this thread uses by default."""
    return 0 if SIMULATED else int(cuda.get_current_device().id)
