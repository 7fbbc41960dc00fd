"""The mode of a model, as a caller gives it, and the wait for the answer to a push in a round.

May import `connection`, `numba_adam.ps` and the errors.
"""

from __future__ import annotations

from contextlib import closing

from numba_adam.client.session import Session
from numba_adam.client.transport.connection import Connection
from numba_adam.errors import ConfigurationError, HyperparameterError
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.modes import Mode
from numba_adam.ps.round_settings import DEFAULT_TIMEOUT_SECONDS, RoundSettings
from numba_adam.ps.v1.model_pb2 import Model, ModelSpec
from numba_adam.ps.v1.parameter_service_pb2 import AwaitPushRequest, PushAck


def mode_settings(
    mode: str, workers: int | None, backup: int, round_timeout_seconds: float | None, staleness: int | None
) -> ModeSettings:
    """Return a mode with what belongs to it.

    Raises:
        ConfigurationError: there is no such mode, or it has no such setting.
        HyperparameterError: a setting is missing or out of range.
    """
    if mode not in tuple(Mode):
        known = " or ".join(repr(str(each)) for each in Mode)
        raise ConfigurationError(f"mode: expected {known}, got {mode!r}")
    rounds = None
    if Mode(mode) is Mode.SYNC:
        if workers is None:
            raise HyperparameterError('workers: mode="sync" needs the number of workers that train the model')
        timeout = DEFAULT_TIMEOUT_SECONDS if round_timeout_seconds is None else round_timeout_seconds
        rounds = RoundSettings(workers=workers, backup=backup, timeout_seconds=timeout)
    elif workers is not None or backup or round_timeout_seconds is not None:
        raise ConfigurationError(
            f"workers={workers!r}, backup={backup!r}, round_timeout_seconds={round_timeout_seconds!r}: only "
            f'mode="sync" has rounds, and the mode is {mode!r}'
        )
    return ModeSettings(mode=Mode(mode), rounds=rounds, staleness=staleness)


def check_mode(model: Model, wanted: ModelSpec) -> None:
    """Refuse a server that ignores what a new model asks for.

    Raises:
        ConfigurationError: it is older than that.
    """
    asked = wanted.settings.staleness_power, wanted.settings.HasField("largest_staleness")
    has = model.settings.staleness_power, model.settings.HasField("largest_staleness")
    if model.change == 0 and asked != has:
        raise ConfigurationError(
            f"model {wanted.name!r}: the server does not know staleness_power and largest_staleness, and has created "
            "the model without them; update the server, and delete the model"
        )


def await_answer(connection: Connection, session: Session, state_id: str, timeout_seconds: float) -> PushAck | None:
    """Wait for the answer to the session's push that is in a round; None if the server does not have that push.

    Raises:
        ServiceError: the push was not applied, or there was no answer in time.
    """
    request = AwaitPushRequest(
        model=session.model,
        state_id=state_id,
        worker_id=session.worker_id,
        epoch=session.epoch,
        sequence=session.next_sequence,
    )
    with closing(connection.await_push(request, timeout_seconds)) as answers:
        for answer in answers:
            return answer.ack if answer.HasField("ack") else None
    return None
