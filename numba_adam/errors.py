"""Every error this project raises, as one tree; each is also the builtin error a caller would expect.

    NumbaAdamError
    ├── ArrayError                     an array that cannot be used as it is
    │   ├── ShapeError                 (ValueError)
    │   ├── DtypeError                 (TypeError)
    │   ├── LayoutError                (ValueError)   not C-contiguous, not aligned, not native byte order
    │   ├── ReadOnlyError              (ValueError)
    │   ├── OverlapError               (ValueError)
    │   └── UnsupportedArrayError      (TypeError)    nothing that can be borrowed
    ├── CudaUnavailableError           (ImportError)  no CUDA package, or no GPU
    ├── HyperparameterError            (ValueError)
    ├── ImmutableError                 (AttributeError)   what was fixed when an optimizer was made
    ├── NamesError                     (ValueError)   gradients for arrays that are not there, or missing ones
    ├── StateDictError                 (ValueError)
    └── ServiceError                   the parameter server, on either side of the wire
        ├── ConfigurationError         (ValueError)   server or client settings
        ├── ModelNotFoundError         (LookupError)
        ├── ModelExistsError           (ValueError)
        ├── PushRejectedError          (ValueError)   the push itself is wrong; sending it again cannot help
        │   └── NonFiniteError         a NaN or an infinity in the gradients
        ├── InvalidRequestError        (ValueError)   a request the server cannot make sense of
        ├── SequenceError              (ValueError)   a sequence number too old or too far ahead
        │   └── SequenceReusedError    the number has been answered, for a push of other content
        ├── SessionFencedError         a newer session of the same worker has taken over
        ├── SessionUnknownError        no session of that worker is open
        ├── PushInProgressError        the same push is being received on another stream
        ├── RewoundError               the state this was meant for was rolled back
        ├── CorruptTransferError       (OSError)      the checksum of a transfer does not match
        ├── SnapshotError              (OSError)      a snapshot could not be written
        │   └── CorruptSnapshotError   a damaged snapshot file
        ├── BudgetExceededError        (MemoryError)  the server's memory budget is taken; try again later
        │   └── TransferTooLargeError  larger than the whole budget; trying again cannot help
        ├── ServerUnavailableError     (ConnectionError)
        ├── DeadlineExceededError      (TimeoutError)
        └── InternalServerError        (RuntimeError) a bug of ours

A message says what was given, what is needed and what to do. This file may import nothing.
"""


class NumbaAdamError(Exception):
    """The root: `except NumbaAdamError` catches everything this project raises on purpose."""


class ArrayError(NumbaAdamError):
    """An array that cannot be used as it is."""


class ShapeError(ArrayError, ValueError):
    """An array's shape differs from the one needed."""


class DtypeError(ArrayError, TypeError):
    """An array's dtype is not supported, or differs from its parameter's."""


class LayoutError(ArrayError, ValueError):
    """An array's memory is not C-contiguous, not aligned or not in native byte order."""


class ReadOnlyError(ArrayError, ValueError):
    """An array that must be updated in place is read-only."""


class OverlapError(ArrayError, ValueError):
    """Two arrays that must be separate share memory."""


class UnsupportedArrayError(ArrayError, TypeError):
    """An object that offers no way to borrow its memory."""


class CudaUnavailableError(NumbaAdamError, ImportError):
    """No CUDA package can be imported, or there is no GPU; the message says what to install."""


class HyperparameterError(NumbaAdamError, ValueError):
    """A hyperparameter is out of range, unknown or of the wrong type."""


class ImmutableError(NumbaAdamError, AttributeError):
    """Something that was fixed when the optimizer was made, or that nothing would read; the message says what to do."""


class NamesError(NumbaAdamError, ValueError):
    """Gradients were given for arrays the optimizer does not have, or are missing for arrays it has."""


class StateDictError(NumbaAdamError, ValueError):
    """A state dict does not fit the optimizer, or cannot be converted."""


class ServiceError(NumbaAdamError):
    """The parameter server, on either side of the wire."""

    detail: object = None
    """What came, or will go, with it beside the message; `numba_adam.ps.errors.detail_of` returns it as a message."""


class ConfigurationError(ServiceError, ValueError):
    """A setting of the server or the client is missing, unknown or unsafe."""


class ModelNotFoundError(ServiceError, LookupError):
    """The server has no model of that name."""


class ModelExistsError(ServiceError, ValueError):
    """The server has a model of that name already; the message names what differs."""


class PushRejectedError(ServiceError, ValueError):
    """The push is wrong in itself (names, shapes, dtype, values); sending it again cannot help."""


class NonFiniteError(PushRejectedError):
    """A gradient holds a NaN or an infinity; the message names the array and the element."""


class InvalidRequestError(ServiceError, ValueError):
    """A request that the server cannot make sense of."""


class SequenceError(ServiceError, ValueError):
    """A sequence number too old for its answer to be kept, or too far ahead."""


class SequenceReusedError(SequenceError):
    """A sequence number that was answered came again with other content; this push was not applied."""


class SessionFencedError(ServiceError):
    """A newer session of the same worker has taken over; this one may not push any more."""


class SessionUnknownError(ServiceError):
    """No session of that worker is open; the client opens one by itself."""


class PushInProgressError(ServiceError):
    """The same push is being received on another stream; try again shortly."""


class RewoundError(ServiceError):
    """The state that a request was meant for was rolled back by a crash of the server."""


class CorruptTransferError(ServiceError, OSError):
    """The bytes that arrived are not the bytes that were sent; sending them again may help."""


class SnapshotError(ServiceError, OSError):
    """A snapshot could not be written or read; the message says which, and why."""


class CorruptSnapshotError(SnapshotError):
    """A snapshot file is damaged; the message names the file and where."""


class BudgetExceededError(ServiceError, MemoryError):
    """The server's memory budget is taken; try again later."""


class TransferTooLargeError(BudgetExceededError):
    """The transfer alone is larger than the server's whole memory budget; trying again cannot help."""


class ServerUnavailableError(ServiceError, ConnectionError):
    """The server could not be reached."""


class DeadlineExceededError(ServiceError, TimeoutError):
    """The server did not answer within the time given."""


class InternalServerError(ServiceError, RuntimeError):
    """The server met an error of its own; the message and the server's log say which."""
