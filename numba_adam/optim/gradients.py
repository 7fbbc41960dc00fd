"""Puts the gradients of a step into the order of the parameters. Knows no kernel.

Lists and dicts are recognized by their exact type, because isinstance with a protocol takes a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from numba_adam.errors import NamesError
from numba_adam.settings.param_groups import is_array, is_pair


def in_order(grads: object, count: int, names: Sequence[str], single: bool) -> list[object]:
    """Return one gradient, or None, for each parameter.

    Args:
        grads: the argument of `Adam.step`.
        count: number of parameters.
        names: their names; empty if they have none.
        single: True: the optimizer was made for one bare array.

    Raises:
        NamesError: the form differs from the parameters', or the number or names of gradients do.
    """
    if single:
        return [grads if type(grads) is np.ndarray else _one(grads)]
    if names:
        return _by_name(grads, names)
    sequence = _sequence_of(grads)
    if sequence is None:
        raise NamesError(
            f"grads is {_a(grads)}: the parameters were given as a list, so give a list of {count} gradients "
            "in the same order, with None where there is none"
        )
    if len(sequence) != count:
        raise NamesError(f"{len(sequence)} gradients for {count} parameters: give one for each, or None")
    return list(sequence)


def _sequence_of(grads: object) -> Sequence[object] | None:
    """Return gradients that were given one after the other; None where they were not."""
    if type(grads) is list or type(grads) is tuple:
        return grads
    is_other = isinstance(grads, Mapping) or is_array(grads)
    return grads if isinstance(grads, Sequence) and not is_other else None


def _one(grad: object) -> object:
    if isinstance(grad, (list, tuple, Mapping)):
        raise NamesError(f"grads is {_a(grad)}: the parameter was given as one array, so give one array")
    return grad


def _by_name(grads: object, names: Sequence[str]) -> list[object]:
    if type(grads) is not dict and not isinstance(grads, Mapping):
        grads = _mapping_of(grads)
    if len(grads) == len(names):
        try:
            return [grads[name] for name in names]
        except KeyError:
            pass
    missing = [name for name in names if name not in grads]
    if missing:
        raise NamesError(
            f"grads has no {missing[0]!r}: give a gradient for every parameter, or None to leave it unchanged"
        )
    known = set(names)
    unknown = [name for name in grads if name not in known]
    raise NamesError(f"grads has {unknown[0]!r}: no parameter has that name, only {_listed(names)}")


def _mapping_of(grads: object) -> dict[str, object]:
    """Return the gradients of an iterable of pairs (name, gradient) by their names."""
    entries: list[Any] = list(grads) if isinstance(grads, Iterable) and not is_array(grads) else [None]
    if not all(is_pair(entry) for entry in entries):
        raise NamesError(f"grads is {_a(grads)}: the parameters have names, so give a dict with the same names")
    by_name = dict(entries)
    if len(by_name) < len(entries):
        raise NamesError(f"grads has {len(entries)} pairs with {len(by_name)} names: give each gradient once")
    return by_name


def _a(value: object) -> str:
    return "one array" if is_array(value) else f"a {type(value).__name__}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
