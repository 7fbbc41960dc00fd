"""Decides whether an existing model satisfies a request to create one. Imports the models and the receiver."""

from __future__ import annotations

from numba_adam.errors import ModelExistsError
from numba_adam.ps.transfer import Parts, Reader, receive
from numba_adam.server.model.digests import initial_values
from numba_adam.server.model.requests import Creation
from numba_adam.server.model.spec import differences
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.model_errors import saying_state_of


def is_ours(model: Model, creation: Creation, parts: Parts) -> bool:
    """Return True if an earlier try of this request created the model, False if another request did and may have.

    Raises:
        ModelExistsError: the model differs, or the request does not allow one that exists.
    """
    is_retry = model.request_id == creation.request_id
    if is_retry and not model.initial:  # snapshots of format 1 have no digest, so the id decides
        return True
    with saying_state_of(model):
        if lines := differences(model.spec, creation.spec):
            raise ModelExistsError(f"model {model.spec.name!r} exists and differs: {'; '.join(lines)}")
        if is_retry:
            _check_initial_values(model, creation, parts)
            return True
        if not creation.exist_ok:
            raise ModelExistsError(f"model {model.spec.name!r} exists: open it, or create it with exist_ok")
    return False


def _check_initial_values(model: Model, creation: Creation, parts: Parts) -> None:
    """Refuse a creation with the id of an earlier one and other initial values."""
    reader = Reader(creation.total_bytes, creation.checksum_kind)
    receive(parts, reader)
    if initial_values(creation.checksum_kind, reader.checksum) != model.initial:
        raise ModelExistsError(
            f"model {model.spec.name!r} exists: request_id {creation.request_id!r} created it with other initial "
            "values; use a new random request_id for each creation"
        )
