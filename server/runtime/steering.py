"""Changes the settings of a model while it trains. Imports the models, and what compiles kernels."""

from __future__ import annotations

import logging

from numba_adam.errors import InvalidRequestError
from numba_adam.server.model.changes import ChangeRequest
from numba_adam.server.model.names import check_random_id
from numba_adam.server.runtime.model import ChangeAnswer, Model
from numba_adam.server.runtime.model_errors import saying_state_of
from numba_adam.server.runtime.ready import make_ready_to_clip

_log = logging.getLogger(__name__)


def change_settings(model: Model, request: ChangeRequest) -> ChangeAnswer:
    """Change settings, or repeat the answer to an earlier try; return once the change is kept.

    Raises:
        InvalidRequestError: an id is missing, or see `changes.changed`.
        RewoundError: the model is in another state.
        SettingsChangedError: there were changes that the caller did not know of.
        HyperparameterError: a value is not allowed.
    """
    with saying_state_of(model):
        check_random_id("request_id", request.request_id)
        if not request.state_id:
            raise InvalidRequestError("state_id is empty: give the state that the change is for, from GetModel")
        if request.change.max_grad_norm:
            make_ready_to_clip(model.spec.dtype)
        answer, settled = model.apply_queue.call(model.change, request)
        model.settle()
        model.note_settled(settled)
    if not answer.is_duplicate:
        model.tally.note_change()
        _log.info(
            "model %s: change %d of the settings, at version %d",
            model.spec.name,
            *answer.changed,
            extra={"version": answer.changed.version, "request": request.request_id},
        )
    return answer
