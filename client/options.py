"""The options of a new model: validated, put into its spec, and looked for in the server's answer.

May import the library's options and the generated messages.
"""

from __future__ import annotations

from numba_adam.errors import ServiceError
from numba_adam.numerics.formats import Format
from numba_adam.ps import convert
from numba_adam.ps.v1 import model_pb2
from numba_adam.settings.options import Options


def set_options(spec: model_pb2.ModelSpec, options: Options, dtype: str) -> None:
    """Put options into a spec, unless all have their defaults.

    Args:
        spec: of a new model.
        options: its options.
        dtype: the name of its dtype.

    Raises:
        DtypeError: the dtype and the options cannot be combined.
        HyperparameterError: the compute dtype cannot represent an option.
    """
    options.check("", Format.named(dtype))
    message = convert.options_to_proto(options)
    if message is not None:
        spec.options.CopyFrom(message)


def check_options(model: model_pb2.Model, wanted: model_pb2.ModelSpec) -> None:
    """Refuse a model of a server that ignored the options, because it is older than they are.

    Raises:
        ServiceError: the server has created the model without them.
    """
    if wanted.HasField("options") and not model.spec.HasField("options") and _matters(wanted):
        raise ServiceError(
            f"model {wanted.name!r}: the server is older than state_dtype, rounding, seed and ema_decay, and has "
            "created the model without them. Delete the model, and update numba-adam on the server; or create it "
            "without these options"
        )


def _matters(wanted: model_pb2.ModelSpec) -> bool:
    """Return whether a server that knows the options would keep any of them: it drops a format that is the default."""
    options = convert.options_from_proto(wanted.options)
    is_default = options.state_dtype in (None, convert.dtype_from_proto(wanted.dtype).name)
    return options != Options(state_dtype=options.state_dtype) or not is_default
