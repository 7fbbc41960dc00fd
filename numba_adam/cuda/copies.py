"""Makes, loads and moves master weights, moving averages and low-precision copies on a GPU.

The functions of a `HostState` compute their values in host memory; then they are uploaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numba_adam.cuda.arrays import CudaArray
from numba_adam.cuda.memory import download, upload, uploaded
from numba_adam.settings.contract import HostState
from numba_adam.settings.options import Options
from numba_adam.settings.step_arrays import Copies


def make_copies(params: Sequence[CudaArray], options: Options, host: HostState) -> Copies:
    """Return the copies that the options request, made from the current parameters."""
    if not (options.master_weights or options.ema_decay is not None or options.low_precision_copy is not None):
        return Copies(list(params), *([None] * len(params) for _ in range(3)))
    made = host.make_copies([download(param) for param in params], options)
    columns = (made.masters, made.emas, made.low_precision)
    return Copies(list(params), *(uploaded_beside(column, params) for column in columns))


def load_copies(copies: Copies, states: Sequence[Mapping[str, Any]], options: Options, host: HostState) -> None:
    """Load copies from state dicts, or from the parameters if missing. The arrays stay the same objects."""
    if not any(array is not None for arrays in _columns(copies) for array in arrays):
        return
    loaded = host.make_copies([download(param) for param in copies.params], options)
    host.load_copies(loaded, states, options)
    for own, new in zip(_columns(copies), _columns(loaded), strict=True):
        for array, values in zip(own, new, strict=True):
            if array is not None:
                upload(array, values)


def rebind_copies(copies: Copies, params: Sequence[CudaArray], host: HostState) -> None:
    """Use replaced parameter storage. An element keeps its master weight if that still rounds to it."""
    copies.masters = [
        None if master is None else uploaded(host.renewed_master(download(master), download(param)), param)
        for master, param in zip(copies.masters, params, strict=True)
    ]
    copies.params = list(params)


def note_stream(copies: Copies, stream: int) -> None:
    """Note that a stream writes the arrays, so that borrowers wait for it."""
    for arrays in _columns(copies):
        arrays[:] = [None if array is None else replace(array, stream=stream) for array in arrays]


def uploaded_beside(arrays: Iterable[Any], params: Sequence[CudaArray]) -> list[Any]:
    """Return a copy of each array or moment, on its parameter's GPU; None stays None."""
    pairs = zip(arrays, params, strict=True)
    return [None if array is None else uploaded(array, param) for array, param in pairs]


def _columns(copies: Copies) -> tuple[list[Any], list[Any], list[Any]]:
    return copies.masters, copies.emas, copies.low_precision
