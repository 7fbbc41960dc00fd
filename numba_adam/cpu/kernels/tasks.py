"""The one parallel kernel: its threads call a kernel that is compiled already. Imports Numba and llvmlite.

A kernel whose `prange` holds an update compiles the update once more. Here each update is compiled once, and called
by its address, for one thread as for many.

Where another program uses one of the cores, the thread on that core is slow. So a large launch has more shares than
threads. Each thread has its own range of shares, the same in every step, and takes them one by one; a thread that has
none left takes shares of the others. What a share computes does not depend on the thread.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from numba_adam.cpu.kernels.compile import inlined, parallel_kernel

COUNTER_PITCH = 16  # words from one thread's counter to the next: two cache lines, which a CPU may fetch together


@inlined
def is_last(task, tasks):  # type: ignore[no-untyped-def]
    """Say whether this call of a kernel ends the launch: the call after all shares, or that for the only share."""
    return task == tasks or tasks == 1


@intrinsic
def _call(typingctx: Any, address: Any, packed: Any, like: Any, extra: Any, count: Any, task: Any, tasks: Any) -> Any:
    """Call the compiled kernel at an address with the other arguments."""
    own = packed, like, extra, count, types.int64, types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        type_ = context.call_conv.get_function_type(types.none, own)
        function = builder.inttoptr(args[0], type_.as_pointer())
        status, _ = context.call_conv.call_function(builder, function, types.none, own, args[1:])
        with builder.if_then(status.is_error, likely=False):
            context.call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.none(types.uint64, *own), codegen


@intrinsic
def _take(typingctx: Any, counters: Any, index: Any) -> Any:
    """Increment one of the counters (int64), and return what it was; each number is returned to one thread only."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(counters)(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counters, types.int64), codegen


@parallel_kernel
def run_tasks(address, packed, like, extra, count, tasks, counters):  # type: ignore[no-untyped-def]
    """Call a kernel once for each share of its work, on all threads, and once more when all shares are done.

    Args:
        address: uint64: of the compiled kernel's machine code.
        packed: (n, 2) uint64, passed on.
        like: two-dimensional, in words of 64 bits whatever its dtype, passed on.
        extra: one-dimensional, likewise.
        count: passed on.
        tasks: number of shares.
        counters: (threads * COUNTER_PITCH,) int64, overwritten.
    """
    threads = counters.size // COUNTER_PITCH
    own = (tasks + threads - 1) // threads  # shares of a thread
    for thread in range(threads):
        counters[thread * COUNTER_PITCH] = 0
    for thread in prange(threads):
        for turn in range(threads):
            owner = (thread + turn) % threads
            taken = _take(counters, owner * COUNTER_PITCH)
            while taken < min(own, tasks - owner * own):
                _call(address, packed, like, extra, count, owner * own + taken, tasks)
                taken = _take(counters, owner * COUNTER_PITCH)
    _call(address, packed, like, extra, count, tasks, tasks)
