"""The one parallel kernel: its threads call a kernel that is compiled already. Imports Numba and llvmlite.

A kernel whose `prange` holds an update compiles the update once more. Here each update is compiled once, and called
by its address, for one thread as for many.
"""

from __future__ import annotations

from typing import Any

from numba import prange, types
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import inlined, parallel_kernel


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


@parallel_kernel
def run_tasks(address, packed, like, extra, count, tasks):  # type: ignore[no-untyped-def]
    """Call a kernel once for each share of its work, on all threads, and once more when all shares are done.

    Args:
        address: uint64: of the compiled kernel's machine code.
        packed: (n, 2) uint64, passed on.
        like: two-dimensional, in words of 64 bits whatever its dtype, passed on.
        extra: one-dimensional, likewise.
        count: passed on.
        tasks: number of shares.
    """
    for task in prange(tasks):
        _call(address, packed, like, extra, count, task, tasks)
    _call(address, packed, like, extra, count, tasks, tasks)
