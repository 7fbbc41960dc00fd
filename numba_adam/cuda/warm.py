"""Small steps on the current GPU, so that its kernels are compiled before they are needed; for `numba_adam.warmup`."""

from __future__ import annotations

from typing import Any

from numba_adam.cuda import seam
from numba_adam.cuda.memory import current_device, zeros
from numba_adam.cuda.streams import LEGACY

_SIZE = 64
_EIGHT_BIT: dict[str, Any] = {"state_dtype": "8bit"}
_KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((number, {}) for number in ("float32", "float64", "bfloat16", "float16")),
    *((number, _EIGHT_BIT) for number in ("float32", "bfloat16")),
)


def warm() -> None:
    """Make steps in every format, of one array and of two, with and without clipping; and with state in 8 bits.

    Raises:
        CudaUnavailableError: there is no GPU that can be used.
    """
    from numba_adam.optimizer import Adam

    seam.require_gpu()
    device = current_device()
    for number, options in _KINDS:
        for count in (1, 2):
            params, grads = ([zeros((_SIZE,), number, device, LEGACY) for _ in range(count)] for _ in range(2))
            optimizer = Adam(params, **options)
            optimizer.step(grads)
            assert optimizer.step(grads, max_grad_norm=1.0).applied  # waits until all is done
