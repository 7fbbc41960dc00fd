"""Kernels work on addresses: they must stay within the arrays they were given, and in memory that is still theirs."""

from __future__ import annotations

CROWD = """
import hashlib
import numba
import numpy as np
import numba_adam as na


def digest(threads):
    numba.set_num_threads(threads)
    rng = np.random.default_rng(0)
    params = [np.ones(2_000, np.float32) for _ in range(100)]
    grads = [rng.standard_normal(2_000).astype(np.float16) for _ in params]
    optimizer = na.Adam(params, state_dtype="bfloat16", amsgrad=True, lr=0.1)
    for _ in range(30):
        optimizer.step(grads)
    return hashlib.sha256(b"".join(param.tobytes() for param in params)).hexdigest()


alone = digest(1)
print(all(digest(4) == alone for _ in range(25)))
"""


def test_a_threads_room_is_its_own_where_all_threads_share_one_heap(run_python):
    """A tile's room was given back before the tile was done; with a heap for each thread nobody took it meanwhile."""
    environment = {"MALLOC_ARENA_MAX": "1", "NUMBA_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}
    assert run_python(CROWD, **environment) == "True"
