from numba_adam.ps.v1 import model_pb2 as _model_pb2
from numba_adam.ps.v1 import transfer_pb2 as _transfer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateModelHeader(_message.Message):
    __slots__ = ("spec", "request_id", "exist_ok", "total_bytes", "checksum_kind", "after_state_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXIST_OK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_KIND_FIELD_NUMBER: _ClassVar[int]
    AFTER_STATE_ID_FIELD_NUMBER: _ClassVar[int]
    spec: _model_pb2.ModelSpec
    request_id: str
    exist_ok: bool
    total_bytes: int
    checksum_kind: _transfer_pb2.ChecksumKind
    after_state_id: str
    def __init__(self, spec: _Optional[_Union[_model_pb2.ModelSpec, _Mapping]] = ..., request_id: _Optional[str] = ..., exist_ok: bool = ..., total_bytes: _Optional[int] = ..., checksum_kind: _Optional[_Union[_transfer_pb2.ChecksumKind, str]] = ..., after_state_id: _Optional[str] = ...) -> None: ...

class CreateModelRequest(_message.Message):
    __slots__ = ("header", "chunk", "trailer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    header: CreateModelHeader
    chunk: _transfer_pb2.TensorChunk
    trailer: _transfer_pb2.TransferTrailer
    def __init__(self, header: _Optional[_Union[CreateModelHeader, _Mapping]] = ..., chunk: _Optional[_Union[_transfer_pb2.TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[_transfer_pb2.TransferTrailer, _Mapping]] = ...) -> None: ...

class CreateModelResponse(_message.Message):
    __slots__ = ("model", "created")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    model: _model_pb2.Model
    created: bool
    def __init__(self, model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ..., created: bool = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _model_pb2.Model
    def __init__(self, model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_model_pb2.Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[_model_pb2.Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GroupChange(_message.Message):
    __slots__ = ("group", "lr", "schedule", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay", "eps_mode", "maximize")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    DECOUPLED_WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    EPS_MODE_FIELD_NUMBER: _ClassVar[int]
    MAXIMIZE_FIELD_NUMBER: _ClassVar[int]
    group: int
    lr: float
    schedule: _model_pb2.Schedule
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled_weight_decay: bool
    eps_mode: _model_pb2.EpsMode
    maximize: bool
    def __init__(self, group: _Optional[int] = ..., lr: _Optional[float] = ..., schedule: _Optional[_Union[_model_pb2.Schedule, _Mapping]] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., weight_decay: _Optional[float] = ..., decoupled_weight_decay: bool = ..., eps_mode: _Optional[_Union[_model_pb2.EpsMode, str]] = ..., maximize: bool = ...) -> None: ...

class SettingsChange(_message.Message):
    __slots__ = ("groups", "max_grad_norm", "clip_value", "freeze", "unfreeze", "staleness_power", "largest_staleness", "mode", "rounds", "staleness")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    CLIP_VALUE_FIELD_NUMBER: _ClassVar[int]
    FREEZE_FIELD_NUMBER: _ClassVar[int]
    UNFREEZE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_POWER_FIELD_NUMBER: _ClassVar[int]
    LARGEST_STALENESS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupChange]
    max_grad_norm: float
    clip_value: float
    freeze: _containers.RepeatedScalarFieldContainer[str]
    unfreeze: _containers.RepeatedScalarFieldContainer[str]
    staleness_power: float
    largest_staleness: int
    mode: _model_pb2.Mode
    rounds: _model_pb2.Rounds
    staleness: int
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupChange, _Mapping]]] = ..., max_grad_norm: _Optional[float] = ..., clip_value: _Optional[float] = ..., freeze: _Optional[_Iterable[str]] = ..., unfreeze: _Optional[_Iterable[str]] = ..., staleness_power: _Optional[float] = ..., largest_staleness: _Optional[int] = ..., mode: _Optional[_Union[_model_pb2.Mode, str]] = ..., rounds: _Optional[_Union[_model_pb2.Rounds, _Mapping]] = ..., staleness: _Optional[int] = ...) -> None: ...

class UpdateModelRequest(_message.Message):
    __slots__ = ("model", "state_id", "request_id", "seen_change", "change")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEEN_CHANGE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    state_id: str
    request_id: str
    seen_change: int
    change: SettingsChange
    def __init__(self, model: _Optional[str] = ..., state_id: _Optional[str] = ..., request_id: _Optional[str] = ..., seen_change: _Optional[int] = ..., change: _Optional[_Union[SettingsChange, _Mapping]] = ...) -> None: ...

class UpdateModelResponse(_message.Message):
    __slots__ = ("change", "version", "duplicate", "model")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    change: int
    version: int
    duplicate: bool
    model: _model_pb2.Model
    def __init__(self, change: _Optional[int] = ..., version: _Optional[int] = ..., duplicate: bool = ..., model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ...) -> None: ...

class DeleteModelRequest(_message.Message):
    __slots__ = ("model", "state_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    state_id: str
    def __init__(self, model: _Optional[str] = ..., state_id: _Optional[str] = ...) -> None: ...

class DeleteModelResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: _model_pb2.StatePoint
    def __init__(self, state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("model", "worker_id", "nonce", "seen_epoch", "state_id", "asks_whole_push_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SEEN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    ASKS_WHOLE_PUSH_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    worker_id: str
    nonce: str
    seen_epoch: int
    state_id: str
    asks_whole_push_bytes: bool
    def __init__(self, model: _Optional[str] = ..., worker_id: _Optional[str] = ..., nonce: _Optional[str] = ..., seen_epoch: _Optional[int] = ..., state_id: _Optional[str] = ..., asks_whole_push_bytes: bool = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("epoch", "first_sequence", "state", "whole_push_bytes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_PUSH_BYTES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    first_sequence: int
    state: _model_pb2.StatePoint
    whole_push_bytes: int
    def __init__(self, epoch: _Optional[int] = ..., first_sequence: _Optional[int] = ..., state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ..., whole_push_bytes: _Optional[int] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("model", "state_id", "worker_id", "epoch", "sequence", "base_version", "dtype", "tensors", "absent", "total_bytes", "checksum_kind", "pull_dtype", "loss_scale")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_KIND_FIELD_NUMBER: _ClassVar[int]
    PULL_DTYPE_FIELD_NUMBER: _ClassVar[int]
    LOSS_SCALE_FIELD_NUMBER: _ClassVar[int]
    model: str
    state_id: str
    worker_id: str
    epoch: int
    sequence: int
    base_version: int
    dtype: _model_pb2.Dtype
    tensors: _containers.RepeatedCompositeFieldContainer[_model_pb2.TensorSpec]
    absent: _containers.RepeatedScalarFieldContainer[str]
    total_bytes: int
    checksum_kind: _transfer_pb2.ChecksumKind
    pull_dtype: _model_pb2.Dtype
    loss_scale: float
    def __init__(self, model: _Optional[str] = ..., state_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., base_version: _Optional[int] = ..., dtype: _Optional[_Union[_model_pb2.Dtype, str]] = ..., tensors: _Optional[_Iterable[_Union[_model_pb2.TensorSpec, _Mapping]]] = ..., absent: _Optional[_Iterable[str]] = ..., total_bytes: _Optional[int] = ..., checksum_kind: _Optional[_Union[_transfer_pb2.ChecksumKind, str]] = ..., pull_dtype: _Optional[_Union[_model_pb2.Dtype, str]] = ..., loss_scale: _Optional[float] = ...) -> None: ...

class WholePush(_message.Message):
    __slots__ = ("header", "checksum", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    checksum: int
    payload: bytes
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., checksum: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("header", "chunk", "trailer", "whole")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    chunk: _transfer_pb2.TensorChunk
    trailer: _transfer_pb2.TransferTrailer
    whole: WholePush
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., chunk: _Optional[_Union[_transfer_pb2.TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[_transfer_pb2.TransferTrailer, _Mapping]] = ..., whole: _Optional[_Union[WholePush, _Mapping]] = ...) -> None: ...

class PushAck(_message.Message):
    __slots__ = ("version", "state", "staleness", "duplicate")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    version: int
    state: _model_pb2.StatePoint
    staleness: int
    duplicate: bool
    def __init__(self, version: _Optional[int] = ..., state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ..., staleness: _Optional[int] = ..., duplicate: bool = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("ack",)
    ACK_FIELD_NUMBER: _ClassVar[int]
    ack: PushAck
    def __init__(self, ack: _Optional[_Union[PushAck, _Mapping]] = ...) -> None: ...

class AwaitPushRequest(_message.Message):
    __slots__ = ("model", "worker_id", "epoch", "state_id", "sequence")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    model: str
    worker_id: str
    epoch: int
    state_id: str
    sequence: int
    def __init__(self, model: _Optional[str] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., state_id: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class AwaitPushResponse(_message.Message):
    __slots__ = ("ack",)
    ACK_FIELD_NUMBER: _ClassVar[int]
    ack: PushAck
    def __init__(self, ack: _Optional[_Union[PushAck, _Mapping]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("model", "state_id", "worker_id", "epoch", "leaving")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    model: str
    state_id: str
    worker_id: str
    epoch: int
    leaving: bool
    def __init__(self, model: _Optional[str] = ..., state_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., leaving: bool = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("lease_seconds", "state")
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    lease_seconds: float
    state: _model_pb2.StatePoint
    def __init__(self, lease_seconds: _Optional[float] = ..., state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("worker_id", "epoch", "pushes", "clock", "idle_seconds", "lease_seconds", "round")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    epoch: int
    pushes: int
    clock: int
    idle_seconds: float
    lease_seconds: float
    round: int
    def __init__(self, worker_id: _Optional[str] = ..., epoch: _Optional[int] = ..., pushes: _Optional[int] = ..., clock: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., lease_seconds: _Optional[float] = ..., round: _Optional[int] = ...) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers", "state")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    state: _model_pb2.StatePoint
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ...) -> None: ...

class EvictWorkerRequest(_message.Message):
    __slots__ = ("model", "state_id", "worker_id", "epoch")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    model: str
    state_id: str
    worker_id: str
    epoch: int
    def __init__(self, model: _Optional[str] = ..., state_id: _Optional[str] = ..., worker_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class EvictWorkerResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: _model_pb2.StatePoint
    def __init__(self, state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("model", "min_version", "state_id", "checksum_kind", "average", "dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_KIND_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: str
    min_version: int
    state_id: str
    checksum_kind: _transfer_pb2.ChecksumKind
    average: bool
    dtype: _model_pb2.Dtype
    def __init__(self, model: _Optional[str] = ..., min_version: _Optional[int] = ..., state_id: _Optional[str] = ..., checksum_kind: _Optional[_Union[_transfer_pb2.ChecksumKind, str]] = ..., average: bool = ..., dtype: _Optional[_Union[_model_pb2.Dtype, str]] = ...) -> None: ...

class PullHeader(_message.Message):
    __slots__ = ("state", "total_bytes", "checksum_kind", "dtype")
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    state: _model_pb2.StatePoint
    total_bytes: int
    checksum_kind: _transfer_pb2.ChecksumKind
    dtype: _model_pb2.Dtype
    def __init__(self, state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ..., total_bytes: _Optional[int] = ..., checksum_kind: _Optional[_Union[_transfer_pb2.ChecksumKind, str]] = ..., dtype: _Optional[_Union[_model_pb2.Dtype, str]] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("header", "chunk", "trailer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    header: PullHeader
    chunk: _transfer_pb2.TensorChunk
    trailer: _transfer_pb2.TransferTrailer
    def __init__(self, header: _Optional[_Union[PullHeader, _Mapping]] = ..., chunk: _Optional[_Union[_transfer_pb2.TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[_transfer_pb2.TransferTrailer, _Mapping]] = ...) -> None: ...

class PushPullRequest(_message.Message):
    __slots__ = ("header", "chunk", "trailer", "whole")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    chunk: _transfer_pb2.TensorChunk
    trailer: _transfer_pb2.TransferTrailer
    whole: WholePush
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., chunk: _Optional[_Union[_transfer_pb2.TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[_transfer_pb2.TransferTrailer, _Mapping]] = ..., whole: _Optional[_Union[WholePush, _Mapping]] = ...) -> None: ...

class PushPullResponse(_message.Message):
    __slots__ = ("header", "chunk", "trailer", "ack")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    header: PullHeader
    chunk: _transfer_pb2.TensorChunk
    trailer: _transfer_pb2.TransferTrailer
    ack: PushAck
    def __init__(self, header: _Optional[_Union[PullHeader, _Mapping]] = ..., chunk: _Optional[_Union[_transfer_pb2.TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[_transfer_pb2.TransferTrailer, _Mapping]] = ..., ack: _Optional[_Union[PushAck, _Mapping]] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class SnapshotInfo(_message.Message):
    __slots__ = ("model", "state", "size_bytes", "duration_seconds")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    state: _model_pb2.StatePoint
    size_bytes: int
    duration_seconds: float
    def __init__(self, model: _Optional[str] = ..., state: _Optional[_Union[_model_pb2.StatePoint, _Mapping]] = ..., size_bytes: _Optional[int] = ..., duration_seconds: _Optional[float] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotInfo]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotInfo, _Mapping]]] = ...) -> None: ...

class GetServerStatusRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("model", "pushes_applied", "pushes_repeated", "pushes_rejected", "workers", "held_pushes", "mean_staleness")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PUSHES_APPLIED_FIELD_NUMBER: _ClassVar[int]
    PUSHES_REPEATED_FIELD_NUMBER: _ClassVar[int]
    PUSHES_REJECTED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    HELD_PUSHES_FIELD_NUMBER: _ClassVar[int]
    MEAN_STALENESS_FIELD_NUMBER: _ClassVar[int]
    model: _model_pb2.Model
    pushes_applied: int
    pushes_repeated: int
    pushes_rejected: int
    workers: int
    held_pushes: int
    mean_staleness: float
    def __init__(self, model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ..., pushes_applied: _Optional[int] = ..., pushes_repeated: _Optional[int] = ..., pushes_rejected: _Optional[int] = ..., workers: _Optional[int] = ..., held_pushes: _Optional[int] = ..., mean_staleness: _Optional[float] = ...) -> None: ...

class GetServerStatusResponse(_message.Message):
    __slots__ = ("server_version", "uptime_seconds", "models", "memory_used_bytes", "memory_budget_bytes", "threading_layer", "threads", "next_page_token", "compiling")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    THREADING_LAYER_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COMPILING_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    uptime_seconds: float
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    memory_used_bytes: int
    memory_budget_bytes: int
    threading_layer: str
    threads: int
    next_page_token: str
    compiling: str
    def __init__(self, server_version: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., memory_used_bytes: _Optional[int] = ..., memory_budget_bytes: _Optional[int] = ..., threading_layer: _Optional[str] = ..., threads: _Optional[int] = ..., next_page_token: _Optional[str] = ..., compiling: _Optional[str] = ...) -> None: ...
