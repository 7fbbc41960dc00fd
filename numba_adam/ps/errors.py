"""The one error table: Reason on the wire <-> exception class <-> gRPC status code, used by both ends.

A server turns an exception into a status with `to_status`; the client turns the status back into an exception of the
same class with `from_rpc_error`. May import grpc, the generated messages and NumPy; never Numba.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError

from numba_adam import errors
from numba_adam.errors import NumbaAdamError, ServiceError
from numba_adam.ps import convert
from numba_adam.ps.detail import Detail
from numba_adam.ps.v1.error_pb2 import ErrorDetail, Reason

DETAIL_KEY = "numba-adam-error-bin"
"""The trailing metadata entry that carries the serialised ErrorDetail."""

_LONGEST_MESSAGE_BYTES = 2000  # percent-encoded three times that, beside the detail: within gRPC's 8 KiB of metadata


class Row(NamedTuple):
    """One line of the table."""

    reason: int
    """A Reason."""

    error: type[ServiceError]
    """The exception class."""

    code: grpc.StatusCode
    """The status code it travels under."""


TABLE: tuple[Row, ...] = (
    Row(Reason.REASON_INVALID_REQUEST, errors.InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    Row(Reason.REASON_MODEL_NOT_FOUND, errors.ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
    Row(Reason.REASON_MODEL_EXISTS, errors.ModelExistsError, grpc.StatusCode.ALREADY_EXISTS),
    Row(Reason.REASON_PUSH_MISMATCH, errors.PushRejectedError, grpc.StatusCode.INVALID_ARGUMENT),
    Row(Reason.REASON_NON_FINITE, errors.NonFiniteError, grpc.StatusCode.INVALID_ARGUMENT),
    Row(Reason.REASON_CORRUPT_TRANSFER, errors.CorruptTransferError, grpc.StatusCode.DATA_LOSS),
    Row(Reason.REASON_REWOUND, errors.RewoundError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Reason.REASON_SESSION_FENCED, errors.SessionFencedError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Reason.REASON_SESSION_UNKNOWN, errors.SessionUnknownError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Reason.REASON_SEQUENCE, errors.SequenceError, grpc.StatusCode.OUT_OF_RANGE),
    Row(Reason.REASON_BUDGET, errors.BudgetExceededError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    Row(Reason.REASON_TOO_LARGE, errors.TransferTooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    Row(Reason.REASON_IN_PROGRESS, errors.PushInProgressError, grpc.StatusCode.ABORTED),
    Row(Reason.REASON_STOPPING, errors.ServerUnavailableError, grpc.StatusCode.UNAVAILABLE),
    Row(Reason.REASON_INTERNAL, errors.InternalServerError, grpc.StatusCode.INTERNAL),
    Row(Reason.REASON_SNAPSHOT, errors.SnapshotError, grpc.StatusCode.INTERNAL),
    Row(Reason.REASON_SNAPSHOT, errors.CorruptSnapshotError, grpc.StatusCode.DATA_LOSS),
    Row(Reason.REASON_SEQUENCE_REUSED, errors.SequenceReusedError, grpc.StatusCode.INVALID_ARGUMENT),
    # These have no reason of their own: a wrong setting is a request that makes no sense, a deadline that passes is
    # said by the code alone, and the bare root is never raised on purpose.
    Row(Reason.REASON_INVALID_REQUEST, errors.ConfigurationError, grpc.StatusCode.INVALID_ARGUMENT),
    Row(Reason.REASON_UNSPECIFIED, errors.DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED),
    Row(Reason.REASON_INTERNAL, ServiceError, grpc.StatusCode.INTERNAL),
)

_TOO_LARGE = "message larger than max"  # how gRPC words it; its status alone would mean that it may fit later

# What a status means that carries no detail of ours: it was made by gRPC itself, a proxy or another server.
_BY_CODE: dict[grpc.StatusCode, type[ServiceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.BudgetExceededError,
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnavailableError,
    grpc.StatusCode.CANCELLED: errors.ServerUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    grpc.StatusCode.INTERNAL: errors.InternalServerError,
    grpc.StatusCode.UNKNOWN: errors.InternalServerError,
    grpc.StatusCode.DATA_LOSS: errors.CorruptTransferError,
    grpc.StatusCode.UNIMPLEMENTED: errors.ConfigurationError,
    grpc.StatusCode.UNAUTHENTICATED: errors.ConfigurationError,
    grpc.StatusCode.PERMISSION_DENIED: errors.ConfigurationError,
}


def detail_of(error: BaseException) -> ErrorDetail | None:
    """Return the ErrorDetail that came, or will go, with an exception; None where there is none."""
    detail = getattr(error, "detail", None)
    if isinstance(detail, Detail) and isinstance(error, ServiceError):
        return _encode(_row_of(error).reason, detail)
    return detail if isinstance(detail, ErrorDetail) else None


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str, ErrorDetail]:
    """Return what a server answers for an exception: status code, message and detail.

    An array or hyperparameter error is a request that makes no sense. What is no error of ours is reported by its
    type alone: its text may hold what the caller must not see, and belongs into the server's log.
    """
    if isinstance(error, ServiceError):
        row = _row_of(error)
        return row.code, _shorten(str(error)), detail_of(error) or _detail(row.reason)
    if isinstance(error, NumbaAdamError):
        return grpc.StatusCode.INVALID_ARGUMENT, _shorten(str(error)), _detail(Reason.REASON_INVALID_REQUEST)
    message = f"the server met an error of its own ({type(error).__name__}); its log says more"
    return grpc.StatusCode.INTERNAL, message, _detail(Reason.REASON_INTERNAL)


def from_rpc_error(error: grpc.RpcError) -> ServiceError:
    """Return the exception that a failed call means, with the server's detail on `.detail` where it sent one."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    message = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
    detail = _received_detail(error)
    error_class = _class_of(detail, code)
    if detail is None and _TOO_LARGE in message:
        error_class = errors.TransferTooLargeError
    result = error_class(_explain(code, message) if detail is None else message)
    result.detail = detail
    return result


def _row_of(error: ServiceError) -> Row:
    """Return the line of an exception's class, or of the nearest class above it."""
    rows = {row.error: row for row in TABLE}
    return next(rows[cls] for cls in type(error).__mro__ if cls in rows)


def _detail(reason: int) -> ErrorDetail:
    return _encode(reason, Detail())


def _encode(reason: int, detail: Detail) -> ErrorDetail:
    """Return the message that carries a detail."""
    return ErrorDetail(
        reason=reason,  # type: ignore[arg-type]  # enums are plain numbers at run time
        sequence_recorded=detail.sequence_recorded,
        retry_after_milliseconds=detail.retry_after_milliseconds,
        state=None if detail.state is None else convert.state_to_proto(detail.state),
        epoch=detail.epoch,
    )


def _class_of(detail: ErrorDetail | None, code: grpc.StatusCode) -> type[ServiceError]:
    """Return the class for a reason; for one that this version does not know, the code decides."""
    if detail is not None and detail.reason:
        rows = [row for row in TABLE if row.reason == detail.reason]
        exact = [row for row in rows if row.code is code]
        if rows:
            return (exact or rows)[0].error
    return _BY_CODE.get(code, ServiceError)


def _received_detail(error: grpc.RpcError) -> ErrorDetail | None:
    """Return the ErrorDetail in a failed call's trailing metadata, if there is a readable one."""
    if not isinstance(error, grpc.Call):
        return None
    for key, value in error.trailing_metadata() or ():
        if key == DETAIL_KEY and isinstance(value, bytes):
            try:
                return ErrorDetail.FromString(value)
            except DecodeError:  # somebody else's entry: the code says what it can
                return None
    return None


def _explain(code: grpc.StatusCode, message: str) -> str:
    """Say what a status that did not come from our server is likely to mean."""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return (
            f"{message}: the server at this address does not speak numba_adam.ps.v1; check the address and its version"
        )
    if _TOO_LARGE in message:
        return f"{message}: its receiver takes no message so large; give the server a larger --largest-message-bytes"
    return f"{message} ({code.name})"


def _shorten(message: str) -> str:
    """Keep a message within what gRPC's trailing metadata can hold."""
    raw = message.encode("utf-8", "replace")
    if len(raw) <= _LONGEST_MESSAGE_BYTES:
        return raw.decode()
    return raw[:_LONGEST_MESSAGE_BYTES].decode("utf-8", "ignore") + " ... (shortened)"
