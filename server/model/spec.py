"""What a model is, and whether a push fits it: plain frozen values.

May import the error tree, the hyperparameters with their limits, and numba_adam.ps.convert (for the wire's form); never
gRPC or Numba.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import InvalidRequestError, PushRejectedError
from numba_adam.ps import convert
from numba_adam.ps.v1 import model_pb2 as pb
from numba_adam.server.model.records import check_keys, check_value
from numba_adam.settings.hyperparameters import EPS_MODES, Hyperparameters
from numba_adam.settings.limits import check_held

_MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_LONGEST_TENSOR_NAME = 256
_LONGEST_WORKER_ID = 128
_LONGEST_RANDOM_ID = 64
_BYTES_OF_A_MODEL = 1 << 16  # measured, and then some: threads, locks, tables
_BYTES_OF_AN_ARRAY = 3 << 9
_MOST_DIMENSIONS = 32
MOST_ARRAYS = 1 << 16
"""Of one model."""

_LONGEST_NAMES = 6 << 20  # characters of all names together, as JSON writes them: so a snapshot's header has room
_MOST_BYTES = 1 << 62  # of one array: sizes and offsets stay within a signed 64-bit number
_KNOWN_VALUES = {"dtype": ("float32", "float64"), "mode": ("async",), "durability": ("memory",)}
_KEYS = ("name", "tensors", "hyperparameters", *_KNOWN_VALUES)
_HYPERPARAMETERS = tuple(Hyperparameters.__dataclass_fields__)


class Tensor(NamedTuple):
    """One array of a model."""

    name: str
    """Unique within the model."""

    shape: tuple[int, ...]
    """Extents in C order."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Spec:
    """Everything about a model that does not change while it trains."""

    name: str
    """Unique on the server, and fit to be the name of a folder."""

    dtype: str
    """"float32" or "float64", of every array."""

    tensors: tuple[Tensor, ...]
    """The arrays, in the order in which their bytes travel."""

    hyperparameters: Hyperparameters
    """The optimizer's settings."""

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The element type, little-endian as on the wire."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def element_count(self) -> int:
        """Number of elements of all arrays."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Size of all parameters in bytes."""
        return self.element_count * self.numpy_dtype.itemsize

    def to_proto(self) -> pb.ModelSpec:
        """Return the message, with every field set."""
        return pb.ModelSpec(
            name=self.name,
            dtype=convert.dtype_to_proto(self.dtype),
            tensors=[pb.TensorSpec(name=tensor.name, shape=tensor.shape) for tensor in self.tensors],
            hyperparameters=convert.hyperparameters_to_proto(self.hyperparameters),
            mode=pb.Mode.MODE_ASYNC,
            durability=pb.Durability.DURABILITY_MEMORY,
        )

    def to_record(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "tensors": [{"name": tensor.name, "shape": list(tensor.shape)} for tensor in self.tensors],
            "hyperparameters": {**asdict(self.hyperparameters), "betas": list(self.hyperparameters.betas)},
            "mode": "async",
            "durability": "memory",
        }

    @property
    def description_bytes(self) -> int:
        """About how much memory a model with this spec takes beside its arrays."""
        return _BYTES_OF_A_MODEL + _BYTES_OF_AN_ARRAY * len(self.tensors)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Spec:
        """Return the spec that `to_record` wrote; what tells of the creation may stand beside it.

        Raises:
            SnapshotError: it says something that this version does not know.
        """
        check_keys(record, "the model's record", _KEYS, ("request_id", "initial"))
        check_keys(record["hyperparameters"], "the record of the hyperparameters", _HYPERPARAMETERS)
        for item in record["tensors"]:
            check_keys(item, "an array's record", Tensor._fields)
        for key, known in _KNOWN_VALUES.items():
            check_value(record[key], key, known)
        check_value(record["hyperparameters"]["eps_mode"], "eps_mode", EPS_MODES)
        return cls(
            name=check_model_name(record["name"]),
            dtype=record["dtype"],
            tensors=tuple(Tensor(item["name"], tuple(item["shape"])) for item in record["tensors"]),
            hyperparameters=Hyperparameters(**record["hyperparameters"]),
        )

    @classmethod
    def from_proto(cls, message: pb.ModelSpec) -> Spec:
        """Return the checked spec.

        Raises:
            InvalidRequestError: a name, shape, dtype, mode or durability that cannot be.
            HyperparameterError: a hyperparameter out of range, or of that of the model's dtype.
        """
        if message.mode not in (pb.Mode.MODE_UNSPECIFIED, pb.Mode.MODE_ASYNC):
            raise InvalidRequestError(f"mode={message.mode}: this server knows MODE_ASYNC (1)")
        if message.durability not in (pb.Durability.DURABILITY_UNSPECIFIED, pb.Durability.DURABILITY_MEMORY):
            raise InvalidRequestError(f"durability={message.durability}: this server knows DURABILITY_MEMORY (1)")
        dtype = convert.dtype_from_proto(message.dtype)
        hyperparameters = convert.hyperparameters_from_proto(message.hyperparameters)
        check_held(hyperparameters, dtype.name)
        return cls(
            name=check_model_name(message.name),
            dtype=dtype.name,
            tensors=_check_tensors(message.tensors, dtype.itemsize),
            hyperparameters=hyperparameters,
        )


class PushShape(NamedTuple):
    """What a push says about its payload."""

    dtype: int
    """A Dtype."""

    tensors: Sequence[Tensor]
    """The arrays in the payload; the model's own tuple where they are the model's, which is quick to check."""

    absent: Sequence[str]
    """Names of the arrays that have no gradient."""

    total_bytes: int
    """Size of the payload."""


def check_arrays(messages: Sequence[pb.TensorSpec], others: int = 0) -> None:
    """Refuse descriptions of arrays that no model can have, before anything is made of them.

    Args:
        messages: the descriptions.
        others: number of arrays that are named beside them.

    Raises:
        InvalidRequestError: they are too many, or one of them has too many dimensions.
    """
    if len(messages) + others > MOST_ARRAYS:
        raise InvalidRequestError(f"{len(messages) + others} arrays are named: a model has at most {MOST_ARRAYS}")
    for message in messages:
        if len(message.shape) > _MOST_DIMENSIONS:
            raise InvalidRequestError(
                f"array {message.name[:300]!r} has {len(message.shape)} dimensions: at most {_MOST_DIMENSIONS} can be"
            )


def is_model_name(name: str) -> bool:
    """Say whether a model can have this name, which becomes a folder's name."""
    return _MODEL_NAME.fullmatch(name) is not None


def check_model_name(name: str) -> str:
    """Return a model's name, or raise InvalidRequestError."""
    if not is_model_name(name):
        raise InvalidRequestError(
            f"model name {name[:200]!r}: it must be 1 to 128 characters of A-Z a-z 0-9 . _ - and not begin with a dot"
        )
    return name


def check_worker_id(worker_id: str) -> str:
    """Return a worker's id, or raise InvalidRequestError."""
    if not 1 <= len(worker_id) <= _LONGEST_WORKER_ID or not worker_id.isprintable():
        raise InvalidRequestError(
            f"worker_id {worker_id[:200]!r}: it must be 1 to {_LONGEST_WORKER_ID} characters, none a control character"
        )
    return worker_id


def check_random_id(name: str, value: str) -> str:
    """Return an id that a client made up, or raise InvalidRequestError."""
    if not 1 <= len(value) <= _LONGEST_RANDOM_ID or not value.isprintable():
        raise InvalidRequestError(
            f"{name} {value[:80]!r}: it must be 1 to {_LONGEST_RANDOM_ID} random characters, none a control character"
        )
    return value


def present_arrays(spec: Spec, push: PushShape) -> tuple[bool, ...]:
    """Return for each array of the model whether the push has a gradient for it.

    Raises:
        PushRejectedError: dtype, names, shapes or the declared size do not fit the model.
    """
    if push.dtype != convert.dtype_to_proto(spec.dtype):
        raise PushRejectedError(f"dtype={push.dtype}: model {spec.name!r} has {spec.dtype}; convert the gradients")
    if push.tensors is spec.tensors and not push.absent:
        _check_size(spec, spec.element_count, push.total_bytes)
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
    _check_size(spec, sum(tensor.size for tensor in spec.tensors if tensor.name in given), push.total_bytes)
    return tuple(tensor.name in given for tensor in spec.tensors)


def _check_size(spec: Spec, element_count: int, total_bytes: int) -> None:
    needed = element_count * spec.numpy_dtype.itemsize
    if total_bytes != needed:
        raise PushRejectedError(f"total_bytes={total_bytes}: these arrays have {needed} bytes of {spec.dtype}")


def _given_shapes(spec: Spec, push: PushShape) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the payload's arrays, once every array of the model is named exactly once."""
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
    return {tensor.name: tuple(tensor.shape) for tensor in push.tensors}


def _some(names: Iterable[str]) -> str:
    """Return a few names, quoted, for a message."""
    listed = list(names)
    text = ", ".join(repr(name[:80]) for name in listed[:5])
    return text + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _check_tensors(messages: Sequence[pb.TensorSpec], itemsize: int) -> tuple[Tensor, ...]:
    check_arrays(messages)
    tensors = tuple(Tensor(message.name, tuple(message.shape)) for message in messages)
    if not tensors:
        raise InvalidRequestError("tensors is empty: a model has at least one array")
    if len(json.dumps([tensor.name for tensor in tensors])) > _LONGEST_NAMES:
        raise InvalidRequestError(f"the arrays' names take more than {_LONGEST_NAMES} characters: use shorter ones")
    names: set[str] = set()
    for tensor in tensors:
        if not 1 <= len(tensor.name) <= _LONGEST_TENSOR_NAME or not tensor.name.isprintable():
            raise InvalidRequestError(
                f"array name {tensor.name[:300]!r}: it must be 1 to {_LONGEST_TENSOR_NAME} printable characters"
            )
        if tensor.name in names:
            raise InvalidRequestError(f"array name {tensor.name!r} is given twice: names must differ")
        names.add(tensor.name)
    if sum(tensor.size for tensor in tensors) * itemsize >= _MOST_BYTES or any(
        extent >= _MOST_BYTES for tensor in tensors for extent in tensor.shape
    ):
        raise InvalidRequestError("the arrays together are larger than 2**62 bytes, which no machine can hold")
    return tensors
