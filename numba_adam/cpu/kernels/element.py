"""The element mathematics, compiled for the CPU, and its loops over arrays of one dtype. Imports Numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_adam.cpu.kernels.compile import inline, inlined, noalias
from numba_adam.cpu.kernels.formats import narrow_bfloat16
from numba_adam.cpu.kernels.lanes import LANES, choose, load, store
from numba_adam.cpu.kernels.prefetch import STRETCH, prefetch_stretch
from numba_adam.cpu.kernels.roots import estimated_root, exact_root
from numba_adam.numerics import element
from numba_adam.numerics.bind import bind
from numba_adam.numerics.constants import Constants, without_floors
from numba_adam.numerics.operations import product, root

_product = inline(product)
moments = inline(bind(element.moments, product=_product, choose=choose))
largest = inline(element.largest)
adapt = inline(bind(element.adapt, product=_product, root=inline(root)))
_adapt_by_exact = inlined(bind(element.adapt, product=_product, root=exact_root))
_adapt_by_estimated = inlined(bind(element.adapt, product=_product, root=estimated_root))
_average = inline(bind(element.average, product=_product))
floorless = inlined(without_floors)


@noalias
def adam(param, grad, exp_avg, exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        param[i] = adapt(param[i], exp_avg[i], exp_avg_sq[i], c)


@noalias
def amsgrad(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, c):  # type: ignore[no-untyped-def]
    """Update one array that keeps its largest second moment."""
    for i in range(param.size):
        exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
        max_exp_avg_sq[i] = largest(max_exp_avg_sq[i], exp_avg_sq[i])
        param[i] = adapt(param[i], exp_avg[i], max_exp_avg_sq[i], c)


@noalias
def average(ema, param, c):  # type: ignore[no-untyped-def]
    """Update the moving average of one array's weights."""
    for i in range(ema.size):
        ema[i] = _average(ema[i], param[i], c)


@inline
def clear(values):  # type: ignore[no-untyped-def]
    """Set an array's elements to zero."""
    for i in range(values.size):
        values[i] = 0


@inlined
def is_bare(c):  # type: ignore[no-untyped-def]
    """Say whether a step neither clips by value nor adds L2 decay, as most steps."""
    return c.clip_value == c.zero and c.weight_decay == c.zero


_GROUP = 4  # vectors of which one has estimated roots
NO_DECAY, NO_FLOOR = np.float32(0), np.float32(-np.inf)


@inlined
def bare_with(c, decoupled_decay, eps, exp_avg_floor, exp_avg_sq_floor, least_exp_avg_sq):  # type: ignore[no-untyped-def]
    """Return the constants of a step that `is_bare`, with another decay, another eps and other floors.

    A compiler moves a branch on a constant out of a loop only if the loop is short. A zero that is written here is a
    zero in the program, and removes the branch whatever the length of the loop.
    """
    zero: Any = np.float32(0)
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
        eps,
        exp_avg_floor,
        exp_avg_sq_floor,
        least_exp_avg_sq,
        c.ema_decay,
        c.one_minus_ema_decay,
        zero,
    )


@inlined
def bare_constants(c):  # type: ignore[no-untyped-def]
    """Return the constants of a step that `is_bare`, with zeros that the compiler sees."""
    return bare_with(c, c.decoupled_decay, c.eps, c.exp_avg_floor, c.exp_avg_sq_floor, c.least_exp_avg_sq)


@inlined
def _adam_one(param, grad, exp_avg, exp_avg_sq, ema, copy, i, c):  # type: ignore[no-untyped-def]
    """Update one element; `ema` and `copy` may be None."""
    exp_avg[i], exp_avg_sq[i] = moments(param[i], grad[i], exp_avg[i], exp_avg_sq[i], c)
    param[i] = adapt(param[i], exp_avg[i], exp_avg_sq[i], c)
    if ema is not None:
        ema[i] = _average(ema[i], param[i], c)
    if copy is not None:
        copy[i] = narrow_bfloat16(np.float32(param[i]))


@inlined
def _adam_vector(param, grad, exp_avg, exp_avg_sq, i, adapted, c):  # type: ignore[no-untyped-def]
    """Update the vector from element `i` on; `adapted`: one of the two functions above."""
    old = load(param, i)
    first, second = moments(old, load(grad, i), load(exp_avg, i), load(exp_avg_sq, i), c)
    store(exp_avg, i, first)
    store(exp_avg_sq, i, second)
    store(param, i, adapted(old, first, second, c))


@inlined
def _adam_in_lanes(param, grad, exp_avg, exp_avg_sq, begin, c):  # type: ignore[no-untyped-def]
    """Update whole groups of vectors from element `begin` on; return the first element that is left.

    One unit of Intel's CPUs computes roots and divisions, and others estimate roots. With one estimated root in _GROUP
    all are equally busy: CPU time 0.91 on that of `vector_width.MEASURED`, in the second cache; 0.96 with one in two.
    """
    for _ in range(np.int64(np.uint64(param.size) - begin) // (_GROUP * LANES)):
        _adam_vector(param, grad, exp_avg, exp_avg_sq, begin, _adapt_by_estimated, c)
        for _ in range(1, _GROUP):
            begin += np.uint64(LANES)
            _adam_vector(param, grad, exp_avg, exp_avg_sq, begin, _adapt_by_exact, c)
        begin += np.uint64(LANES)
    return begin


@inlined
def _adam_prefetched(param, grad, exp_avg, exp_avg_sq, ema, copy, end, c):  # type: ignore[no-untyped-def]
    """Update whole stretches up to element `end`, and prefetch what comes later; `ema` and `copy` may be None."""
    for begin in range(np.uint64(0), end, np.uint64(STRETCH)):
        prefetch_stretch(param, begin)
        prefetch_stretch(grad, begin)
        prefetch_stretch(exp_avg, begin)
        prefetch_stretch(exp_avg_sq, begin)
        if ema is not None:
            prefetch_stretch(ema, begin)
        for k in range(STRETCH):
            _adam_one(param, grad, exp_avg, exp_avg_sq, ema, copy, begin + np.uint64(k), c)


@noalias
def adam_bare(param, grad, exp_avg, exp_avg_sq, ema, copy, prefetched, lanes, constants):  # type: ignore[no-untyped-def]
    """Update one array in a step that `is_bare`, and its average and its copy in the same loop.

    Args:
        param: the parameters; all arrays but `copy` have one dtype.
        grad: the gradients.
        exp_avg: the first moments.
        exp_avg_sq: the second moments.
        ema: the moving average of the weights, or None, which costs nothing.
        copy: bfloat16: receives the new parameters; or None.
        prefetched: how many stretches, from the first on, prefetch what comes later; see `prefetched_of`.
        lanes: from `lanes_of`: the rest is updated in vectors, without average and copy; None: it is not.
        constants: those of the step.
    """
    c = bare_constants(constants)
    rest = np.uint64(prefetched * STRETCH)
    if lanes is None:
        _adam_prefetched(param, grad, exp_avg, exp_avg_sq, ema, copy, rest, c)
    elif c.decoupled_decay == c.zero:  # the function with vectors is so long that the branch would stay in both loops
        plain = bare_with(c, NO_DECAY, c.eps, c.exp_avg_floor, c.exp_avg_sq_floor, c.least_exp_avg_sq)
        _adam_prefetched(param, grad, exp_avg, exp_avg_sq, None, None, rest, plain)
        rest = _adam_in_lanes(param, grad, exp_avg, exp_avg_sq, rest, plain)
    else:
        _adam_prefetched(param, grad, exp_avg, exp_avg_sq, None, None, rest, c)
        rest = _adam_in_lanes(param, grad, exp_avg, exp_avg_sq, rest, c)
    for i in range(rest, np.uint64(param.size)):
        _adam_one(param, grad, exp_avg, exp_avg_sq, ema, copy, i, c)
