"""The norm of the gradients, compared with a plain read of them.

An infinite gradient makes our step skip: it reads all gradients for their norm, and changes nothing. So its time is
that of the norm.
"""

from __future__ import annotations

import numpy as np

import numba_adam as na
from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants import plain_read
from benchmarks.contestants.contestant import DisagreementError
from benchmarks.contestants.ours import threads_of_a_step
from benchmarks.contestants.plain_read import PlainRead
from benchmarks.measure import interleave
from benchmarks.workload import one_array

_ELEMENTS = 50_000_000


def _against_read(settings: Settings) -> Measurement:
    workload = one_array(settings.elements(_ELEMENTS))
    (param,), (grad,) = workload.params(), workload.grads()
    grad[-1] = np.inf
    optimizer = na.Adam([param])

    def skipped() -> object:
        return optimizer.step([grad], max_grad_norm=1.0)

    pairs = interleave(skipped, PlainRead(grad, settings.threads).step, settings)
    if not np.array_equal(param, workload.params()[0]):
        raise DisagreementError("a step with an infinite gradient changed a parameter")
    return Measurement(pairs, {"elements": f"{workload.elements:,}", "our threads": threads_of_a_step()})


CASES: tuple[Case, ...] = (
    Case(
        name="norm/50m/read",
        title="norm of 50 million gradients",
        peer=plain_read.NAME,
        bar=Bar(1.15),
        run=_against_read,
    ),
)
