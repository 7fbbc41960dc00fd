"""The update of bfloat16 arrays, two elements at a time: a word of 32 bits contains two. Imports Numba.

Each lane of a vector register is such a word. A shift and a mask make float32 of its halves, and likewise back, so
nothing is shuffled between lanes.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, inlined
from numba_adam.cpu.kernels.element import adapt, bare_constants, moments
from numba_adam.cpu.kernels.formats import (
    lower_bfloat16,
    pair_of_bfloat16,
    pair_of_bfloat16_stochastic,
    rounding_word,
    upper_bfloat16,
)
from numba_adam.cpu.kernels.vector_width import vectors_of

_choose_width = vectors_of("bfloat16")


@inlined
def _pair(lower, upper, key, index):  # type: ignore[no-untyped-def]
    """Return a word of two bfloat16: the nearest ones without a key."""
    if key is None:
        return pair_of_bfloat16(lower, upper)
    return pair_of_bfloat16_stochastic(lower, upper, rounding_word(key, index))


@inline
def adam_pairs(param, grad, exp_avg, exp_avg_sq, keys, first, constants):  # type: ignore[no-untyped-def]
    """Update one array, given as words of two elements, in a step that `is_bare`.

    Args:
        param: the parameters.
        grad: the gradients.
        exp_avg: the first moments.
        exp_avg_sq: the second moments.
        keys: of the random numbers that round param, exp_avg and exp_avg_sq; three times None to round to nearest.
        first: uint32: the index of the first word in its array.
        constants: those of the step.
    """
    _choose_width()
    c = bare_constants(constants)
    for i in range(np.uint64(param.size)):
        p, g, m, v = param[i], grad[i], exp_avg[i], exp_avg_sq[i]
        m0, v0 = moments(lower_bfloat16(p), lower_bfloat16(g), lower_bfloat16(m), lower_bfloat16(v), c)
        m1, v1 = moments(upper_bfloat16(p), upper_bfloat16(g), upper_bfloat16(m), upper_bfloat16(v), c)
        p0, p1 = adapt(lower_bfloat16(p), m0, v0, c), adapt(upper_bfloat16(p), m1, v1, c)
        index = np.uint32(first + np.uint32(i))
        exp_avg[i], exp_avg_sq[i] = _pair(m0, m1, keys[1], index), _pair(v0, v1, keys[2], index)
        param[i] = _pair(p0, p1, keys[0], index)
