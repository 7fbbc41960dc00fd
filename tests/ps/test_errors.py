"""The error table is complete, and errors keep their class and detail over the wire."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest

from numba_adam import errors
from numba_adam.errors import NumbaAdamError, ServiceError
from numba_adam.ps.detail import StatePoint, with_detail
from numba_adam.ps.errors import DETAIL_KEY, TABLE, detail_of, from_rpc_error, to_status
from numba_adam.ps.modes import Durability
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1.error_pb2 import ErrorDetail, Reason


def below(cls: type) -> set[type]:
    return {cls}.union(*(below(child) for child in cls.__subclasses__()))


class Failure(grpc.RpcError, grpc.Call):
    """A failed call, as a client sees it."""

    def __init__(self, code, message="", metadata=()):
        self._code, self._message, self._metadata = code, message, metadata

    def code(self):
        return self._code

    def details(self):
        return self._message

    def trailing_metadata(self):
        return self._metadata

    def initial_metadata(self):
        return ()

    def is_active(self):
        return False

    def time_remaining(self):
        return None

    def cancel(self):
        return False

    def add_callback(self, _callback):
        return False


def across(error: BaseException) -> ServiceError:
    """Return the exception that the client raises for a server's error."""
    code, message, detail = to_status(error)
    return from_rpc_error(Failure(code, message, ((DETAIL_KEY, detail.SerializeToString()),)))


def test_every_service_error_has_one_row():
    assert sorted(row.error.__name__ for row in TABLE) == sorted(cls.__name__ for cls in below(ServiceError))


def test_every_reason_has_a_row():
    assert {row.reason for row in TABLE} == set(Reason.values())


@pytest.mark.parametrize("reason", [number for number in Reason.values() if number])
def test_every_reason_becomes_its_class(reason):
    made = next(row.error for row in TABLE if row.reason == reason)("why")
    received = across(made)
    assert type(received) is type(made)
    assert str(received) == "why"
    assert detail_of(received).reason == reason


NEAREST = {  # without a reason of their own they come out as the class their reason means
    errors.ConfigurationError: errors.InvalidRequestError,
    errors.TlsError: errors.ServerUnavailableError,
    ServiceError: errors.InternalServerError,
}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.error.__name__)
def test_every_class_crosses_the_wire(row):
    received = across(row.error("why"))
    assert type(received) is NEAREST.get(row.error, row.error)
    assert str(received).startswith("why")


def test_the_codes_match_the_comments_of_the_protocol():
    text = (Path(__file__).parents[2] / "proto/numba_adam/ps/v1/error.proto").read_text()
    comments = {name: comment for comment, name in re.findall(r"((?:  //.*\n)+)  (REASON_\w+) = ", text)}
    assert comments.keys() == set(Reason.keys())
    for row in TABLE:
        if row.reason:
            assert row.code.name in comments[Reason.Name(row.reason)]


def test_the_detail_is_transferred_completely():
    state = StatePoint("ab" * 16, 7, first_version=2, snapshot_version=5, durability=Durability.MEMORY)
    message = model_pb2.StatePoint(
        state_id="ab" * 16, version=7, first_version=2, snapshot_version=5, durability=model_pb2.DURABILITY_MEMORY
    )
    made = with_detail(errors.BudgetExceededError("busy"), retry_after_milliseconds=250, state=state)
    received = detail_of(across(made))
    assert received == detail_of(made)
    assert (received.reason, received.retry_after_milliseconds) == (Reason.REASON_BUDGET, 250)
    assert (received.state, received.sequence_recorded, received.epoch) == (message, False, 0)
    assert detail_of(across(with_detail(errors.NonFiniteError("nan"), sequence_recorded=True))).sequence_recorded
    assert detail_of(across(with_detail(errors.SessionFencedError("late"), epoch=9))).epoch == 9


def test_with_detail_keeps_the_other_values():
    made = with_detail(errors.BudgetExceededError("busy"), retry_after_milliseconds=250)
    assert with_detail(made, epoch=3) is made
    received = detail_of(across(made))
    assert (received.retry_after_milliseconds, received.epoch) == (250, 3)


@pytest.mark.parametrize("cls", sorted(below(NumbaAdamError) - below(ServiceError), key=lambda cls: cls.__name__))
def test_errors_about_arrays_and_settings_become_invalid_requests(cls):
    received = across(cls("lr=-1"))
    assert type(received) is errors.InvalidRequestError
    assert str(received) == "lr=-1"


def test_an_internal_error_does_not_reveal_its_message():
    received = across(KeyError("/home/someone/secret"))
    assert type(received) is errors.InternalServerError
    assert "secret" not in str(received)
    assert "KeyError" in str(received)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_without_a_detail_becomes_a_class(code):
    received = from_rpc_error(Failure(code, "why"))
    assert isinstance(received, ServiceError)
    assert "why" in str(received)
    assert detail_of(received) is None


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.ServerUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.ConfigurationError),
        (grpc.StatusCode.INTERNAL, errors.InternalServerError),
    ],
)
def test_statuses_from_grpc_itself_become_clear_errors(code, cls):
    assert type(from_rpc_error(Failure(code))) is cls


def test_a_message_too_large_for_grpc_is_not_retried():
    words = "SERVER: Received message larger than max (1048584 vs. 65536)"
    received = from_rpc_error(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, words))
    assert type(received) is errors.TransferTooLargeError
    assert "--largest-message-bytes" in str(received)


def test_a_reason_of_a_newer_server_falls_back_to_the_code():
    raw = ErrorDetail(reason=999, retry_after_milliseconds=5).SerializeToString()
    received = from_rpc_error(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "x", ((DETAIL_KEY, raw),)))
    assert type(received) is errors.BudgetExceededError
    assert detail_of(received).retry_after_milliseconds == 5


def test_an_invalid_detail_is_ignored():
    received = from_rpc_error(Failure(grpc.StatusCode.UNAVAILABLE, "x", ((DETAIL_KEY, b"\xff\xff"),)))
    assert (type(received), detail_of(received)) == (errors.ServerUnavailableError, None)


@pytest.mark.parametrize("letter", ["x", "ü", "漢"])
def test_a_long_message_is_shortened_to_fit_the_metadata(letter):
    _, message, _ = to_status(errors.InvalidRequestError(letter * 10_000))
    assert len(message.encode()) < 2100
    assert message.endswith("... (shortened)")
