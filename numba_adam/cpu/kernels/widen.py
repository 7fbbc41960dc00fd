"""An array of float16 numbers as float32: NumPy's own conversion takes ten times as long. Imports Numba."""

from __future__ import annotations

from numba_adam.cpu.kernels.compile import inlined, kernel
from numba_adam.cpu.kernels.formats import bits_of, from_bits
from numba_adam.numerics import codecs
from numba_adam.numerics.bind import bind

_widen_float16 = inlined(bind(codecs.widen_float16, bits_of=bits_of, from_bits=from_bits))


@kernel
def widen_float16(codes, words):  # type: ignore[no-untyped-def]
    """Write the bits of float32 numbers that are equal to float16 numbers.

    Args:
        codes: the bits of the float16 numbers, uint16.
        words: uint32, as many.
    """
    for i in range(codes.size):
        words[i] = bits_of(_widen_float16(codes[i]))
