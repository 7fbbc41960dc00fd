"""The constants of a step: written to rows of arrays, and read from them by name. Imports Numba."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_adam.cpu.kernels.compile import inline, inlined
from numba_adam.numerics.bind import bind
from numba_adam.numerics.constants import Constants, Settings, bias_correction, correct
from numba_adam.numerics.operations import product

SETTINGS, CONSTANTS = len(Settings._fields), len(Constants._fields)  # numbers in a row

_bias_correction = inline(bind(bias_correction, product=inline(product)))
_correct = inline(correct)


@intrinsic
def _named(typingctx: Any, row: Any, class_: Any) -> Any:
    """Return the numbers of a C-contiguous row as a NamedTuple of a class, each loaded into its own register.

    Numba's `to_fixed_tuple` writes the whole tuple to memory once for each number: 40 ns for each array of a step.
    """
    names = class_.instance_class._fields

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(row)(context, builder, args[0]).data
        numbers = [builder.load(cgutils.gep(builder, data, k)) for k in range(len(names))]
        return context.make_tuple(builder, signature.return_type, numbers)

    return types.NamedUniTuple(row.dtype, len(names), class_.instance_class)(row, class_), codegen


@inlined
def constants_of(row):  # type: ignore[no-untyped-def]
    """Return a row of constants by name."""
    return _named(row, Constants)


@inlined
def _settings_of(row):  # type: ignore[no-untyped-def]
    """Return a row of settings by name."""
    return _named(row, Settings)


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
