"""Small steps on the current GPU, so that its kernels are compiled before they are needed; for `numba_adam.warmup`."""

from __future__ import annotations

from numba_adam.cuda import seam
from numba_adam.cuda.memory import current_device, zeros
from numba_adam.cuda.streams import LEGACY

_SIZE = 64


def warm() -> None:
    """Make steps in every format, of one array and of two, with and without clipping.

    Raises:
        CudaUnavailableError: there is no GPU that can be used.
    """
    from numba_adam.optimizer import Adam

    seam.require_gpu()
    device = current_device()
    for number in ("float32", "float64", "bfloat16", "float16"):
        for count in (1, 2):
            params, grads = ([zeros((_SIZE,), number, device, LEGACY) for _ in range(count)] for _ in range(2))
            optimizer = Adam(params)
            optimizer.step(grads)
            assert optimizer.step(grads, max_grad_norm=1.0).applied  # waits until all is done
