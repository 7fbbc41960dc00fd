"""The update of bfloat16 arrays, two elements at a time: a word of 32 bits holds them. Imports Numba.

A lane of a vector register is such a word: its halves become float32 by a shift and by a mask, and go back likewise, so
that nothing is shuffled between lanes.
"""

from __future__ import annotations

import numpy as np

from numba_adam.folding import Constants
from numba_adam.kernels.compile import inline, inlined
from numba_adam.kernels.element import adapt, moments
from numba_adam.kernels.formats import lower_bfloat16, pair_of_bfloat16, upper_bfloat16


@inline
def adam_pairs(param, grad, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array, given as words of two elements.

    What the constants rule out is said in the program, not in the data: a compiler takes branches on it out of a loop
    of one element, but not of one of two.
    """
    if c.clip_value != c.zero or c.weight_decay != c.zero:
        _adam_pairs(param, grad, exp_avg, exp_avg_sq, c)
    elif c.decoupled_decay != c.zero:
        _adam_pairs(param, grad, exp_avg, exp_avg_sq, _bare(c, c.decoupled_decay))
    else:
        _adam_pairs(param, grad, exp_avg, exp_avg_sq, _bare(c, np.float32(0)))


@inlined
def _bare(c, decoupled_decay):  # type: ignore[no-untyped-def]
    """Return the constants of a step without clipping and L2 decay."""
    zero = np.float32(0)
    return Constants(
        c.beta1,
        c.one_minus_beta1,
        c.beta2,
        c.one_minus_beta2,
        c.grad_scale,
        zero,
        zero,
        decoupled_decay,
        c.step_size,
        c.eps,
        c.exp_avg_floor,
        c.exp_avg_sq_floor,
        c.ema_decay,
        c.one_minus_ema_decay,
        zero,
    )


@inlined
def _adam_pairs(param, grad, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    for i in range(param.size):
        p, g, m, v = param[i], grad[i], exp_avg[i], exp_avg_sq[i]
        m0, v0 = moments(lower_bfloat16(p), lower_bfloat16(g), lower_bfloat16(m), lower_bfloat16(v), c)
        m1, v1 = moments(upper_bfloat16(p), upper_bfloat16(g), upper_bfloat16(m), upper_bfloat16(v), c)
        exp_avg[i], exp_avg_sq[i] = pair_of_bfloat16(m0, m1), pair_of_bfloat16(v0, v1)
        param[i] = pair_of_bfloat16(adapt(lower_bfloat16(p), m0, v0, c), adapt(upper_bfloat16(p), m1, v1, c))
