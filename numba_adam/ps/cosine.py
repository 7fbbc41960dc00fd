"""Half a wave of the cosine, with the same bits on every machine. Imports the standard library.

The cosine of C libraries differs between CPUs and versions in the last bit. Here it is computed in whole numbers, which
are exact everywhere, and rounded once.
"""

from __future__ import annotations

from functools import cache

_BITS = 160  # of the fraction: the error is below 2**-150, far below half a unit of any result
_ONE = 1 << _BITS


@cache
def _pi() -> int:
    """Return pi times 2**160, from Machin's formula: pi = 16 atan(1/5) - 4 atan(1/239)."""
    guard = 16
    return (16 * _atan_of_inverse(5, guard) - 4 * _atan_of_inverse(239, guard)) >> guard


def _atan_of_inverse(n: int, guard: int) -> int:
    """Return atan(1/n), times 2**(160 + guard), from its power series."""
    power, total, k = (_ONE << guard) // n, 0, 0
    while power:
        total += (-power if k % 2 else power) // (2 * k + 1)
        power //= n * n
        k += 1
    return total


def half_wave(step: int, steps: int) -> float:
    """Return (1 + cos(pi * step / steps)) / 2, the nearest float64: 1 at step 0, 0 from `steps` on."""
    if step >= steps:
        return 0.0
    # (1 + cos x) / 2 = cos(x / 2)**2, which keeps all digits near 0; and cos(x / 2) = sin((pi - x) / 2)
    is_early = 2 * step <= steps
    root = _cos(_pi() * step // (2 * steps)) if is_early else _sin(_pi() * (steps - step) // (2 * steps))
    return root * root / (_ONE * _ONE)  # whole numbers divide with one rounding, to the nearest


def _cos(x: int) -> int:
    """Return the cosine of x / 2**160, from 0 to pi / 4, times 2**160."""
    return _series(x, _ONE, 0)


def _sin(x: int) -> int:
    """Return the sine of x / 2**160, from 0 to pi / 4, times 2**160."""
    return _series(x, x, 1)


def _series(x: int, term: int, power: int) -> int:
    """Return the alternating power series that begins with `term`, which has x to a power."""
    square, total = x * x >> _BITS, 0
    while term:
        total += term
        term = -(term * square >> _BITS) // ((power + 1) * (power + 2))
        power += 2
    return total
