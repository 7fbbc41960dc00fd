"""Master weights, moving averages and low-precision copies: made, loaded and moved, in this host's memory.

They are made with the optimizer, from the parameters as they are then. May import NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numba_adam.cpu.conversion import convert
from numba_adam.cpu.moments import converted
from numba_adam.numerics.array import Array
from numba_adam.settings.options import Options
from numba_adam.settings.step_arrays import Copies, array_format


def make_copies(params: Sequence[Array], options: Options) -> Copies:
    """Return the copies that the options ask for, made from the parameters as they are."""
    formats = [array_format(param) for param in params]
    copies = Copies(list(params), *([None] * len(params) for _ in range(3)))
    copies.masters = [
        converted(param, "float32") if options.has_master(format_) else None
        for param, format_ in zip(params, formats, strict=True)
    ]
    if options.ema_decay is not None:
        pairs = zip(params, formats, strict=True)
        copies.emas = [converted(param, options.computed_in(format_)) for param, format_ in pairs]
    if options.low_precision_copy is not None:
        copies.low_precision = [converted(param, options.low_precision_copy) for param in params]
    return copies


def adopt_copies(own: Copies, given: Copies) -> None:
    """Use another's arrays in place of one's own where they fit, and copy their values where they do not."""
    for mine, theirs in (
        (own.masters, given.masters),
        (own.emas, given.emas),
        (own.low_precision, given.low_precision),
    ):
        for position, (array, other) in enumerate(zip(list(mine), theirs, strict=True)):
            if array is None or other is None:
                continue
            if other.flags.behaved and (other.dtype, other.strides) == (array.dtype, array.strides):
                mine[position] = other
            else:  # read-only, for instance, as pickle's buffers may be
                np.copyto(array, other)


def load_copies(copies: Copies, states: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Take over "master_param" and "ema" of state dicts; what a state dict lacks is made again from its parameter.

    Averages and low-precision copies stay the same arrays, since a model may compute with them. Master weights are new
    arrays, as the moments are.
    """
    fresh = make_copies(copies.params, options)
    for name, arrays in (("master_param", fresh.masters), ("ema", fresh.emas)):
        for array, state in zip(arrays, states, strict=True):
            if array is not None and name in state:
                convert(state[name], array)
    copies.masters = fresh.masters
    for own, new in ((copies.emas, fresh.emas), (copies.low_precision, fresh.low_precision)):
        for array, values in zip(own, new, strict=True):
            if array is not None and values is not None:
                np.copyto(array, values)


def rebind_copies(copies: Copies, params: Sequence[Array]) -> None:
    """Use the same parameters in other memory; see `renewed_master`."""
    for master, param in zip(copies.masters, params, strict=True):
        if master is not None:
            np.copyto(master, renewed_master(master, param))
    copies.params = list(params)


def renewed_master(master: Array, param: Array) -> Array:
    """Return the master weights of a parameter that may have been written to.

    An element keeps its master weight where that rounds to the parameter's element; elsewhere it has the parameter's.
    """
    rounded, renewed = converted(master, array_format(param).label), converted(param, "float32")
    np.copyto(renewed, master, where=rounded.view(np.uint16) == param.view(np.uint16))
    return renewed
