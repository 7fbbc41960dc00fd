"""A model's state in a safetensors file, with PyTorch's names, so that other programs can read and write it.

    NAME                    parameters
    exp_avg.NAME            moments, as exp_avg_sq.NAME, and max_exp_avg_sq.NAME with AMSGrad
    exp_avg_scale.NAME      scales of moments in 8 bits, as exp_avg_sq_scale.NAME and max_exp_avg_sq_scale.NAME
    ema.NAME                average of the weights
    step.NAME               number of updates, int64 without dimensions

The metadata's entry `numba_adam` has the hyperparameters and the other settings, as JSON. Files of other programs have
none, and may lack the moments and steps of arrays that were never updated. Imports the safetensors library, the
snapshot's records and the error tree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from numba_adam.errors import ConfigurationError, NumbaAdamError
from numba_adam.numerics.eight_bit import blocks_of
from numba_adam.server.model.columns import MOMENTS, SCALE, Column, columns_of
from numba_adam.server.model.options import check_options, options_from, to_options
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.storage import safetensors_bfloat16
from numba_adam.server.storage.durable import TEMPORARY, sync, sync_folder
from numba_adam.settings.hyperparameters import LAST_STEP
from numba_adam.settings.options import Options

_ENTRY = "numba_adam"
_FORMAT = 1
_AMSGRAD = "max_exp_avg_sq"
_STATE = (*MOMENTS, *(name + SCALE for name in MOMENTS), "ema", "step")
_SQUARES = ("exp_avg_sq", _AMSGRAD)
_STATE_DTYPES = {"float32": "float32", "float64": "float64", "uint16": "bfloat16", "uint8": "8bit"}
_PREFIXES = tuple(f"{column}." for column in _STATE)
_DTYPES = ("float32", "float64")
_BFLOAT16_INFINITY, _BFLOAT16_NEGATIVE_ZERO = np.uint16(0x7F80), np.uint16(0x8000)

Array = npt.NDArray[Any]


class Exchanged(NamedTuple):
    """A model's state."""

    settings: Mapping[str, Any]
    """The record of the spec, without name and arrays; empty if the file has none."""

    tensors: tuple[Tensor, ...]
    """The arrays, in order."""

    columns: Mapping[str, Mapping[str, Array]]
    """Column, as in `model.columns` -> array name -> values; bfloat16 as bits in uint16."""

    steps: Mapping[str, int]
    """Number of updates of each array."""


def write(path: Path, state: Exchanged) -> None:
    """Write a new file. Either it is complete, or there is none.

    Raises:
        ConfigurationError: it exists, it cannot be written, or an array's name cannot be used in such a file.
    """
    if path.suffix != ".safetensors":
        raise ConfigurationError(
            f"{str(path)!r}: expected a name that ends with .safetensors; docs/saving.md in the clone shows how "
            "PyTorch loads such a file"
        )
    if path.exists():
        raise ConfigurationError(f"{str(path)!r} exists, and is not overwritten: take another name, or remove it")
    prefixes = {column: "" if column == "param" else f"{column}." for column in state.columns}
    named = [(prefixes[column] + name, array) for column, each in state.columns.items() for name, array in each.items()]
    named += [(f"step.{name}", np.array(step, np.int64)) for name, step in state.steps.items()]
    _check_names([name for name, _ in named], state.columns["param"])
    settings = {"format": _FORMAT, **state.settings, "order": [tensor.name for tensor in state.tensors]}
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _save(temporary, dict(named), {_ENTRY: json.dumps(settings)})
        with temporary.open("rb") as file:
            sync(file.fileno(), temporary)
        temporary.rename(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"{str(path)!r} cannot be written ({error}): its folder must exist, have room, and be yours to write to"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Exchanged:
    """Read a file of this or another program.

    Raises:
        ConfigurationError: it is not such a file, or lacks something.
    """
    try:
        with safe_open(path, "numpy") as file:
            names = list(file.keys())
            narrow = [name for name in names if file.get_slice(name).get_dtype() == safetensors_bfloat16.NAME]
            arrays = {name: file.get_tensor(name) for name in names if name not in narrow}
            arrays |= safetensors_bfloat16.read(path, narrow)
            settings = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            order = settings.pop("order", None)
            known = settings.pop("format", _FORMAT)
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{str(path)!r} is not a safetensors file that can be read ({error})") from error
    if known != _FORMAT:
        raise ConfigurationError(f"{str(path)!r} has format {known!r}, and this release reads {_FORMAT}")
    names = [name for name in arrays if not _is_state(name, arrays)]
    if order is not None and sorted(order) != sorted(names):
        raise ConfigurationError(f"{str(path)!r}: its arrays are not those that its metadata names")
    names = names if order is None else order
    if not names:
        raise ConfigurationError(f"{str(path)!r} has no arrays")
    _check_dtypes(path, names, arrays)
    options = _options(path, settings, names, arrays)
    has_amsgrad = any(f"{_AMSGRAD}.{name}" in arrays for name in names)
    own = columns_of([arrays[name].size for name in names], arrays[names[0]].dtype, has_amsgrad, options)
    columns = {"param": {name: arrays[name] for name in names}}
    for column in own[1:]:
        columns[column.name] = {name: _moment(path, column, name, arrays) for name in names}
    steps = {name: _step(path, name, arrays) for name in names}
    settings["options"] = to_options(options)
    return Exchanged(settings, tuple(Tensor(name, arrays[name].shape) for name in names), columns, steps)


def _is_state(name: str, arrays: Mapping[str, Array]) -> bool:
    """Return whether a name is that of the state of another array."""
    prefix, _, rest = name.partition(".")
    return prefix in _STATE and rest in arrays


def _check_names(names: list[str], params: Mapping[str, Array]) -> None:
    """Refuse names from which a reader could not tell parameters and state apart."""
    twice = {name for name, count in Counter(names).items() if count > 1}
    for name in params:
        if name in twice or name == "__metadata__" or name.startswith(_PREFIXES):
            raise ConfigurationError(
                f"array {name!r}: in such a file this name would be that of another array's state, or has another use; "
                "the model's snapshot is a safetensors file too, with the names param/NAME, exp_avg/NAME, ..."
            )


def _check_dtypes(path: Path, names: list[str], arrays: Mapping[str, Array]) -> None:
    found = sorted({arrays[name].dtype.name for name in names})
    if len(found) > 1 or found[0] not in _DTYPES:
        raise ConfigurationError(
            f"{str(path)!r}: its arrays have the dtypes {', '.join(found)}; a model has one dtype, float32 or float64: "
            "convert them"
        )
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ConfigurationError(f"{str(path)!r}: array {name!r} has a NaN or an infinity")


def _options(path: Path, settings: Mapping[str, Any], names: list[str], arrays: Mapping[str, Array]) -> Options:
    """Return the options of the model: those of the metadata, or else those that the arrays imply."""
    dtype = arrays[names[0]].dtype.name
    try:
        if "options" in settings:
            return check_options(options_from(settings["options"]), dtype)
        kinds = sorted({arrays[f"exp_avg.{name}"].dtype.name for name in names if f"exp_avg.{name}" in arrays})
        if any(f"ema.{name}" in arrays for name in names):
            raise ConfigurationError("it has ema.NAME, and no metadata that says how fast that average decays")
        if len(kinds) > 1 or not set(kinds) <= _STATE_DTYPES.keys():
            raise ConfigurationError(f"its moments have the dtypes {', '.join(kinds)}: expected one that a model has")
        state_dtype: Any = _STATE_DTYPES[kinds[0]] if kinds else None
        return check_options(Options(state_dtype=state_dtype), dtype)
    except NumbaAdamError as error:
        raise ConfigurationError(f"{str(path)!r}: {error}") from error


def _moment(path: Path, own: Column, name: str, arrays: Mapping[str, Array]) -> Array:
    """Return a moment of an array, the scales of one, or the average: as at the start if it was never updated."""
    column, param = own.name, arrays[name]
    shape = (blocks_of(param.size),) if column.endswith(SCALE) else param.shape
    found = arrays.get(f"{column}.{name}")
    has_others = [other for other in _STATE if other != column and f"{other}.{name}" in arrays]
    if found is None:
        if has_others:
            raise ConfigurationError(
                f"{str(path)!r} has '{has_others[0]}.{name}', and lacks '{column}.{name}': expected all of an array's "
                "state, or none of it"
            )
        return np.asarray(param, own.dtype) if column == "ema" else np.zeros(shape, own.dtype)
    if found.shape != shape or found.dtype != own.dtype:
        raise ConfigurationError(
            f"{str(path)!r}: '{column}.{name}' is {found.dtype} of shape {found.shape}, expected {own.dtype} of "
            f"shape {shape}, as {name!r}"
        )
    _check_bits(path, f"{column}.{name}", found)
    is_signed = column in ("exp_avg", "ema") or found.dtype.kind == "u"
    if not is_signed and (found < 0).any():
        why = "scales are never negative" if column.endswith(SCALE) else "it averages squares"
        raise ConfigurationError(f"{str(path)!r}: '{column}.{name}' has negative values, and {why}")
    return found


def _check_bits(path: Path, name: str, found: Array) -> None:
    """Refuse bfloat16 that no moment has: what is not finite, or a negative average of squares."""
    if found.dtype != np.uint16:
        return
    if ((found & _BFLOAT16_INFINITY) == _BFLOAT16_INFINITY).any():
        raise ConfigurationError(f"{str(path)!r}: array {name!r} has a NaN or an infinity")
    if name.startswith(_SQUARES) and (found > _BFLOAT16_NEGATIVE_ZERO).any():
        raise ConfigurationError(f"{str(path)!r}: {name!r} has negative values, and it averages squares")


def _save(path: Path, arrays: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write a file: by the library, unless that lacks a dtype."""
    if any(array.dtype == np.uint16 for array in arrays.values()):
        safetensors_bfloat16.write(path, arrays, metadata)
    else:
        save_file(arrays, path, metadata=metadata)


def _step(path: Path, name: str, arrays: Mapping[str, Array]) -> int:
    found = arrays.get(f"step.{name}")
    if found is None:
        if f"exp_avg.{name}" in arrays:
            raise ConfigurationError(f"{str(path)!r} has 'exp_avg.{name}', and lacks 'step.{name}'")
        return 0
    if found.size != 1 or not 0 <= found.item() < LAST_STEP or int(found.item()) != found.item():
        raise ConfigurationError(
            f"{str(path)!r}: 'step.{name}' is {found.tolist()!r}, expected one whole number of at least 0"
        )
    return int(found.item())
