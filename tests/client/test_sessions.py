"""One worker's session with one model: takeovers, abandoned sessions, and late answers.

One server for all tests, within this process; each has a model of its own. What is late has tests/client/test_late.py,
and what a killed server loses tests/client/test_faults.py.
"""

import logging
import secrets

import grpc
import pytest

from numba_adam.client.session import Session
from numba_adam.errors import ConfigurationError, SessionFencedError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.model_pb2 import DURABILITY_MEMORY, StatePoint
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions") / "data"
    settings = {"snapshot_interval_seconds": 0, "snapshot_every_pushes": 0}
    with Server(ServerConfig(listen="127.0.0.1:0", data_dir=folder, **settings)) as running:
        yield running


@pytest.fixture
def name():
    return f"m-{secrets.token_hex(4)}"


@pytest.fixture
def other(server, connect, arrays, name):
    """Another client, with the model."""
    client = connect(server.address, "other")
    client.create_model(name, arrays)
    return client


@pytest.fixture
def create_anew(other, arrays, name):
    """Deletes the model and creates it again, which starts another line of history."""

    def do():
        other.delete_model(name)
        return other.create_model(name, arrays)

    return do


@pytest.mark.parametrize("pushes", [0, 1, 3])
def test_a_model_created_again_is_reported_as_one_rewind(
    server, connect, create_anew, arrays, gradients_of, name, pushes, caplog
):
    """Even if the worker learns of it when it opens its first session, and for any earlier epochs."""
    model = connect(server.address, "w").open_model(name)
    rewinds = []
    model.on_rewind(rewinds.append)
    for _ in range(pushes):
        model.push(gradients_of(arrays, 1))
        model._session.forget()  # as after a push in doubt: each gets a session, with an epoch of its own
    model.pull()
    state_id = create_anew().state_id
    with caplog.at_level(logging.WARNING, "numba_adam.client"):
        lost = model.push(gradients_of(arrays, 2))
    assert (lost.applied, lost.rewound_to, lost.version, lost.state_id) == (False, 0, 0, state_id)
    assert f"model {name!r} went back from version {pushes} to 0" in caplog.text
    assert (rewinds, model.version, model.state_id) == ([0], 0, state_id)
    assert [model.push(gradients_of(arrays, 3)).version for _ in range(2)] == [1, 2]
    assert rewinds == [0]


def test_a_session_stays_open_between_pushes(server, connect, other, arrays, gradients_of, name):
    model = connect(server.address, "w").open_model(name)
    for version in (1, 2, 3):
        assert model.push(gradients_of(arrays, version)).version == version
        assert (model._session.epoch, model._session.next_sequence) == (1, version + 1)


def test_an_abandoned_session_is_opened_again_with_the_next_epoch(server, connect, other, arrays, gradients_of, name):
    model = connect(server.address, "w").open_model(name)
    model.push(gradients_of(arrays, 1))
    model._session.forget()
    assert model.push(gradients_of(arrays, 2)).version == 2
    assert (model._session.epoch, model._session.next_sequence) == (2, 2)


def test_a_fenced_worker_stays_fenced_without_asking_the_server(server, connect, other, arrays, gradients_of, name):
    old, new = (connect(server.address, "w").open_model(name) for _ in range(2))
    for version, model in enumerate((old, new), 1):
        assert model.push(gradients_of(arrays, version)).version == version
    for _ in range(2):
        with pytest.raises(SessionFencedError):
            old.push(gradients_of(arrays, 3))
    assert new._session.epoch == 2
    assert new.push(gradients_of(arrays, 4)).version == 3


def test_a_worker_with_a_dropped_session_opens_another(server, connect, make_server, arrays, gradients_of, name):
    """Because the server has had more workers since than it keeps."""
    own = make_server()
    model = connect(own.address, "w").create_model(name, arrays)
    model.push(gradients_of(arrays, 1))
    with grpc.insecure_channel(own.address) as channel:
        open_session = channel.unary_unary(
            "/numba_adam.ps.v1.ParameterService/OpenSession",
            pb.OpenSessionRequest.SerializeToString,
            pb.OpenSessionResponse.FromString,
        )
        for number in range(1024):
            open_session(pb.OpenSessionRequest(model=name, worker_id=f"worker-{number}"))
    assert model.push(gradients_of(arrays, 2)).version == 2
    assert model._session.epoch == 1026


def state(state_id, version=1, first_version=0):
    return StatePoint(state_id=state_id, version=version, first_version=first_version, durability=DURABILITY_MEMORY)


def test_answers_of_earlier_states_are_ignored():
    """Answers of three lines of history in any order: only a newer state is a rewind."""
    session = Session(None, "m", "w", state("a", 5))
    session.notice(state("a", 6))
    assert (session.origin.version, session.take_rewinds()) == (5, [])
    session.pulled(state("a", 6))
    assert (session.origin.version, session.take_rewinds()) == (6, [])
    session.notice(state("b", 3, 2))
    session.pulled(state("a", 9))
    assert (session.origin.state_id, session.origin.version) == ("b", 3)
    session.notice(state("c", 4, 1))
    for late in ("a", "b", "c", "a"):
        session.notice(state(late, 7))
        session.pulled(state(late, 8))
    assert (session.origin.state_id, session.origin.version) == ("c", 8)
    assert session.restored == state("c", 4, 1)
    assert session.take_rewinds() == [state("b", 3, 2), state("c", 4, 1)]
    assert session.take_rewinds() == []


def test_a_state_of_unknown_durability_changes_nothing():
    session = Session(None, "m", "w", state("a"))
    with pytest.raises(ConfigurationError, match="the state of model 'm': durability=9"):
        session.notice(StatePoint(state_id="b", durability=9))
    assert (session.origin.state_id, session.take_rewinds()) == ("a", [])


def test_a_sessions_state_is_frozen():
    session = Session(None, "m", "w", state("a"))
    with pytest.raises(AttributeError):
        session.origin.version = 9
    assert (session.epoch, session.next_sequence) == (0, 0)  # none is open yet
