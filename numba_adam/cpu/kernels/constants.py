"""The constants of a step: written to rows of arrays, and read from them by name. Imports Numba."""

from __future__ import annotations

from numba.np.unsafe.ndarray import to_fixed_tuple

from numba_adam.cpu.kernels.compile import inline, inlined
from numba_adam.numerics.bind import bind
from numba_adam.numerics.constants import Constants, Settings, bias_correction, correct
from numba_adam.numerics.operations import product

SETTINGS, CONSTANTS = len(Settings._fields), len(Constants._fields)  # numbers in a row

_bias_correction = inline(bind(bias_correction, product=inline(product)))
_correct = inline(correct)


@inlined
def constants_of(row):  # type: ignore[no-untyped-def]
    """Return a row of constants by name."""
    return Constants(*to_fixed_tuple(row, CONSTANTS))


@inlined
def _settings_of(row):  # type: ignore[no-untyped-def]
    """Return a row of settings by name."""
    return Settings(*to_fixed_tuple(row, SETTINGS))


@inline
def write_constants(row, settings, step, grad_scale, clip_value):  # type: ignore[no-untyped-def]
    """Write the constants of a step into a row, rounded to the row's dtype.

    Args:
        row: (CONSTANTS,) of the compute dtype.
        settings: (SETTINGS,) float64.
        step: 1 for the first update.
        grad_scale: float64: multiplies every gradient.
        clip_value: float64: largest magnitude of a scaled gradient; 0: no limit.
    """
    s = _settings_of(settings)
    corrections = _bias_correction(s.beta1, step), _bias_correction(s.beta2, step)
    k = 0
    for value in _correct(s, corrections[0], corrections[1], grad_scale, clip_value):
        row[k] = value
        k += 1
