"""The plan of a step, for all arrays in one compiled call: addresses, validation, constants.

A call writes to the plan alone, so a refused step has changed nothing. Imports Numba.
"""

from __future__ import annotations

from numba_adam.cpu.kernels.compile import inline, kernel
from numba_adam.cpu.kernels.constants import write_constants
from numba_adam.cpu.kernels.formats import compute_format
from numba_adam.cpu.kernels.gather import are_unchanged, gather
from numba_adam.cpu.kernels.intrinsics import enter_ieee, leave_ieee
from numba_adam.cpu.kernels.launch_plan import BARE, IS_LARGE, KERNEL, LARGE, MAX_EXP_AVG_SQ, MIXED, PLAIN, unpack
from numba_adam.numerics.constants import Constants
from numba_adam.numerics.norm import SUM_BLOCK

_CLIP_VALUE, _WEIGHT_DECAY = Constants._fields.index("clip_value"), Constants._fields.index("weight_decay")


@inline
def plan_step(plan, steps, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Plan a step over the parameters whose gradients are in `plan.grads`; return their number."""
    environment = enter_ieee()
    count, last, total, blocks = 0, -1, 0, 0
    is_plain, is_bare = True, True
    grads, groups, rows, offsets, starts = plan.grads, plan.groups, plan.rows, plan.offsets, plan.blocks
    constants, options = plan.constants, plan.options
    for k in range(grads.size):
        if grads[k] == 0:
            continue
        previous = rows[count - 1]
        if count == 0 or groups[k] != groups[previous] or steps[k] != steps[previous]:
            last += 1
            row = constants[last]
            write_constants(row, plan.settings[groups[k]], steps[k] + 1, grad_scale, clip_value)
            if row[_CLIP_VALUE] != 0 or row[_WEIGHT_DECAY] != 0:
                is_bare = False
        if plan.addresses[k, MAX_EXP_AVG_SQ] != 0:
            is_bare = False
        if plan.plain[k] == 0 or plan.grad_formats[k] != compute_format(constants):
            is_plain = False
        rows[count] = k
        offsets[count] = total
        starts[count] = blocks
        plan.which[count] = last
        length = plan.lengths[k]
        total += length
        blocks += (length + SUM_BLOCK - 1) // SUM_BLOCK
        count += 1
    offsets[count] = total
    starts[count] = blocks
    options[KERNEL] = MIXED if not is_plain else BARE if is_bare else PLAIN
    options[IS_LARGE] = total >= LARGE
    leave_ieee(environment)
    return count


@kernel
def prepare(packed, like, steps, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Validate the arrays and plan the step; return the number of gradients, or -1 if an array is not what it must be.

    Args:
        packed: from `launch_plan.pack`.
        like: any array of the compute dtype.
        steps: (n,) int64: updates made so far.
        grad_scale: float64: multiplies every gradient.
        clip_value: float64: largest magnitude of a scaled gradient; 0: no limit.
    """
    plan = unpack(packed, like)
    if not are_unchanged(plan.copies) or not gather(plan):
        return -1
    return plan_step(plan, steps, grad_scale, clip_value)


@kernel
def prepare_gathered(packed, like, steps, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Plan a step whose gradients' addresses are in the plan already. Arguments as for `prepare`."""
    return plan_step(unpack(packed, like), steps, grad_scale, clip_value)
