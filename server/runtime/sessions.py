"""Opens workers' sessions, and counts their memory. Imports the models and the budget."""

from __future__ import annotations

import logging

from numba_adam.errors import InvalidRequestError
from numba_adam.ps.detail import StatePoint
from numba_adam.server.model.answers import SESSION_BYTES
from numba_adam.server.model.names import check_random_id, check_worker_id
from numba_adam.server.model.requests import Opening
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.model import Model, Opened
from numba_adam.server.runtime.model_errors import saying_epoch_of, saying_state_of

_log = logging.getLogger(__name__)


def open_session(model: Model, opening: Opening, pool: SlotPool) -> tuple[Opened, StatePoint]:
    """Open a session; return it and the model's state.

    Raises:
        InvalidRequestError: the worker id, the nonce or the seen epoch is not allowed.
        RewoundError: the session is for another state.
        SessionFencedError, SessionUnknownError: see PushLedger.open_session.
    """
    with saying_state_of(model), saying_epoch_of(model):
        worker_id = check_worker_id(opening.worker_id)
        nonce = opening.nonce and check_random_id("nonce", opening.nonce)
        if opening.seen_epoch and not opening.state_id:
            raise InvalidRequestError(f"seen_epoch={opening.seen_epoch}: give the state_id that it belongs to")
        count_memory(model, pool, one_more=worker_id not in model.ledger.sessions)
        opened = model.apply_queue.call(model.open_session, worker_id, nonce, opening.state_id, opening.seen_epoch)
        model.settle()
        model.leases.renew(worker_id, opened.epoch)
    _log.info(
        "model %s: worker %r opened session %d at version %d",
        model.spec.name,
        worker_id,
        opened.epoch,
        model.version,
        extra={"worker": worker_id, "version": model.version},
    )
    return opened, model.state()


def count_memory(model: Model, pool: SlotPool, *, one_more: bool = False, must: bool = False) -> None:
    """Count a model's memory without its arrays: sessions, answers, messages.

    Args:
        model: the model.
        pool: the budget.
        one_more: True: count one more session than the model has.
        must: True: count it even if it does not fit, because it is in use already.

    Raises:
        BudgetExceededError: it exceeds the free part of the budget.
    """
    nbytes = model.kept_bytes + (SESSION_BYTES if one_more else 0)
    pool.keep(model.spec.name, nbytes, f"model {model.spec.name!r}: its sessions and answers", must=must)
