"""Optional work fused into the update of a float32 parameter: every mixture matches the oracle bit for bit."""

from __future__ import annotations

import itertools

import formats_reference as oracle
import numpy as np
import pytest
from formats_reference import DTYPES, Twin, bits, values_of

import numba_adam as na


@pytest.mark.parametrize(("size", "decay"), [(1, 0.1), (513, 0.0), (70_001, 0.1), (2**21 + 33, 0.0)])
@pytest.mark.parametrize("grad", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("ema_decay", "kind"), list(itertools.product([None, 0.9], [None, "bfloat16", "float16"])))
def test_a_float32_update_matches_the_oracle_with_every_mix_of_fused_work(size, grad, decay, ema_decay, kind):
    """Each mixture is its own loop; copies larger than the caches bypass them."""
    beside = {"ema_decay": ema_decay, "low_precision_copy": kind}
    options = {"weight_decay": decay, "decoupled_weight_decay": True, "lr": 0.02}
    param = values_of(size, np.dtype(np.float32), size)
    twin = Twin(param, None, options, **beside)
    optimizer = na.Adam(param, **options, **beside)
    for k in range(2):
        values = values_of(size, DTYPES[grad], k)
        twin.step(values, grad_scale=0.5)
        optimizer.step(values, grad_scale=0.5, zero_grad=k == 1)
    assert bits(param) == bits(twin.param)
    for key in ("exp_avg", "exp_avg_sq"):
        assert bits(optimizer.state[0][key]) == bits(getattr(twin, key))
    assert ema_decay is None or bits(optimizer.ema) == bits(twin.ema)
    assert kind is None or bits(optimizer.low_precision) == bits(twin.copy)
    assert not oracle.widen(values).any()


@pytest.mark.parametrize("grad", ["float32", "bfloat16"])
@pytest.mark.parametrize("beside", [{}, {"ema_decay": 0.9, "low_precision_copy": "bfloat16"}])
def test_small_arrays_in_a_large_step_match_the_oracle(grad, beside):
    """A step larger than the caches prefetches and bypasses the caches for copies, in small arrays too."""
    sizes = (513, 2**21, 0, 1, 31, 1_000, 576)
    params = [values_of(size, np.dtype(np.float32), size) for size in sizes]
    grads = [values_of(size, DTYPES[grad], size + 1) for size in sizes]
    twins = [Twin(param, place=place, **beside) for place, param in enumerate(params)]
    optimizer = na.Adam(params, **beside)
    for _ in range(2):
        optimizer.step(grads)
    for place, (twin, param, values) in enumerate(zip(twins, params, grads, strict=True)):
        twin.step(values)
        twin.step(values)
        assert bits(param) == bits(twin.param)
        assert bits(optimizer.state[place]["exp_avg_sq"]) == bits(twin.exp_avg_sq)
        assert not beside or bits(optimizer.ema[place]) == bits(twin.ema)
        assert not beside or bits(optimizer.low_precision[place]) == bits(twin.copy)
