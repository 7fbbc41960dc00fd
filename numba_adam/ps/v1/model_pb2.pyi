from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT64: _ClassVar[Dtype]
    DTYPE_BFLOAT16: _ClassVar[Dtype]
    DTYPE_FLOAT16: _ClassVar[Dtype]

class EpsMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EPS_MODE_UNSPECIFIED: _ClassVar[EpsMode]
    EPS_MODE_HAT: _ClassVar[EpsMode]
    EPS_MODE_ALGORITHM1: _ClassVar[EpsMode]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_ASYNC: _ClassVar[Mode]
    MODE_SYNC: _ClassVar[Mode]
    MODE_SSP: _ClassVar[Mode]

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_MEMORY: _ClassVar[Durability]
    DURABILITY_PROCESS: _ClassVar[Durability]
    DURABILITY_DISK: _ClassVar[Durability]

class StateDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_DTYPE_UNSPECIFIED: _ClassVar[StateDtype]
    STATE_DTYPE_FLOAT32: _ClassVar[StateDtype]
    STATE_DTYPE_FLOAT64: _ClassVar[StateDtype]
    STATE_DTYPE_BFLOAT16: _ClassVar[StateDtype]
    STATE_DTYPE_EIGHT_BIT: _ClassVar[StateDtype]

class Rounding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUNDING_UNSPECIFIED: _ClassVar[Rounding]
    ROUNDING_NEAREST: _ClassVar[Rounding]
    ROUNDING_STOCHASTIC: _ClassVar[Rounding]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT64: Dtype
DTYPE_BFLOAT16: Dtype
DTYPE_FLOAT16: Dtype
EPS_MODE_UNSPECIFIED: EpsMode
EPS_MODE_HAT: EpsMode
EPS_MODE_ALGORITHM1: EpsMode
MODE_UNSPECIFIED: Mode
MODE_ASYNC: Mode
MODE_SYNC: Mode
MODE_SSP: Mode
DURABILITY_UNSPECIFIED: Durability
DURABILITY_MEMORY: Durability
DURABILITY_PROCESS: Durability
DURABILITY_DISK: Durability
STATE_DTYPE_UNSPECIFIED: StateDtype
STATE_DTYPE_FLOAT32: StateDtype
STATE_DTYPE_FLOAT64: StateDtype
STATE_DTYPE_BFLOAT16: StateDtype
STATE_DTYPE_EIGHT_BIT: StateDtype
ROUNDING_UNSPECIFIED: Rounding
ROUNDING_NEAREST: Rounding
ROUNDING_STOCHASTIC: Rounding

class Rounds(_message.Message):
    __slots__ = ("workers", "backup", "timeout_seconds")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    workers: int
    backup: int
    timeout_seconds: float
    def __init__(self, workers: _Optional[int] = ..., backup: _Optional[int] = ..., timeout_seconds: _Optional[float] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Hyperparameters(_message.Message):
    __slots__ = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay", "eps_mode", "maximize", "amsgrad")
    LR_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    DECOUPLED_WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    EPS_MODE_FIELD_NUMBER: _ClassVar[int]
    MAXIMIZE_FIELD_NUMBER: _ClassVar[int]
    AMSGRAD_FIELD_NUMBER: _ClassVar[int]
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled_weight_decay: bool
    eps_mode: EpsMode
    maximize: bool
    amsgrad: bool
    def __init__(self, lr: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ..., weight_decay: _Optional[float] = ..., decoupled_weight_decay: bool = ..., eps_mode: _Optional[_Union[EpsMode, str]] = ..., maximize: bool = ..., amsgrad: bool = ...) -> None: ...

class Options(_message.Message):
    __slots__ = ("state_dtype", "rounding", "seed", "ema_decay")
    STATE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROUNDING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EMA_DECAY_FIELD_NUMBER: _ClassVar[int]
    state_dtype: StateDtype
    rounding: Rounding
    seed: int
    ema_decay: float
    def __init__(self, state_dtype: _Optional[_Union[StateDtype, str]] = ..., rounding: _Optional[_Union[Rounding, str]] = ..., seed: _Optional[int] = ..., ema_decay: _Optional[float] = ...) -> None: ...

class Guards(_message.Message):
    __slots__ = ("largest_norm", "largest_element", "pushes_per_second")
    LARGEST_NORM_FIELD_NUMBER: _ClassVar[int]
    LARGEST_ELEMENT_FIELD_NUMBER: _ClassVar[int]
    PUSHES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    largest_norm: float
    largest_element: float
    pushes_per_second: float
    def __init__(self, largest_norm: _Optional[float] = ..., largest_element: _Optional[float] = ..., pushes_per_second: _Optional[float] = ...) -> None: ...

class ConstantRate(_message.Message):
    __slots__ = ("lr",)
    LR_FIELD_NUMBER: _ClassVar[int]
    lr: float
    def __init__(self, lr: _Optional[float] = ...) -> None: ...

class LinearRate(_message.Message):
    __slots__ = ("begin", "end", "steps")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    begin: float
    end: float
    steps: int
    def __init__(self, begin: _Optional[float] = ..., end: _Optional[float] = ..., steps: _Optional[int] = ...) -> None: ...

class CosineRate(_message.Message):
    __slots__ = ("begin", "end", "steps")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    begin: float
    end: float
    steps: int
    def __init__(self, begin: _Optional[float] = ..., end: _Optional[float] = ..., steps: _Optional[int] = ...) -> None: ...

class InverseSquareRootRate(_message.Message):
    __slots__ = ("lr", "timescale")
    LR_FIELD_NUMBER: _ClassVar[int]
    TIMESCALE_FIELD_NUMBER: _ClassVar[int]
    lr: float
    timescale: int
    def __init__(self, lr: _Optional[float] = ..., timescale: _Optional[int] = ...) -> None: ...

class PiecewiseRate(_message.Message):
    __slots__ = ("rates", "boundaries")
    RATES_FIELD_NUMBER: _ClassVar[int]
    BOUNDARIES_FIELD_NUMBER: _ClassVar[int]
    rates: _containers.RepeatedScalarFieldContainer[float]
    boundaries: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rates: _Optional[_Iterable[float]] = ..., boundaries: _Optional[_Iterable[int]] = ...) -> None: ...

class ChainedRate(_message.Message):
    __slots__ = ("schedules", "boundaries")
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    BOUNDARIES_FIELD_NUMBER: _ClassVar[int]
    schedules: _containers.RepeatedCompositeFieldContainer[Schedule]
    boundaries: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, schedules: _Optional[_Iterable[_Union[Schedule, _Mapping]]] = ..., boundaries: _Optional[_Iterable[int]] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("constant", "linear", "cosine", "inverse_square_root", "piecewise", "chained")
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    LINEAR_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    INVERSE_SQUARE_ROOT_FIELD_NUMBER: _ClassVar[int]
    PIECEWISE_FIELD_NUMBER: _ClassVar[int]
    CHAINED_FIELD_NUMBER: _ClassVar[int]
    constant: ConstantRate
    linear: LinearRate
    cosine: CosineRate
    inverse_square_root: InverseSquareRootRate
    piecewise: PiecewiseRate
    chained: ChainedRate
    def __init__(self, constant: _Optional[_Union[ConstantRate, _Mapping]] = ..., linear: _Optional[_Union[LinearRate, _Mapping]] = ..., cosine: _Optional[_Union[CosineRate, _Mapping]] = ..., inverse_square_root: _Optional[_Union[InverseSquareRootRate, _Mapping]] = ..., piecewise: _Optional[_Union[PiecewiseRate, _Mapping]] = ..., chained: _Optional[_Union[ChainedRate, _Mapping]] = ...) -> None: ...

class ParamGroup(_message.Message):
    __slots__ = ("params", "hyperparameters", "schedule")
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    params: _containers.RepeatedScalarFieldContainer[str]
    hyperparameters: Hyperparameters
    schedule: Schedule
    def __init__(self, params: _Optional[_Iterable[str]] = ..., hyperparameters: _Optional[_Union[Hyperparameters, _Mapping]] = ..., schedule: _Optional[_Union[Schedule, _Mapping]] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("groups", "max_grad_norm", "clip_value", "frozen", "staleness_power", "largest_staleness", "mode", "rounds", "staleness")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    CLIP_VALUE_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    STALENESS_POWER_FIELD_NUMBER: _ClassVar[int]
    LARGEST_STALENESS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[ParamGroup]
    max_grad_norm: float
    clip_value: float
    frozen: _containers.RepeatedScalarFieldContainer[str]
    staleness_power: float
    largest_staleness: int
    mode: Mode
    rounds: Rounds
    staleness: int
    def __init__(self, groups: _Optional[_Iterable[_Union[ParamGroup, _Mapping]]] = ..., max_grad_norm: _Optional[float] = ..., clip_value: _Optional[float] = ..., frozen: _Optional[_Iterable[str]] = ..., staleness_power: _Optional[float] = ..., largest_staleness: _Optional[int] = ..., mode: _Optional[_Union[Mode, str]] = ..., rounds: _Optional[_Union[Rounds, _Mapping]] = ..., staleness: _Optional[int] = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("name", "dtype", "tensors", "hyperparameters", "mode", "durability", "guards", "options", "settings", "rounds", "staleness", "lease_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: Dtype
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    hyperparameters: Hyperparameters
    mode: Mode
    durability: Durability
    guards: Guards
    options: Options
    settings: Settings
    rounds: Rounds
    staleness: int
    lease_seconds: float
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[Dtype, str]] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., hyperparameters: _Optional[_Union[Hyperparameters, _Mapping]] = ..., mode: _Optional[_Union[Mode, str]] = ..., durability: _Optional[_Union[Durability, str]] = ..., guards: _Optional[_Union[Guards, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., rounds: _Optional[_Union[Rounds, _Mapping]] = ..., staleness: _Optional[int] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class StatePoint(_message.Message):
    __slots__ = ("state_id", "version", "snapshot_version", "durability", "first_version")
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    FIRST_VERSION_FIELD_NUMBER: _ClassVar[int]
    state_id: str
    version: int
    snapshot_version: int
    durability: Durability
    first_version: int
    def __init__(self, state_id: _Optional[str] = ..., version: _Optional[int] = ..., snapshot_version: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ..., first_version: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("spec", "state", "parameter_count", "settings", "change", "changed_at_version")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_VERSION_FIELD_NUMBER: _ClassVar[int]
    spec: ModelSpec
    state: StatePoint
    parameter_count: int
    settings: Settings
    change: int
    changed_at_version: int
    def __init__(self, spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., state: _Optional[_Union[StatePoint, _Mapping]] = ..., parameter_count: _Optional[int] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., change: _Optional[int] = ..., changed_at_version: _Optional[int] = ...) -> None: ...
