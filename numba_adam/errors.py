"""Every error that this project raises, as one tree. Most are also the builtin error that a caller expects.

    NumbaAdamError
    ├── ArrayError                     an array that does not fit
    │   ├── ShapeError                 (ValueError)
    │   ├── DtypeError                 (TypeError)
    │   ├── LayoutError                (ValueError)   not C-contiguous, not aligned, not native byte order
    │   ├── ReadOnlyError              (ValueError)
    │   ├── OverlapError               (ValueError)
    │   └── UnsupportedArrayError      (TypeError)    an object whose memory cannot be borrowed
    ├── CudaUnavailableError           (ImportError)  no CUDA package, or no GPU
    ├── HyperparameterError            (ValueError)
    ├── ImmutableError                 (AttributeError)   an attribute that cannot be set
    ├── NamesError                     (ValueError)   an unknown name, or a missing gradient
    ├── StateDictError                 (ValueError)
    └── ServiceError                   the parameter server, on either side of the wire
        ├── ConfigurationError         (ValueError)   server or client settings
        ├── ModelNotFoundError         (LookupError)
        ├── ModelExistsError           (ValueError)
        ├── PushRejectedError          (ValueError)   an invalid push; a retry cannot succeed
        │   ├── NonFiniteError         a NaN or an infinity in the gradients
        │   ├── GradientTooLargeError  a norm or an element beyond the model's guards
        │   ├── LatePushError          the round of the push is closed (mode "sync"), or the push is too stale
        │   └── RoundAbortedError      the round of the push had too few gradients at its timeout
        ├── InvalidRequestError        (ValueError)   an invalid request
        ├── SequenceError              (ValueError)   a sequence number too old or too far ahead
        │   └── SequenceReusedError    the number belongs to a push with other content
        ├── SessionFencedError         a newer session of the same worker has taken over
        ├── SessionUnknownError        no session of that worker is open
        ├── PushInProgressError        the same push is being received on another stream
        ├── SettingsChangedError       the settings were changed since the caller looked at them
        ├── PushHeldError              the push waits in its round; the client waits for its answer by itself
        ├── WorkerAheadError           the worker is too many clocks ahead (mode "ssp"); the client tries again
        ├── RewoundError               the request's state was rolled back or deleted
        ├── CorruptTransferError       (OSError)      the checksum of a transfer does not match
        ├── SnapshotError              (OSError)      a snapshot could not be written or read
        │   └── CorruptSnapshotError   a damaged snapshot file
        ├── BudgetExceededError        (MemoryError)  the memory budget of the server is used up; retry later
        │   └── TransferTooLargeError  larger than the whole budget; a retry cannot succeed
        ├── RateLimitedError           too many pushes or bytes per second; retry later
        ├── AccessDeniedError          (PermissionError)   the token of the call does not allow it
        │   └── UnauthenticatedError   the call has no token, or one that is not valid
        ├── ServerUnavailableError     (ConnectionError)
        │   ├── DiskFullError          the server's disk has no room for the push; retry later
        │   └── TlsError               client and server cannot agree on TLS; a retry cannot succeed
        ├── DeadlineExceededError      (TimeoutError)
        └── InternalServerError        (RuntimeError) a bug in the server

A message names the argument, the expected value, the given value and what to do. This file imports nothing.
"""


class NumbaAdamError(Exception):
    """The base class of all errors that this project raises on purpose."""


class ArrayError(NumbaAdamError):
    """An array does not fit: its shape, dtype, layout or memory."""


class ShapeError(ArrayError, ValueError):
    """An array does not have the required shape."""


class DtypeError(ArrayError, TypeError):
    """An array's dtype is not supported, or it differs from the dtype of its parameter."""


class LayoutError(ArrayError, ValueError):
    """An array's memory is not C-contiguous, not aligned or not in native byte order."""


class ReadOnlyError(ArrayError, ValueError):
    """An array is read-only and cannot be updated in place."""


class OverlapError(ArrayError, ValueError):
    """Two arrays that must be separate share memory."""


class UnsupportedArrayError(ArrayError, TypeError):
    """An object is not an array whose memory can be borrowed."""


class CudaUnavailableError(NumbaAdamError, ImportError):
    """No CUDA package can be imported, or there is no GPU; the message says what to install."""


class HyperparameterError(NumbaAdamError, ValueError):
    """A hyperparameter is out of range, unknown or of the wrong type."""


class ImmutableError(NumbaAdamError, AttributeError):
    """An attribute or key cannot be set: it is fixed, or setting it has no effect. The message says what to do."""


class NamesError(NumbaAdamError, ValueError):
    """A name is unknown, or the gradient of a parameter is missing."""


class StateDictError(NumbaAdamError, ValueError):
    """A state dict does not fit the optimizer, or cannot be converted."""


class ServiceError(NumbaAdamError):
    """The base class of the errors of the parameter server and its client."""

    detail: object = None
    """The detail that travels with the error. `numba_adam.ps.errors.detail_of` returns it as an ErrorDetail message."""


class ConfigurationError(ServiceError, ValueError):
    """A setting of the server or the client is missing, unknown or unsafe."""


class ModelNotFoundError(ServiceError, LookupError):
    """The server has no model with that name."""


class ModelExistsError(ServiceError, ValueError):
    """The server already has a model with that name. The message names the differences."""


class PushRejectedError(ServiceError, ValueError):
    """The push is invalid: its names, shapes, dtype or values. A retry cannot succeed."""


class NonFiniteError(PushRejectedError):
    """A gradient has a NaN or an infinity. The message names the array and the element."""


class GradientTooLargeError(PushRejectedError):
    """The norm or an element of the gradients exceeds the model's guards. The message says which, and by how much."""


class LatePushError(PushRejectedError):
    """The round of the push is closed, or the push is too stale. The client returns this as an `Ack`."""


class RoundAbortedError(PushRejectedError):
    """The round had too few gradients at its timeout: none was applied. The client returns this as an `Ack`."""


class InvalidRequestError(ServiceError, ValueError):
    """The request is invalid: a field is missing, or a value is out of range."""


class SequenceError(ServiceError, ValueError):
    """The sequence number is too far ahead, or so old that the server no longer has its answer."""


class SequenceReusedError(SequenceError):
    """An earlier push with other content has the same sequence number. This push was not applied."""


class SessionFencedError(ServiceError):
    """The same worker has opened a newer session. This session can no longer push."""


class SessionUnknownError(ServiceError):
    """The worker has no open session. The client opens one by itself."""


class PushInProgressError(ServiceError):
    """The server is receiving the same push on another stream. Retry after a short time."""


class SettingsChangedError(ServiceError):
    """The settings of the model were changed since the caller looked at them. Look again, then decide."""


class PushHeldError(ServiceError):
    """The server has the push, and its round is still open. The client waits for the answer by itself."""


class WorkerAheadError(ServiceError):
    """The worker is too many clocks ahead of the slowest. Nothing was recorded; the client tries again by itself."""


class RewoundError(ServiceError):
    """The state that the request names was rolled back by a server crash, or its model was deleted."""


class CorruptTransferError(ServiceError, OSError):
    """The received bytes do not match their checksum. A retry may succeed."""


class SnapshotError(ServiceError, OSError):
    """A snapshot could not be written or read. The message says which of the two, and why."""


class CorruptSnapshotError(SnapshotError):
    """A snapshot file is damaged. The message names the file and the place."""


class BudgetExceededError(ServiceError, MemoryError):
    """The server's memory budget is used up. Retry later."""


class TransferTooLargeError(BudgetExceededError):
    """The transfer alone is larger than the server's whole memory budget. A retry cannot succeed."""


class RateLimitedError(ServiceError):
    """The token or the model allows fewer pushes or bytes per second. Retry later; the message names the limit."""


class AccessDeniedError(ServiceError, PermissionError):
    """The token of the call does not allow it. The message says which scope it needs."""


class UnauthenticatedError(AccessDeniedError):
    """The call has no token, or one that is unknown, revoked or expired."""


class ServerUnavailableError(ServiceError, ConnectionError):
    """The server could not be reached."""


class DiskFullError(ServerUnavailableError):
    """The server's disk has no room to keep the push, which changed nothing. Retry later."""


class TlsError(ServerUnavailableError):
    """Client and server cannot agree on TLS. The message says what is wrong at which end, and what to do."""


class DeadlineExceededError(ServiceError, TimeoutError):
    """The server did not answer before the deadline."""


class InternalServerError(ServiceError, RuntimeError):
    """The server failed because of a bug. Its log has the details."""
