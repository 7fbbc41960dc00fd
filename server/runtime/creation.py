"""Whether a model that exists is what a creation asks for. Imports the models, the receiver and the error tree."""

from __future__ import annotations

from numba_adam.errors import ModelExistsError
from numba_adam.ps import convert
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.model.digests import initial_values
from numba_adam.server.model.spec import Spec
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_errors import saying_state_of
from numba_adam.server.runtime.receive import Parts, Reader, receive


def is_ours(model: Model, spec: Spec, header: pb.CreateModelHeader, parts: Parts) -> bool:
    """Return whether an earlier try of this call created the model; False where it existed and may.

    Raises:
        ModelExistsError: the model differs, or may not exist.
    """
    is_retry = model.request_id == header.request_id
    if is_retry and not model.initial:  # created by a version that kept no digest: the name must do
        return True
    with saying_state_of(model):
        if differences := convert.spec_differences(model.spec.to_proto(), spec.to_proto()):
            raise ModelExistsError(f"model {spec.name!r} exists and differs: {'; '.join(differences)}")
        if is_retry:
            _check_initial_values(model, header, parts)
            return True
        if not header.exist_ok:
            raise ModelExistsError(f"model {spec.name!r} exists: open it, or create it with exist_ok")
    return False


def _check_initial_values(model: Model, header: pb.CreateModelHeader, parts: Parts) -> None:
    """Refuse a creation that has the name of an earlier one and not its initial values."""
    reader = Reader(header.total_bytes, header.checksum_kind)
    receive(parts, reader)
    if initial_values(header.checksum_kind, reader.checksum) != model.initial:
        raise ModelExistsError(
            f"model {model.spec.name!r} exists: request_id {header.request_id!r} created it with other initial values; "
            "make up a request_id for each creation"
        )
