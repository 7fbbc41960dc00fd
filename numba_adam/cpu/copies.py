"""What an optimizer keeps for its parameters beside their moments: master copies, averages, low-precision copies.

Made with the optimizer, from the parameters as they are then. May import NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from numba_adam.cpu.conversion import convert, format_number
from numba_adam.cpu.moments import converted
from numba_adam.numerics.array import Array
from numba_adam.numerics.formats import NAMES
from numba_adam.settings.options import Options


class Kept:
    """The arrays that are kept for some parameters, each in the parameters' order."""

    def __init__(self, params: Sequence[Array], options: Options) -> None:
        """Make them, from the parameters as they are."""
        count = len(params)
        self._params, self._options = list(params), options
        self.masters = [
            converted(param, "float32") if options.has_master(format_number(param)) else None for param in params
        ]
        """float32 copies of 16-bit parameters, from which these are rounded."""

        self.emas: list[Array | None] = [None] * count
        """Moving averages of the weights, in the dtype in which is computed."""

        if options.ema_decay is not None:
            self.emas = [converted(param, options.computed_in(format_number(param))) for param in params]
        self.own_copies: list[Array | None] = [None] * count
        if options.low_precision_copy is not None:
            self.own_copies = [converted(param, options.low_precision_copy) for param in params]

    @property
    def computed(self) -> list[Array]:
        """What the update works on: the master copy where there is one, else the parameter."""
        return [param if master is None else master for param, master in zip(self._params, self.masters, strict=True)]

    @property
    def copies(self) -> list[Array | None]:
        """What each step rounds the new parameters into: the parameter itself where it has a master copy."""
        pairs = zip(self._params, self.masters, self.own_copies, strict=True)
        return [copy if master is None else param for param, master, copy in pairs]

    def adopt(
        self, masters: Sequence[Array | None], emas: Sequence[Array | None], copies: Sequence[Array | None]
    ) -> None:
        """Use other arrays in place of these, where they fit, and their values where they do not."""
        for own, given in ((self.masters, masters), (self.emas, emas), (self.own_copies, copies)):
            for position, (mine, array) in enumerate(zip(list(own), given, strict=True)):
                if mine is None or array is None:
                    continue
                if array.flags.behaved and (array.dtype, array.strides) == (mine.dtype, mine.strides):
                    own[position] = array
                else:  # read-only, say, as pickle's buffers may be
                    np.copyto(mine, array)

    def beside(self, params: Sequence[Array]) -> Kept:
        """Return what is kept for the same parameters in other memory.

        A master copy stays as it is where it rounds to the parameter there; where it does not, the parameter was given
        another value, and the copy has it too.
        """
        other = copy(self)
        other._params = list(params)
        other.masters = [
            None if master is None else _overwritten(master, following(master, param))
            for master, param in zip(self.masters, params, strict=True)
        ]
        return other

    def state_of(self, position: int) -> dict[str, Array | None]:
        """Return what a state dict says of one parameter."""
        return {"master_param": self.masters[position], "ema": self.emas[position]}

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over what state dicts say; the averages and copies of a parameter that is not mentioned begin anew.

        The averages and copies stay the same arrays: a model may compute with them. Master copies are new ones, like
        the moments.
        """
        fresh = Kept(self._params, self._options)
        for name, arrays in (("master_param", fresh.masters), ("ema", fresh.emas)):
            for array, state in zip(arrays, states, strict=True):
                if array is not None and name in state:
                    convert(state[name], array)
        self.masters = fresh.masters
        for own, new in ((self.emas, fresh.emas), (self.own_copies, fresh.own_copies)):
            for array, values in zip(own, new, strict=True):
                if array is not None and values is not None:
                    np.copyto(array, values)


def _overwritten(array: Array, values: Array) -> Array:
    np.copyto(array, values)
    return array


def following(master: Array, param: Array) -> Array:
    """Return a master copy of a parameter, with what another copy holds wherever that rounds to the parameter."""
    image, following = converted(master, NAMES[format_number(param)]), converted(param, "float32")
    np.copyto(following, master, where=image.view(np.uint16) == param.view(np.uint16))
    return following
