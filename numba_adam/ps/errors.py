"""The error table of client and server: Reason in the protocol <-> exception class <-> gRPC status code.

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
"""The key of the serialised ErrorDetail in the trailing metadata."""

_LONGEST_MESSAGE_BYTES = 2000  # percent-encoded at most three times that; gRPC allows 8 KiB of metadata


class Row(NamedTuple):
    """One row of the table."""

    reason: int
    """A Reason."""

    error: type[ServiceError]
    """The exception class."""

    code: grpc.StatusCode
    """The gRPC status code."""


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
    Row(Reason.REASON_UNAUTHENTICATED, errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    Row(Reason.REASON_PERMISSION_DENIED, errors.AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    Row(Reason.REASON_DISK_FULL, errors.DiskFullError, grpc.StatusCode.UNAVAILABLE),
    Row(Reason.REASON_RATE_LIMITED, errors.RateLimitedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    Row(Reason.REASON_GRADIENT_TOO_LARGE, errors.GradientTooLargeError, grpc.StatusCode.INVALID_ARGUMENT),
    Row(Reason.REASON_SETTINGS_CHANGED, errors.SettingsChangedError, grpc.StatusCode.ABORTED),
    Row(Reason.REASON_HELD, errors.PushHeldError, grpc.StatusCode.UNAVAILABLE),
    Row(Reason.REASON_LATE, errors.LatePushError, grpc.StatusCode.FAILED_PRECONDITION),
    Row(Reason.REASON_ROUND_ABORTED, errors.RoundAbortedError, grpc.StatusCode.ABORTED),
    Row(Reason.REASON_AHEAD, errors.WorkerAheadError, grpc.StatusCode.UNAVAILABLE),
    # These have no reason of their own. A wrong setting is an invalid request, the status code alone reports a missed
    # deadline, only clients raise TlsError, and nothing raises the root class on purpose.
    Row(Reason.REASON_INVALID_REQUEST, errors.ConfigurationError, grpc.StatusCode.INVALID_ARGUMENT),
    Row(Reason.REASON_UNSPECIFIED, errors.DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED),
    Row(Reason.REASON_UNSPECIFIED, errors.TlsError, grpc.StatusCode.UNAVAILABLE),
    Row(Reason.REASON_INTERNAL, ServiceError, grpc.StatusCode.INTERNAL),
)

_TOO_LARGE = "message larger than max"  # gRPC's words; its status code alone would allow a retry

# The class for a status without our detail, which comes from gRPC, a proxy or another server.
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
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.AccessDeniedError,
}


def detail_of(error: BaseException) -> ErrorDetail | None:
    """Return the ErrorDetail of a received or outgoing exception; None if it has none."""
    detail = getattr(error, "detail", None)
    if isinstance(detail, Detail) and isinstance(error, ServiceError):
        return _encode(_row_of(error).reason, detail)
    return detail if isinstance(detail, ErrorDetail) else None


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str, ErrorDetail]:
    """Return a server's answer to an exception: status code, message and detail.

    An array or hyperparameter error means an invalid request. For other exceptions the message contains only the type:
    their text may be confidential, and only the server's log contains it.
    """
    if isinstance(error, ServiceError):
        row = _row_of(error)
        return row.code, _shorten(str(error)), detail_of(error) or _detail(row.reason)
    if isinstance(error, NumbaAdamError):
        return grpc.StatusCode.INVALID_ARGUMENT, _shorten(str(error)), _detail(Reason.REASON_INVALID_REQUEST)
    message = f"an internal error ({type(error).__name__}) occurred in the server; see the server's log"
    return grpc.StatusCode.INTERNAL, message, _detail(Reason.REASON_INTERNAL)


def from_rpc_error(error: grpc.RpcError) -> ServiceError:
    """Return the exception for a failed call, with the server's detail, if there is one, as `.detail`."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    message = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
    return from_status(code, message, _received_detail(error))


def from_status(code: grpc.StatusCode, message: str, detail: ErrorDetail | None) -> ServiceError:
    """Return the exception for a status, with its detail as `.detail`."""
    error_class = _class_of(detail, code)
    if detail is None and _TOO_LARGE in message:
        error_class = errors.TransferTooLargeError
    result = error_class(_explain(code, message) if detail is None else message)
    result.detail = detail
    return result


def _row_of(error: ServiceError) -> Row:
    """Return the row of an exception's class, or of its nearest base class in the table."""
    rows = {row.error: row for row in TABLE}
    return next(rows[cls] for cls in type(error).__mro__ if cls in rows)


def _detail(reason: int) -> ErrorDetail:
    return _encode(reason, Detail())


def _encode(reason: int, detail: Detail) -> ErrorDetail:
    """Return the message for a detail."""
    return ErrorDetail(
        reason=reason,  # type: ignore[arg-type]  # enums are plain numbers at run time
        sequence_recorded=detail.sequence_recorded,
        retry_after_milliseconds=detail.retry_after_milliseconds,
        state=None if detail.state is None else convert.state_to_proto(detail.state),
        epoch=detail.epoch,
        change=detail.change,
    )


def _class_of(detail: ErrorDetail | None, code: grpc.StatusCode) -> type[ServiceError]:
    """Return the exception class for a reason, or for the status code if this version does not know the reason."""
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
            except DecodeError:  # not our entry: use the status code
                return None
    return None


def _explain(code: grpc.StatusCode, message: str) -> str:
    """Return a message with the likely cause of a status that did not come from our server."""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return (
            f"{message}: the server at this address does not speak numba_adam.ps.v1; check the address and its version"
        )
    if _TOO_LARGE in message:
        return f"{message}: the message is too large; start the server with a larger --largest-message-bytes"
    return f"{message} ({code.name})"


def _shorten(message: str) -> str:
    """Shorten a message to fit into gRPC's trailing metadata."""
    raw = message.encode("utf-8", "replace")
    if len(raw) <= _LONGEST_MESSAGE_BYTES:
        return raw.decode()
    return raw[:_LONGEST_MESSAGE_BYTES].decode("utf-8", "ignore") + " ... (shortened)"
