"""What a step needs beside the elements, for all arrays in one compiled call: addresses, checks, constants.

Nothing is written but the job's plan, so a step that is refused has changed nothing. Imports Numba.
"""

from __future__ import annotations

from numba_adam.cpu.kernels.compile import bind, inline, kernel
from numba_adam.cpu.kernels.formats import native
from numba_adam.cpu.kernels.gather import are_as_before, gather
from numba_adam.cpu.kernels.intrinsics import enter_ieee, leave_ieee
from numba_adam.cpu.kernels.job import BLOCK, IS_LARGE, IS_PLAIN, LARGE, ZERO_GRAD, unpack
from numba_adam.numerics.constants import Settings, bias_correction, correct
from numba_adam.numerics.operations import product

_bias_correction = inline(bind(bias_correction, product=inline(product)))
_correct = inline(correct)


@inline
def _settings(row):  # type: ignore[no-untyped-def]
    """Return a row of settings by their names."""
    return Settings(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10])


@inline
def _write_constants(row, settings, step, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Write the constants of a step into a row, rounded to its dtype."""
    s = _settings(settings)
    corrections = _bias_correction(s.beta1, step), _bias_correction(s.beta2, step)
    constants = _correct(s, corrections[0], corrections[1], grad_scale, clip_value)
    k = 0
    for value in constants:
        row[k] = value
        k += 1


@inline
def plan_step(job, steps, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Plan a step over the arrays whose gradients `job.grads` says; return their number."""
    before_entering = enter_ieee()
    count, last, total, blocks = 0, -1, 0, 0
    job.options[IS_PLAIN] = not job.options[ZERO_GRAD]
    for k in range(job.grads.size):
        if job.grads[k] == 0:
            continue
        previous = job.rows[count - 1]
        if count == 0 or job.groups[k] != job.groups[previous] or steps[k] != steps[previous]:
            last += 1
            _write_constants(job.constants[last], job.settings[job.groups[k]], steps[k] + 1, grad_scale, clip_value)
        if not job.plain[k] or job.grad_formats[k] != native(job.constants):
            job.options[IS_PLAIN] = 0
        job.rows[count] = k
        job.offsets[count] = total
        job.blocks[count] = blocks
        job.which[count] = last
        total += job.lengths[k]
        blocks += (job.lengths[k] + BLOCK - 1) // BLOCK
        count += 1
    job.offsets[count] = total
    job.blocks[count] = blocks
    job.options[IS_LARGE] = total >= LARGE
    leave_ieee(before_entering)
    return count


@kernel
def prepare(places, like, steps, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Check the arrays and plan the step; return how many have a gradient, or -1 if one is not what it must be.

    Args:
        places: from `job.pack`.
        like: any array of the dtype in which is computed.
        steps: (n,) int64: updates made so far.
        grad_scale: float64: multiplies every gradient.
        clip_value: float64: largest magnitude of a gradient after that; 0: any.
    """
    job = unpack(places, like)
    if not are_as_before(job.copies) or not gather(job):
        return -1
    return plan_step(job, steps, grad_scale, clip_value)


@kernel
def prepare_gathered(places, like, steps, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Plan a step whose gradients' addresses stand in the job already. Arguments as for `prepare`."""
    return plan_step(unpack(places, like), steps, grad_scale, clip_value)
