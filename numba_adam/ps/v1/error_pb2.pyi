from numba_adam.ps.v1 import model_pb2 as _model_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_INVALID_REQUEST: _ClassVar[Reason]
    REASON_MODEL_NOT_FOUND: _ClassVar[Reason]
    REASON_MODEL_EXISTS: _ClassVar[Reason]
    REASON_PUSH_MISMATCH: _ClassVar[Reason]
    REASON_NON_FINITE: _ClassVar[Reason]
    REASON_CORRUPT_TRANSFER: _ClassVar[Reason]
    REASON_REWOUND: _ClassVar[Reason]
    REASON_SESSION_FENCED: _ClassVar[Reason]
    REASON_SESSION_UNKNOWN: _ClassVar[Reason]
    REASON_SEQUENCE: _ClassVar[Reason]
    REASON_BUDGET: _ClassVar[Reason]
    REASON_TOO_LARGE: _ClassVar[Reason]
    REASON_IN_PROGRESS: _ClassVar[Reason]
    REASON_STOPPING: _ClassVar[Reason]
    REASON_INTERNAL: _ClassVar[Reason]
    REASON_SNAPSHOT: _ClassVar[Reason]
    REASON_SEQUENCE_REUSED: _ClassVar[Reason]
    REASON_UNAUTHENTICATED: _ClassVar[Reason]
    REASON_PERMISSION_DENIED: _ClassVar[Reason]
    REASON_RATE_LIMITED: _ClassVar[Reason]
    REASON_GRADIENT_TOO_LARGE: _ClassVar[Reason]
    REASON_DISK_FULL: _ClassVar[Reason]
    REASON_SETTINGS_CHANGED: _ClassVar[Reason]
    REASON_HELD: _ClassVar[Reason]
    REASON_LATE: _ClassVar[Reason]
    REASON_ROUND_ABORTED: _ClassVar[Reason]
    REASON_AHEAD: _ClassVar[Reason]
REASON_UNSPECIFIED: Reason
REASON_INVALID_REQUEST: Reason
REASON_MODEL_NOT_FOUND: Reason
REASON_MODEL_EXISTS: Reason
REASON_PUSH_MISMATCH: Reason
REASON_NON_FINITE: Reason
REASON_CORRUPT_TRANSFER: Reason
REASON_REWOUND: Reason
REASON_SESSION_FENCED: Reason
REASON_SESSION_UNKNOWN: Reason
REASON_SEQUENCE: Reason
REASON_BUDGET: Reason
REASON_TOO_LARGE: Reason
REASON_IN_PROGRESS: Reason
REASON_STOPPING: Reason
REASON_INTERNAL: Reason
REASON_SNAPSHOT: Reason
REASON_SEQUENCE_REUSED: Reason
REASON_UNAUTHENTICATED: Reason
REASON_PERMISSION_DENIED: Reason
REASON_RATE_LIMITED: Reason
REASON_GRADIENT_TOO_LARGE: Reason
REASON_DISK_FULL: Reason
REASON_SETTINGS_CHANGED: Reason
REASON_HELD: Reason
REASON_LATE: Reason
REASON_ROUND_ABORTED: Reason
REASON_AHEAD: Reason

class ErrorDetail(_message.Message):
    __slots__ = ("reason", "sequence_recorded", "retry_after_milliseconds", "state", "epoch", "change")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_RECORDED_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    reason: Reason
    sequence_recorded: bool
    retry_after_milliseconds: int
    state: _model_pb2.StatePoint
    epoch: int
    change: int
    def __init__(self, reason: _Optional[_Union[Reason, str]] = ..., sequence_recorded: bool = ..., retry_after_milliseconds: _Optional[int] = ..., state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ..., epoch: _Optional[int] = ..., change: _Optional[int] = ...) -> None: ...
