"""The update of bfloat16 arrays, two elements at a time: a word of 32 bits contains two. Imports Numba.

Each lane of a vector register is such a word. A shift and a mask make float32 of its halves, and likewise back, so
nothing is shuffled between lanes.
"""

from __future__ import annotations

import numpy as np

from numba_adam.cpu.kernels.compile import inline, inlined, noalias_called
from numba_adam.cpu.kernels.element import NO_DECAY, adapt, bare_constants, bare_with, moments
from numba_adam.cpu.kernels.formats import (
    lower_bfloat16,
    pair_of_bfloat16,
    pair_of_bfloat16_stochastic,
    rounding_word,
    upper_bfloat16,
)
from numba_adam.cpu.kernels.intrinsics import nonzero, stay_called
from numba_adam.cpu.kernels.vector_width import vectors_of

_choose_width = vectors_of("bfloat16")


@inlined
def _bare(c, decay):  # type: ignore[no-untyped-def]
    """Return the constants of a step that `is_bare`, with a decay, which is not zero; None: without one."""
    if decay is None:
        return bare_with(c, NO_DECAY, c.eps, c.exp_avg_floor, c.exp_avg_sq_floor, c.least_exp_avg_sq)
    return bare_with(c, nonzero(decay), c.eps, c.exp_avg_floor, c.exp_avg_sq_floor, c.least_exp_avg_sq)


@inlined
def adam_pairs(param, grad, exp_avg, exp_avg_sq, constants):  # type: ignore[no-untyped-def]
    """Update one array, given as words of two elements, in a step that `is_bare`."""
    if constants.decoupled_decay == constants.zero:
        _update_pairs(param, grad, exp_avg, exp_avg_sq, None, constants)
    else:
        _update_pairs(param, grad, exp_avg, exp_avg_sq, constants.decoupled_decay, constants)


@noalias_called
def _update_pairs(param, grad, exp_avg, exp_avg_sq, decay, constants):  # type: ignore[no-untyped-def]
    """The same with a decay, which is not zero; None: without one."""
    stay_called()
    _choose_width()
    c = _bare(constants, decay)
    for i in range(param.size):
        p, g, m, v = param[i], grad[i], exp_avg[i], exp_avg_sq[i]
        m0, v0 = moments(lower_bfloat16(p), lower_bfloat16(g), lower_bfloat16(m), lower_bfloat16(v), c)
        m1, v1 = moments(upper_bfloat16(p), upper_bfloat16(g), upper_bfloat16(m), upper_bfloat16(v), c)
        exp_avg[i], exp_avg_sq[i] = pair_of_bfloat16(m0, m1), pair_of_bfloat16(v0, v1)
        param[i] = pair_of_bfloat16(adapt(lower_bfloat16(p), m0, v0, c), adapt(upper_bfloat16(p), m1, v1, c))


@inline
def adam_pairs_stochastic(param, grad, exp_avg, exp_avg_sq, keys, first, constants):  # type: ignore[no-untyped-def]
    """Update one array like `adam_pairs`, rounded stochastically.

    Args:
        param: the parameters.
        grad: the gradients.
        exp_avg: the first moments.
        exp_avg_sq: the second moments.
        keys: of the random numbers that round param, exp_avg and exp_avg_sq.
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
        exp_avg[i] = pair_of_bfloat16_stochastic(m0, m1, rounding_word(keys[1], index))
        exp_avg_sq[i] = pair_of_bfloat16_stochastic(v0, v1, rounding_word(keys[2], index))
        param[i] = pair_of_bfloat16_stochastic(p0, p1, rounding_word(keys[0], index))
