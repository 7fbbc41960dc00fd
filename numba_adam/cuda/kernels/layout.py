"""What a kernel is compiled for, and what it works on, by name. Imports no CUDA package."""

from __future__ import annotations

from typing import Any, NamedTuple

from numba_adam.numerics.formats import Format

CHUNK = 16_384  # elements of an array that a thread block takes at a time
CONSTANTS = 16  # numbers in a row of constants, as many as Constants has
EIGHT_BIT = Format.EIGHT_BIT.label


class Layout(NamedTuple):
    """What a kernel is compiled for: the format of each column, "" where there is none, and how it rounds."""

    param: str = "float32"
    grad: str = "float32"
    exp_avg: str = "float32"
    exp_avg_sq: str = "float32"
    max_exp_avg_sq: str = ""
    ema: str = ""
    copy: str = ""  # a narrower copy of the new parameters
    zero_grad: bool = False
    contract: bool = False  # let the compiler fuse multiplications with additions: other bits, hardly faster

    @property
    def real(self) -> str:
        """The compute dtype."""
        return "float64" if "float64" in (self.param, self.exp_avg, self.exp_avg_sq) else "float32"


class Addresses(NamedTuple):
    """The addresses of an array's columns, 0 without a column."""

    param: Any
    grad: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any
    ema: Any
    copy: Any
    exp_avg_scale: Any  # float32, one for each block of an 8-bit moment
    exp_avg_sq_scale: Any
    max_exp_avg_sq_scale: Any


COLUMNS = len(Addresses._fields)


class Lanes(NamedTuple):
    """A group's columns in registers: numbers, or the codes of a narrow format."""

    param: Any
    grad: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any
    ema: Any
    copy: Any


class Keys(NamedTuple):
    """The keys of an array's random numbers in one step, uint32, see `random_numbers.stream_key`."""

    param: Any
    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any
    dither: Any  # of 8-bit moments: the dither of element 0
    max_dither: Any  # likewise, of max_exp_avg_sq


KEYS = len(Keys._fields)
KEYS_BYTES = 4 * KEYS
