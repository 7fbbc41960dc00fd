"""The arrays of a model's state: names, element types and sizes. Imports NumPy, the options and the formats.

The names are those of the library's state dicts: `param`; `exp_avg`, `exp_avg_sq` and, with AMSGrad, `max_exp_avg_sq`,
each followed by its scales if it is in 8 bits, such as `exp_avg_scale`; `ema`, the average of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_adam.numerics.eight_bit import EightBit, blocks_of
from numba_adam.numerics.formats import Format
from numba_adam.numerics.staging import StagingLayout, staging_layout
from numba_adam.server.model.options import NO_OPTIONS
from numba_adam.settings.options import Options
from numba_adam.settings.step_arrays import StepArrays

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
SCALE = "_scale"
_DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.uint16), "8bit": np.dtype(np.uint8)}  # of the bits

FlatArray = npt.NDArray[Any]


class Column(NamedTuple):
    """A flat array of all tensors' elements, or of the scales of their blocks."""

    name: str
    """Its name."""

    dtype: np.dtype[Any]
    """Its element type; that of bfloat16 is uint16, its bits."""

    sizes: tuple[int, ...]
    """Number of elements of each tensor."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(self.sizes) * self.dtype.itemsize


def is_plain(options: Options) -> bool:
    """Return whether the state has nothing but moments in the parameters' dtype."""
    return options.state_dtype is None and options.ema_decay is None


def columns_of(
    sizes: Sequence[int], dtype: np.dtype[Any], amsgrad: bool, options: Options = NO_OPTIONS
) -> list[Column]:
    """Return the arrays of a model's state, in their order in memory and in files.

    Args:
        sizes: number of elements of each tensor.
        dtype: that of the parameters.
        amsgrad: whether there are largest second moments.
        options: the formats.
    """
    own, elements = Format.named(dtype.name), tuple(sizes)
    state = options.state_format(own)
    columns = [Column("param", dtype, elements)]
    for name in MOMENTS[: 3 if amsgrad else 2]:
        columns.append(Column(name, _DTYPES[state] if state in _DTYPES else _little(state), elements))
        if state == "8bit":
            columns.append(Column(name + SCALE, _little("float32"), tuple(map(blocks_of, elements))))
    if options.ema_decay is not None:
        columns.append(Column("ema", _little(options.computed_in(own)), elements))
    return columns


def staging_of_columns(columns: Sequence[Column]) -> StagingLayout:
    """Return the layout of the staging of a block of these arrays."""
    formats = {column.name: _format(column.dtype) for column in columns}
    return staging_layout([formats.get(name) for name in ("param", *MOMENTS, "ema", "")])


def by_tensor(columns: Sequence[Column], flats: Mapping[str, FlatArray]) -> StepArrays:
    """Return the arrays of each tensor, as views of flat arrays."""
    cut = {column.name: _cut(flats[column.name], column.sizes) for column in columns}
    nothing: list[Any] = [None] * len(columns[0].sizes)

    def moments(name: str) -> list[Any]:
        if name + SCALE not in cut:
            return cut.get(name, nothing)
        return [EightBit(codes, scales) for codes, scales in zip(cut[name], cut[name + SCALE], strict=True)]

    first, second, largest = map(moments, MOMENTS)
    return StepArrays(cut["param"], first, second, largest, cut.get("ema", nothing), nothing)


def _cut(flat: FlatArray, sizes: Sequence[int]) -> list[FlatArray]:
    return [flat[begin:end] for begin, end in pairwise(accumulate(sizes, initial=0))]


def _format(dtype: np.dtype[Any]) -> Format:
    kinds = {"float32": Format.FLOAT32, "float64": Format.FLOAT64, "uint16": Format.BFLOAT16, "uint8": Format.EIGHT_BIT}
    return kinds[dtype.name]


def _little(name: str) -> np.dtype[Any]:
    """Return a float dtype, little-endian as in files; NumPy's own object, by which kernels know plain arrays."""
    return np.dtype(np.dtype(name).newbyteorder("<").str)
