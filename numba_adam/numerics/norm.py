"""The norm of the gradients: overflow, clipping, and which gradients are too large to take.

The functions are plain Python, and kernels compile them too. Imports `operations` alone.
"""

from __future__ import annotations

import math

from numba_adam.numerics.operations import product

# The order of a sum of squares, on every target: an array is divided into blocks; element i of a block is added to lane
# i % SUM_LANES; then lanes are added one after the other, and blocks likewise.
SUM_BLOCK = 8192  # elements
SUM_LANES = 16  # on a CPU two registers of AVX-512, enough to hide the latency of an addition

# float64 gradients are multiplied by one of these powers of two before they are squared, when their plain squares
# overflow or lose digits. The scaling loses no digit. Two scales cover the range of float64 (Blue 1978; LAPACK's nrm2).
PLAIN_SQUARES, OF_LARGE, OF_SMALL = 1.0, 2.0**-700, 2.0**600
_SMALL = 2.0**-900  # a sum of squares from here on has lost no digit that counts
_INFINITY = math.inf


def scale_of_squares(sum_of_squares: float) -> float:
    """Return the factor of float64 gradients for their squares to be summed again; PLAIN_SQUARES if the sum is good.

    Args:
        sum_of_squares: of the unscaled gradients. If it is not finite, either a square overflowed or a gradient is not
            finite; only in the first case is the sum of scaled squares finite.
    """
    if _SMALL <= sum_of_squares < _INFINITY:
        return PLAIN_SQUARES
    return OF_SMALL if sum_of_squares < _SMALL else OF_LARGE


# The second moment cannot hold the square of a finite gradient from here on: it would stay infinite forever. The limit
# is a little below the root of the largest number (2**64, 2**512), because the scaled gradient is rounded.
LARGEST_GRADIENT = {"float32": 2.0**64 * (1 - 2.0**-20), "float64": 2.0**512 * (1 - 2.0**-20)}


def is_too_large(largest: float, factor: float, clip_value: float, limit: float) -> bool:
    """Say whether the square of a gradient would overflow the second moment.

    Args:
        largest: the largest magnitude of a gradient.
        factor: multiplies the gradients.
        clip_value: largest magnitude of a scaled gradient; 0: no limit.
        limit: LARGEST_GRADIENT of the dtype whose range the moments have.
    """
    magnitude = product(largest, abs(factor))
    return magnitude >= limit and (clip_value == 0.0 or clip_value >= limit)


def measured(sum_of_squares: float, factor: float, max_norm: float, scale: float) -> tuple[float, float]:
    """Return the norm of the gradients times `factor`, and the factor that reduces this norm to `max_norm`.

    Like PyTorch's clip_grad_norm_, with 1e-6 in the denominator.

    Args:
        sum_of_squares: of the gradients times `scale`, without `factor`.
        factor: multiplies the gradients.
        max_norm: the largest norm that is not reduced.
        scale: from `scale_of_squares`.
    """
    norm = product(math.sqrt(sum_of_squares), abs(factor))
    ratio = product(max_norm, scale) / (norm + product(1e-6, scale))
    return norm / scale, product(factor, ratio) if ratio < 1.0 else factor
