"""The options of a model: the formats of its state, and the average of its weights.

Imports the library's options, the formats and the checks of records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numba_adam.errors import NumbaAdamError, SnapshotError
from numba_adam.numerics.formats import Format
from numba_adam.server.model.records import check_keys
from numba_adam.settings.options import Options

NO_OPTIONS = Options()
"""Moments in the model's dtype, and no average."""

NAMES = ("state_dtype", "rounding", "seed", "ema_decay")
"""The options that a model may have. The others are about parameters in 16 bits."""


def check_options(options: Options, dtype: str) -> Options:
    """Return the options of a new model in their one form: a `state_dtype` that the dtype implies is None.

    Raises:
        HyperparameterError: the compute dtype cannot represent an option.
        DtypeError: the dtype and the options cannot be combined.
    """
    format_ = Format.named(dtype)
    options.check("", format_)
    return replace(options, state_dtype=None) if options.state_dtype == dtype else options


def to_options(options: Options) -> dict[str, Any]:
    """Return the record of the options that differ from their defaults; empty if none does."""
    values = {name: getattr(options, name) for name in NAMES}
    return {name: value for name, value in values.items() if value != getattr(NO_OPTIONS, name)}


def options_from(record: Mapping[str, Any]) -> Options:
    """Return the options that `to_options` wrote.

    Raises:
        SnapshotError: the record has a key or value that this version does not know.
    """
    check_keys(record, "the record of the options", (), NAMES)
    try:
        return Options(**record)
    except NumbaAdamError as error:
        raise SnapshotError(f"the record of the options: {error}; a newer numba-adam may have written it") from error


def option_differences(have: Options, want: Options, dtype: str) -> list[str]:
    """Return the differences between the options of an existing model and the requested ones, one line each."""
    pairs = [(name, getattr(have, name), getattr(want, name)) for name in NAMES]
    default = {None: dtype}
    return [
        f"state_dtype: the model has {default.get(old, old)}, asked for {default.get(new, new)}"
        if name == "state_dtype"
        else f"{name}: the model has {old!r}, asked for {new!r}"
        for name, old, new in pairs
        if old != new
    ]
