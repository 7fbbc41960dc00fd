"""One pull: its tries, and the received parameters. May import `numba_adam.ps` and its neighbours here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message

from numba_adam.client.formats import common_narrow, write
from numba_adam.client.info import durability_name
from numba_adam.client.model_arrays import Array, ModelArrays, Parameters
from numba_adam.client.narrow import WideningDownload
from numba_adam.client.progress import Progress
from numba_adam.client.same_host import pull_on_same_host
from numba_adam.client.session import Session
from numba_adam.client.transfer import Download
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Deadline
from numba_adam.errors import ConfigurationError, CorruptTransferError, InvalidRequestError, RewoundError
from numba_adam.numerics.formats import Format, format_of
from numba_adam.ps.checksum import SUPPORTED, XXH3_64
from numba_adam.ps.convert import PAYLOAD_DTYPES
from numba_adam.ps.errors import detail_of
from numba_adam.ps.transfer import receive
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.ps.v1.parameter_service_pb2 import PullHeader, PullRequest

_NARROW_BYTES = 2


class Wanted(NamedTuple):
    """What a pull shall fill, and in which format the parameters shall travel."""

    out: Parameters | None = None
    """Arrays to fill; see `ModelArrays.direct`. None: new ones."""

    narrow: Format | None = None
    """The 16-bit format in which they travel; None: the model's dtype."""

    keeps_narrow: bool = False
    """Whether new arrays keep that format; otherwise they have the model's dtype."""

    @property
    def dtype_number(self) -> Any:
        """The protocol's number of the format; 0: the model's dtype."""
        return 0 if self.narrow is None else PAYLOAD_DTYPES[self.narrow.label]

    def fill(self, views: Parameters, pulled: Pulled) -> None:
        """Write what was pulled to these arrays, unless it was received there."""
        if pulled.parameters is not self.out:
            write(pulled.parameters, views)


PLAIN = Wanted()
"""New arrays in the model's dtype."""


def wanted_as(dtype: np.dtype[Any] | None, wire: Format | None) -> Wanted:
    """Return what a pull into new arrays asks for.

    Args:
        dtype: that of the arrays; None: the model's.
        wire: the format in which parameters of the model's dtype travel; None: the model's dtype.
    """
    narrow = None if dtype is None or dtype.itemsize != _NARROW_BYTES else format_of(dtype)
    return Wanted(narrow=wire if narrow is None else narrow, keeps_narrow=narrow is not None)


def wanted_in(out: Parameters | None, wire: Format | None) -> Wanted:
    """Return what a pull into these arrays asks for; None: into others, which are written afterwards."""
    narrow = None if not out else common_narrow(list(out.values()))
    return Wanted(out, wire if narrow is None else narrow)


class Pulled(NamedTuple):
    """All parameters of one version."""

    parameters: Parameters
    """The arrays, by name."""

    state: StatePoint
    """Their state and version."""


def pull(
    connection: Connection,
    session: Session,
    model_arrays: ModelArrays,
    *,
    min_version: int,
    wanted: Wanted,
    deadline: Deadline,
    average: bool = False,
) -> Pulled:
    """Pull parameters, or their average, that are at least as new as `min_version`.

    If the state of `min_version` no longer exists, that version cannot appear any more. The pull then returns the
    current parameters, and the session records the rewind for its listeners.
    """
    origin = session.origin
    report = connection.report(f"pull of model {session.model!r}")

    def attempt(timeout_seconds: float) -> Pulled:
        still_there = session.origin.state_id == origin.state_id
        request = PullRequest(
            model=session.model,
            min_version=min_version if still_there else 0,
            state_id=origin.state_id if still_there and min_version else "",
            checksum_kind=XXH3_64,  # type: ignore[arg-type]  # enums are plain numbers at run time
            dtype=wanted.dtype_number,
            average=average,
        )
        shared = pull_on_same_host(connection, request, model_arrays, wanted.out, timeout_seconds)
        if shared is not None:
            return Pulled(*shared)
        with closing(connection.pull(request, timeout_seconds)) as messages:
            return read_parameters(messages, model_arrays, wanted, report)

    def attempt_through_a_rewind(timeout_seconds: float) -> Pulled:
        try:
            return attempt(timeout_seconds)
        except RewoundError as error:
            detail = detail_of(error)
            if detail is None or not detail.state.state_id:
                raise
            session.notice(detail.state)
            return attempt(deadline.remaining_seconds())

    pulled = connection.retry(attempt_through_a_rewind, what=f"pull of model {session.model!r}", deadline=deadline)
    if average:  # gradients are computed from parameters, and their version is that of the last pull
        session.notice(pulled.state)
    else:
        session.pulled(pulled.state)
    return pulled


def read_parameters(messages: Iterator[Any], model_arrays: ModelArrays, wanted: Wanted, report: Progress) -> Pulled:
    """Read header, chunks and trailer; return the parameters.

    They have the format that was asked for, or the model's dtype: a server of an earlier release knows no other.

    Raises:
        CorruptTransferError: the bytes changed on the way; the contents of `out` are then undefined.
        InvalidRequestError: the model is not the one that this handle opened.
        ConfigurationError: this version does not know a value in the answer.
        ServiceError: the call failed.
    """
    header = _header(messages)
    sent = _format_of(header, model_arrays, wanted)
    flat, parameters = _places(model_arrays, wanted, sent)
    arrays = list(map(_sendable, [flat] if flat is not None else parameters.values()))
    size, kind = header.total_bytes, header.checksum_kind
    if sent is None or all(array.dtype.itemsize == sent.item_bytes for array in arrays):
        download = Download(arrays, size, kind, report)
    else:
        download = WideningDownload(arrays, sent, size, kind, report)
    receive(messages, download)
    return Pulled(parameters, header.state)


def _places(model_arrays: ModelArrays, wanted: Wanted, sent: Format | None) -> tuple[Array | None, Parameters]:
    """Return the arrays that parameters of this format are written to, and the flat vector of new ones."""
    out = wanted.out
    if out is not None and (sent is not None or model_arrays.is_plain(out)):
        return None, out
    return model_arrays.allocate(sent.dtype if sent is not None and wanted.keeps_narrow else None)


def _sendable(array: Array) -> Array:
    """Return an array with a dtype that Python's buffers know: that of ml_dtypes is not among them."""
    return array.view(np.uint16) if array.dtype.itemsize == _NARROW_BYTES else array


def _format_of(header: PullHeader, model_arrays: ModelArrays, wanted: Wanted) -> Format | None:
    """Return the 16-bit format of a payload; None: it has the model's dtype."""
    sent = None
    if wanted.narrow is not None and header.dtype == wanted.dtype_number:
        sent = wanted.narrow
    elif header.dtype not in (0, PAYLOAD_DTYPES[model_arrays.dtype.name]):
        raise ConfigurationError(
            f"the parameters have dtype={header.dtype}, expected {wanted.dtype_number} or the model's "
            f"{PAYLOAD_DTYPES[model_arrays.dtype.name]}; update numba-adam on this machine"
        )
    expected = model_arrays.element_count * (model_arrays.dtype.itemsize if sent is None else sent.item_bytes)
    if header.total_bytes != expected:
        raise InvalidRequestError(
            f"expected {expected} bytes of parameters, got {header.total_bytes}: the model was deleted and created "
            "again; open it again"
        )
    return sent


def _header(messages: Iterator[Any]) -> PullHeader:
    first = next(messages, None)
    if not isinstance(first, Message) or first.WhichOneof("part") != "header":
        raise CorruptTransferError("the stream of parameters does not begin with a header; pull again")
    header: PullHeader = first.header  # type: ignore[attr-defined]  # every transfer message has one
    durability_name(header.state.durability, "the parameters' state")
    if header.checksum_kind not in SUPPORTED:
        raise ConfigurationError(
            f"the parameters have checksum_kind={header.checksum_kind}, expected one of {SUPPORTED}; update numba-adam "
            "on this machine"
        )
    return header
