"""Numbers that callers pass: of Python, of NumPy, or one-element arrays of any framework. Imports only the errors.

Every hyperparameter and every numeric argument is read here. A number is recognized by its methods (`item()`,
`__float__`), never by the name of a framework. Its value is read once, when it is passed: changing a tensor later has
no effect, and reading a tensor on a GPU waits for the GPU.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from numba_adam.errors import HyperparameterError


def plain(value: object) -> object:
    """Return the value of a scalar or a one-element array as a Python number; return anything else unchanged."""
    if isinstance(value, (int, float, str)) or _is_no_number(value):
        return value
    try:
        return value.item() if hasattr(value, "item") else _converted(value)
    except (ValueError, TypeError, RuntimeError):  # not one element, or no values: a traced array, or one on "meta"
        return value


def real(name: str, value: object) -> float:
    """Return `value` as a float; refuse anything but one real, finite number.

    Raises:
        HyperparameterError: it is not; the message names it.
    """
    if type(value) is float and math.isfinite(value):  # the usual case; numbers.Real takes ten times as long
        return value
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or _is_no_number(number):
        raise HyperparameterError(f"{name}={value!r}: it must be a real number, not {_described(value)}")
    try:
        result = float(number)
    except OverflowError:
        raise HyperparameterError(f"{name} is a number beyond the range of float64: it must be finite") from None
    if not math.isfinite(result):
        raise HyperparameterError(f"{name}={value!r}: it must be finite")
    return result


def whole(name: str, value: object) -> int:
    """Return `value` as an int; refuse anything but one number of an integer type.

    Raises:
        HyperparameterError: it is not; the message names it.
    """
    if type(value) is int:
        return value
    number = plain(value)
    try:
        return operator.index(None if isinstance(number, bool) else number)  # type: ignore[arg-type]
    except TypeError:
        raise HyperparameterError(f"{name}={value!r}: it must be a whole number, not {_described(value)}") from None


def flag(name: str, value: object) -> bool:
    """Return `value` as a bool; refuse anything but True and False.

    Raises:
        HyperparameterError: it is neither; the message names it.
    """
    if value is True or value is False:
        return value
    said = plain(value)  # NumPy's True is another object than Python's
    if said is True or said is False:
        return said
    raise HyperparameterError(f"{name}={value!r}: it must be True or False")


def _converted(value: object) -> object:
    """Return the result of an object's own conversion to a number."""
    if hasattr(value, "__index__"):
        try:
            return operator.index(value)
        except TypeError:  # an array of floats
            return float(value)
    return float(value) if hasattr(value, "__float__") else value


def _is_no_number(value: object) -> bool:
    """Say whether an object is not a number although it converts to one: a truth value, a time, a masked element."""
    dtype = getattr(value, "dtype", None)
    mask: Any = getattr(value, "mask", None)
    if getattr(dtype, "kind", "") in ("m", "M") or (not hasattr(value, "item") and "bool" in str(dtype)):
        return True
    return hasattr(mask, "any") and bool(mask.any())


def _described(value: object) -> str:
    """Return the type of a value for messages, with the shape of an array."""
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"{kind} of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else kind
