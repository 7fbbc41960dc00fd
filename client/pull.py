"""One pull: its tries, and the received parameters. May import `numba_adam.ps` and its neighbours here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

from google.protobuf.message import Message

from numba_adam.client.info import durability_name
from numba_adam.client.model_arrays import ModelArrays, Parameters
from numba_adam.client.progress import Progress
from numba_adam.client.session import Session
from numba_adam.client.transfer import Download
from numba_adam.client.transport.connection import Connection
from numba_adam.client.transport.retry import Deadline
from numba_adam.errors import ConfigurationError, CorruptTransferError, InvalidRequestError, RewoundError
from numba_adam.ps.checksum import SUPPORTED, XXH3_64
from numba_adam.ps.errors import detail_of
from numba_adam.ps.transfer import receive
from numba_adam.ps.v1.model_pb2 import StatePoint
from numba_adam.ps.v1.parameter_service_pb2 import PullHeader, PullRequest


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
    out: Parameters | None,
    deadline: Deadline,
) -> Pulled:
    """Pull parameters that are at least as new as `min_version`, into `out` or into new arrays.

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
        )
        with closing(connection.pull(request, timeout_seconds)) as messages:
            return read_parameters(messages, model_arrays, out, report)

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
    session.pulled(pulled.state)
    return pulled


def read_parameters(
    messages: Iterator[Any], model_arrays: ModelArrays, out: Parameters | None, report: Progress
) -> Pulled:
    """Read header, chunks and trailer; return the parameters.

    Raises:
        CorruptTransferError: the bytes changed on the way; the contents of `out` are then undefined.
        InvalidRequestError: the model is not the one that this handle opened.
        ConfigurationError: this version does not know a value in the answer.
        ServiceError: the call failed.
    """
    header = _header(messages, model_arrays)
    if out is None:
        flat, parameters = model_arrays.allocate()
        download = Download([flat], header.total_bytes, header.checksum_kind, report)
    else:
        parameters = out
        download = Download(parameters.values(), header.total_bytes, header.checksum_kind, report)
    receive(messages, download)
    return Pulled(parameters, header.state)


def _header(messages: Iterator[Any], model_arrays: ModelArrays) -> PullHeader:
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
    if header.total_bytes != model_arrays.total_bytes:
        raise InvalidRequestError(
            f"expected {model_arrays.total_bytes} bytes of parameters, got {header.total_bytes}: the model was "
            "deleted and created again; open it again"
        )
    return header
