"""Callers' requests as plain values, and the check that a push fits its model.

`numba_adam.server.transport.messages` makes these values from the protocol's messages. Imports the error tree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from numba_adam.errors import HyperparameterError, InvalidRequestError, PushRejectedError
from numba_adam.server.model.push_key import PushKey
from numba_adam.server.model.spec import DTYPE_NUMBERS, NARROW_DTYPE_NUMBERS, Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.settings.limits import check_factor


class Creation(NamedTuple):
    """A request to create a model."""

    spec: Spec
    """The spec of the new model."""

    request_id: str
    """Id of the request; a retry has the same."""

    exist_ok: bool
    """Whether to return an existing model with the same spec."""

    after_state_id: str | None
    """The state of the last model of that name that the caller knew. None: not given."""

    total_bytes: int
    """Size of the initial values."""

    checksum_kind: int
    """A ChecksumKind of the protocol."""


class Opening(NamedTuple):
    """A request to open a worker's session."""

    worker_id: str
    """The worker."""

    nonce: str
    """Id of the request; a retry has the same. Empty: none."""

    state_id: str
    """The state that the session is for; empty: any."""

    seen_epoch: int
    """The newest epoch that the caller knows of."""


class PushRequest(NamedTuple):
    """The header of a push."""

    key: PushKey
    """Identifies the push."""

    base_version: int
    """Version of the parameters that the gradient was computed from."""

    dtype: int
    """Element type of the payload, by its number; see DTYPE_NUMBERS and NARROW_DTYPE_NUMBERS."""

    tensors: Sequence[Tensor]
    """The arrays in the payload. If they are all of the model's, this is the spec's own tuple: a fast check."""

    absent: Sequence[str]
    """Names of the arrays without a gradient."""

    total_bytes: int
    """Size of the payload."""

    checksum_kind: int
    """A ChecksumKind of the protocol."""

    loss_scale: float = 1.0
    """Divides the gradients."""


_NARROW = {number: name for name, number in NARROW_DTYPE_NUMBERS.items()}
_NARROW_BYTES = 2


class Payload(NamedTuple):
    """What the bytes of a push are."""

    elements: int
    """Their number."""

    narrow_dtype: str
    """"bfloat16" or "float16", if they must be widened to the model's element type; else empty."""


def payload_of(spec: Spec, push: PushRequest) -> Payload:
    """Return the number and the element type of a push whose header fits the model."""
    narrow = _NARROW.get(push.dtype, "")
    return Payload(push.total_bytes // (_NARROW_BYTES if narrow else spec.numpy_dtype.itemsize), narrow)


def narrow_dtype(spec: Spec, dtype: int) -> str:
    """Return the 16-bit format that a pull asks for; empty if it asks for the model's dtype, or for none.

    Raises:
        InvalidRequestError: it asks for another one.
    """
    if dtype in (0, DTYPE_NUMBERS[spec.dtype]):
        return ""
    if dtype not in _NARROW:
        known = ", ".join(f"{name} ({number})" for number, name in _NARROW.items())
        raise InvalidRequestError(
            f"dtype={dtype}: parameters of model {spec.name!r} are sent as {spec.dtype} "
            f"({DTYPE_NUMBERS[spec.dtype]}), {known}; ask for one of them"
        )
    return _NARROW[dtype]


def present_arrays(spec: Spec, push: PushRequest) -> tuple[bool, ...]:
    """Return for each array of the model whether the push has its gradient.

    Raises:
        PushRejectedError: dtype, names, shapes or the declared size do not fit the model.
    """
    if push.dtype != DTYPE_NUMBERS[spec.dtype] and push.dtype not in _NARROW:
        raise PushRejectedError(f"dtype={push.dtype}: model {spec.name!r} has {spec.dtype}; convert the gradients")
    if push.loss_scale != 1.0:
        check_loss_scale(push.loss_scale, spec.dtype)
    if push.tensors is spec.tensors and not push.absent:
        _check_size(spec, spec.element_count, push)
        return (True,) * len(spec.tensors)
    given = _given_shapes(spec, push)
    for tensor in spec.tensors:
        if tensor.name in given and given[tensor.name] != tensor.shape:
            raise PushRejectedError(
                f"gradient {tensor.name!r} has shape {given[tensor.name]}: model {spec.name!r} has {tensor.shape}"
            )
    order = [tensor.name for tensor in spec.tensors if tensor.name in given]
    if list(given) != order:
        raise PushRejectedError(f"gradients come in the order {_some(given)}: model {spec.name!r} has {_some(order)}")
    _check_size(spec, sum(tensor.size for tensor in spec.tensors if tensor.name in given), push)
    return tuple(tensor.name in given for tensor in spec.tensors)


def check_loss_scale(loss_scale: float, dtype: str) -> None:
    """Refuse a loss scale that the model's dtype cannot divide by.

    Raises:
        PushRejectedError: it is not a finite number above 0, or its inverse is beyond the dtype's range.
    """
    if not 0 < loss_scale < math.inf:
        raise PushRejectedError(f"loss_scale={loss_scale!r}: it must be a finite number above 0")
    try:
        check_factor(1.0 / loss_scale, dtype, f"loss_scale={loss_scale!r}")
    except (HyperparameterError, ZeroDivisionError, OverflowError) as error:
        raise PushRejectedError(str(error)) from error


def _check_size(spec: Spec, element_count: int, push: PushRequest) -> None:
    narrow = _NARROW.get(push.dtype)
    needed = element_count * (_NARROW_BYTES if narrow else spec.numpy_dtype.itemsize)
    if push.total_bytes != needed:
        raise PushRejectedError(
            f"total_bytes={push.total_bytes}: these arrays have {needed} bytes of {narrow or spec.dtype}"
        )


def _given_shapes(spec: Spec, push: PushRequest) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the payload's arrays. Checks that every array of the model is named exactly once."""
    names = [tensor.name for tensor in push.tensors] + list(push.absent)
    known = {tensor.name for tensor in spec.tensors}
    strange = [name for name in names if name not in known]
    if strange:
        raise PushRejectedError(f"gradient {_some(strange)}: model {spec.name!r} has only {_some(sorted(known))}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise PushRejectedError(f"gradient {_some(twice)}: named more than once; name each array once")
    named = set(names)
    missing = [tensor.name for tensor in spec.tensors if tensor.name not in named]
    if missing:
        raise PushRejectedError(
            f"gradient {_some(missing)} is missing: model {spec.name!r} needs one for each array, or its name in absent"
        )
    return dict(push.tensors)


def _some(names: Iterable[str]) -> str:
    """Return a few names, quoted, for a message."""
    listed = list(names)
    text = ", ".join(repr(name[:80]) for name in listed[:5])
    return text + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
