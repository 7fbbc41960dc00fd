"""Messages that arrive late, twice or out of order do not change the effect of newer calls.

A relay swallows a call's messages, as a network does that is about to deliver them much later, and delivers them when
the test says so: to a server that has moved on. Every call of the protocol is tried against everything that may have
happened meanwhile.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.errors import (
    ModelNotFoundError,
    NumbaAdamError,
    RewoundError,
    ServiceError,
    SessionFencedError,
)
from numba_adam.ps.errors import from_rpc_error
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

SERVICE = "numba_adam.ps.v1.ParameterService"
TRY_AGAIN = grpc.StatusCode.UNAVAILABLE
GIVE_UP = grpc.StatusCode.PERMISSION_DENIED  # our server never says so: the client reports it, and knows no more


@dataclass
class Late:
    """The messages of a call that arrive later, or again."""

    method: str
    messages: list[bytes] = field(default_factory=list)


class Relay:
    """A gRPC relay that holds calls of some methods back, and reports them as failed."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._fate: dict[str, list[tuple[bool, grpc.StatusCode | None]]] = {}
        self.late: list[Late] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def lose_request(self, method: str, code: grpc.StatusCode, after: int = 0) -> None:
        """Drop a later call of a method before it reaches the server, and fail it."""
        self._fate[method] = [(True, None)] * after + [(False, code)]

    def lose_answer(self, method: str, code: grpc.StatusCode) -> None:
        """Deliver the next call of a method to the server, but fail it."""
        self._fate[method] = [(True, code)]

    def deliver(self, late: Late, address: str) -> ServiceError | None:
        """Send the messages of a call; return the error, if there is one."""
        with grpc.insecure_channel(address) as channel:
            try:
                list(channel.stream_stream(f"/{SERVICE}/{late.method}")(iter(late.messages), timeout=800))
            except grpc.RpcError as error:
                return from_rpc_error(error)
        return None

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Relay any method as streams in both directions, which is the wire form of all calls."""
        method = details.method.rsplit("/", 1)[1]

        def relay(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            fates = self._fate.get(method)
            arrives, code = fates.pop(0) if fates else (True, None)
            sent = Late(method)
            for request in requests:
                sent.messages.append(request)
            if code is not None:
                self.late.append(sent)
            if not arrives:
                context.abort(code, "lost on the way")
            call = self._channel.stream_stream(details.method)(iter(sent.messages))
            try:
                answers = list(call)
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata())
                context.abort(call.code(), call.details())
            if code is not None:
                context.abort(code, "the answer was lost on the way")
            yield from answers

        return grpc.stream_stream_rpc_method_handler(relay)

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """One server for all tests; each test has its own model."""
    folder = tmp_path_factory.mktemp("late") / "data"
    settings = {"snapshot_interval_seconds": 0, "snapshot_every_pushes": 0}
    with Server(ServerConfig(listen="127.0.0.1:0", data_dir=folder, **settings)) as running:
        yield running


@pytest.fixture
def make_relay() -> Iterator[Callable[[str], Relay]]:
    with contextlib.ExitStack() as stack:

        def make(target: str) -> Relay:
            relay = Relay(target)
            stack.callback(relay.close)
            return relay

        yield make


# --- every call, against everything that may have happened meanwhile ----------------------------------------------


class World:
    """A server, a worker behind the relay, and workers with direct connections."""

    def __init__(self, address, relay, connect, arrays, gradients_of):
        self.address, self.relay, self.connect = address, relay, connect
        self.name = f"m-{secrets.token_hex(4)}"
        self.arrays, self.gradients_of = arrays, gradients_of
        self.client = connect(relay.address, "w")
        self.direct = connect(address, "other")
        self.live = None  # the handle of the worker that must be able to go on

    def handle(self):
        return self.client.open_model(self.name)

    def grads(self, seed=1):
        return self.gradients_of(self.arrays, seed)

    def observe(self):
        """Return the model's state id, version, parameters and settings."""
        seen = {}
        with ParameterClient(self.address) as client:
            for info in client.list_models():
                if info.name == self.name:
                    values = client.open_model(info.name).pull()
                    arrays = {name: array.tobytes() for name, array in values.items()}
                    seen[info.state_id, info.version] = (arrays, info.settings)
        return seen


def takes_over(world):
    """A new process of the same worker."""
    world.live = world.connect(world.address, "w").open_model(world.name)
    world.live.push(world.grads(5))


def goes_on(world):
    """The same process, after an error, or after its second try succeeded."""
    world.live = world.handle()
    world.live.push(world.grads(6))


def others_push(world):
    world.live = world.direct.open_model(world.name)
    world.live.push(world.grads(7))


def is_deleted(world):
    with contextlib.suppress(ModelNotFoundError):
        world.direct.delete_model(world.name)


def is_created_anew(world):
    is_deleted(world)
    world.live = world.connect(world.address, "w").create_model(world.name, world.arrays, lr=0.01)
    world.live.push(world.grads(8))


def comes_and_goes(world):
    world.connect(world.address, "w").create_model(world.name, world.arrays, lr=0.01, exist_ok=True)
    is_deleted(world)


def settings_change(world):
    world.live = world.direct.open_model(world.name)
    world.live.set(lr=0.3, freeze=[next(iter(world.arrays))])


def is_saved(world):
    world.direct.snapshot(world.name)


CALLS = {
    "CreateModel": lambda world: world.client.create_model(world.name, world.arrays, lr=0.01),
    "GetModel": lambda world: world.client.open_model(world.name),
    "ListModels": lambda world: world.client.list_models(),
    "UpdateModel": lambda world: world.handle().set(lr=0.5),
    "DeleteModel": lambda world: world.client.delete_model(world.name),
    "OpenSession": lambda world: world.handle().push(world.grads()),
    "Push": lambda world: world.handle().push(world.grads()),
    "Pull": lambda world: world.handle().pull(min_version=0),
    "PushPull": lambda world: world.handle().push_pull(world.grads()),
    "Snapshot": lambda world: world.client.snapshot(world.name),
    "GetServerStatus": lambda world: world.client.status(),
}
NEWER = (takes_over, goes_on, others_push, is_deleted, is_created_anew, comes_and_goes, settings_change, is_saved)
NOTHING_NEWER = {
    # These decide nothing about whether the model shall be: a deletion of the state that is still there takes effect.
    ("DeleteModel", takes_over), ("DeleteModel", goes_on), ("DeleteModel", others_push), ("DeleteModel", is_saved),
    ("DeleteModel", settings_change),
    # Nor do these about the settings.
    ("UpdateModel", takes_over), ("UpdateModel", goes_on), ("UpdateModel", others_push), ("UpdateModel", is_saved),
    # Nor do these about a gradient of the worker's newest session, which was given up and has had no successor.
    ("Push", others_push), ("Push", is_saved), ("PushPull", others_push), ("PushPull", is_saved),
    ("Push", settings_change), ("PushPull", settings_change),
}  # fmt: skip
PAIRS = [
    pytest.param(method, newer, id=f"{method}-{newer.__name__}")
    for method in CALLS
    for newer in NEWER
    if (method, newer) not in NOTHING_NEWER
]


@pytest.fixture
def world(server, make_relay, connect, arrays, gradients_of):
    return World(server.address, make_relay(server.address), connect, arrays, gradients_of)


def prepare(world, method):
    """Create a model with a worker in mid-session, unless the call creates it."""
    if method == "CreateModel":
        return
    world.direct.create_model(world.name, world.arrays, lr=0.01)
    if method != "OpenSession":
        world.handle().push(world.grads(0))


def happen(world, method, newer):
    if method == "CreateModel":  # somebody does what the late call was to do
        world.direct.create_model(world.name, world.arrays, lr=0.01, exist_ok=True)
    newer(world)


def assert_nothing_changes(world, late):
    """Deliver calls late and twice; the state must not change, and the live worker continues."""
    before = world.observe()
    for each in late * 2:
        world.relay.deliver(each, world.address)
        assert world.observe() == before
    if world.live is not None:
        ((_, version),) = before
        ack = world.live.push(world.grads(9))
        assert (ack.applied, ack.version, ack.duplicate) == (True, version + 1, False)


def test_every_call_has_a_case():
    only_reads = {"AwaitPush", "ListWorkers"}  # what a fenced worker is told is in tests/server/test_rounds.py
    of_leases = {"Heartbeat", "EvictWorker"}  # in tests/server/test_bounded_staleness.py
    assert set(CALLS) | only_reads | of_leases == set(
        pb.DESCRIPTOR.services_by_name["ParameterService"].methods_by_name
    )


@pytest.mark.parametrize(("method", "newer"), PAIRS)
def test_an_abandoned_call_that_arrives_late_changes_nothing(world, method, newer):
    prepare(world, method)
    world.relay.lose_request(method, GIVE_UP)
    with pytest.raises(ServiceError, match="lost on the way"):
        CALLS[method](world)
    assert [late.method for late in world.relay.late] == [method]
    happen(world, method, newer)
    assert_nothing_changes(world, world.relay.late)


@pytest.mark.parametrize("lose", ["lose_request", "lose_answer"])
@pytest.mark.parametrize(("method", "newer"), PAIRS)
def test_a_duplicate_of_a_retried_call_that_arrives_late_changes_nothing(world, method, newer, lose):
    prepare(world, method)
    getattr(world.relay, lose)(method, TRY_AGAIN)
    CALLS[method](world)
    assert [late.method for late in world.relay.late] == [method]
    happen(world, method, newer)
    assert_nothing_changes(world, world.relay.late)


def test_a_call_sent_before_a_crash_changes_nothing_after_it(server_process, make_relay, connect, arrays, gradients_of):
    """One crash for all calls: each has a model, a relay and a worker of its own."""
    worlds = {}
    for method, call in CALLS.items():
        relay = make_relay(server_process.address)
        world = worlds[method] = World(server_process.address, relay, connect, arrays, gradients_of)
        prepare(world, method)
        relay.lose_request(method, TRY_AGAIN)
        call(world)
        if method in ("CreateModel", "DeleteModel"):  # they are on disk when they are answered
            is_created_anew(world)
    late = {method: list(world.relay.late) for method, world in worlds.items()}
    server_process.kill()
    server_process.start()
    for method, world in worlds.items():
        assert [each.method for each in late[method]] == [method]
        world.live = world.connect(world.address, "w").open_model(world.name)
        world.live.push(world.grads(3))
        assert_nothing_changes(world, late[method])


# --- openings ---------------------------------------------------------------------------------------------------


def opening(late):
    return pb.OpenSessionRequest.FromString(late.messages[0])


def test_a_late_opening_does_not_fence_the_only_worker(world):
    """The worker's failed try arrives after its retry. It once fenced the worker permanently."""
    world.direct.create_model(world.name, world.arrays)
    world.relay.lose_request("OpenSession", TRY_AGAIN)
    model = world.handle()
    assert model.push(world.grads()).version == 1
    assert world.relay.deliver(world.relay.late[0], world.address) is None  # it gets the epoch of the session it named
    assert model.push(world.grads()).version == 2


def test_all_tries_of_an_opening_have_the_same_nonce(world):
    world.direct.create_model(world.name, world.arrays)
    model = world.handle()
    for code in (GIVE_UP, TRY_AGAIN):
        world.relay.lose_answer("OpenSession", code)
        if code is GIVE_UP:
            with pytest.raises(ServiceError):
                model.push(world.grads())
    assert model.push(world.grads()).version == 1
    first, second = map(opening, world.relay.late)
    assert first == second
    assert len(first.nonce) == 32
    assert (first.seen_epoch, first.state_id) == (0, model.state_id)


def test_a_new_process_takes_over_and_fences_the_old_one(world):
    world.direct.create_model(world.name, world.arrays)
    old = world.handle()
    old.push(world.grads())
    new = world.connect(world.address, "w").open_model(world.name)
    assert new.push(world.grads()).version == 2
    with pytest.raises(SessionFencedError):
        old.push(world.grads())
    assert new.push(world.grads()).version == 3


def test_a_fenced_process_does_not_take_its_session_back(world):
    """Its push is in doubt, so it opens another session, while a second process with its name is active."""
    world.direct.create_model(world.name, world.arrays)
    old = world.handle()
    old.push(world.grads())
    world.relay.lose_request("Push", GIVE_UP)
    with pytest.raises(ServiceError, match="lost on the way"):
        old.push(world.grads())
    new = world.connect(world.address, "w").open_model(world.name)
    new.push(world.grads())
    with pytest.raises(SessionFencedError, match="has been opened since"):
        old.push(world.grads())
    assert new.push(world.grads()).version == 3


def test_a_late_opening_of_an_older_process_does_not_take_over(world):
    """It had read the newest epoch, and a third process took over first."""
    world.direct.create_model(world.name, world.arrays)
    world.connect(world.address, "w").open_model(world.name).push(world.grads())
    second = world.handle()
    world.relay.lose_request("OpenSession", GIVE_UP)
    with pytest.raises(ServiceError):
        second.push(world.grads())
    third = world.connect(world.address, "w").open_model(world.name)
    third.push(world.grads())
    refusal = world.relay.deliver(world.relay.late[0], world.address)
    assert isinstance(refusal, SessionFencedError)
    assert refusal.detail.epoch == 2
    assert third.push(world.grads()).version == 3


def test_a_process_does_not_take_over_from_a_session_it_has_not_seen(world):
    """It knew the first process's session, gave up, and retries while a third process is active."""
    world.direct.create_model(world.name, world.arrays)
    world.connect(world.address, "w").open_model(world.name).push(world.grads())
    second = world.handle()
    world.relay.lose_request("OpenSession", GIVE_UP, after=1)
    with pytest.raises(ServiceError, match="lost on the way"):
        second.push(world.grads())
    assert opening(world.relay.late[0]).seen_epoch == 1
    third = world.connect(world.address, "w").open_model(world.name)
    third.push(world.grads())
    with pytest.raises(SessionFencedError):
        second.push(world.grads())
    assert third.push(world.grads()).version == 3


def test_an_unanswered_opening_is_not_sent_again_for_another_state(world):
    """The model was created again after its first try: its nonce and epoch belong to the old state."""
    world.direct.create_model(world.name, world.arrays)
    model = world.handle()
    model.push(world.grads())
    world.relay.lose_request("Push", GIVE_UP)
    world.relay.lose_request("OpenSession", GIVE_UP)
    for _ in range(2):
        with pytest.raises(ServiceError, match="lost on the way"):
            model.push(world.grads())
    is_deleted(world)
    world.direct.create_model(world.name, world.arrays)
    model.pull()
    assert [model.push(world.grads()).version for _ in range(2)] == [1, 2]
    assert opening(world.relay.late[1]).seen_epoch == 1


def test_an_opening_of_the_first_release_is_served_as_it_was(world):
    """It has no name: it opens a session whenever it comes, and takes over, as promised then."""
    world.direct.create_model(world.name, world.arrays)
    model = world.handle()
    model.push(world.grads())
    with grpc.insecure_channel(world.address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/OpenSession", pb.OpenSessionRequest.SerializeToString, pb.OpenSessionResponse.FromString
        )
        answers = [call(pb.OpenSessionRequest(model=world.name, worker_id="w")) for _ in range(2)]
    assert [(answer.epoch, answer.first_sequence) for answer in answers] == [(2, 1), (3, 1)]
    with pytest.raises(SessionFencedError):
        model.push(world.grads())


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"nonce": "n" * 65}, NumbaAdamError, "nonce 'nnn.*1 to 64 random characters"),
        ({"nonce": "a\nb"}, NumbaAdamError, "none a control character"),
        ({"nonce": "n", "seen_epoch": 1}, NumbaAdamError, "seen_epoch=1: give the state_id that it belongs to"),
        ({"nonce": "n", "seen_epoch": 9, "state_id": ""}, NumbaAdamError, "seen_epoch=9: the newest epoch of this"),
        ({"nonce": "n", "state_id": "0" * 32}, RewoundError, "state_id='0000"),
    ],
)
def test_invalid_openings_are_refused(world, fields, error, words):
    state_id = world.direct.create_model(world.name, world.arrays).state_id
    if fields.get("state_id") == "":
        fields = fields | {"state_id": state_id}
    request = pb.OpenSessionRequest(model=world.name, worker_id="w", **fields)
    with pytest.raises(error, match=words):
        raise world.relay.deliver(Late("OpenSession", [request.SerializeToString()]), world.address)


# --- creations and deletions ------------------------------------------------------------------------------------


def test_a_late_deletion_does_not_delete_a_newer_model(world):
    world.direct.create_model(world.name, world.arrays)
    world.relay.lose_request("DeleteModel", TRY_AGAIN)
    world.client.delete_model(world.name)
    model = world.connect(world.address).create_model(world.name, world.arrays)
    model.push(world.grads())
    refusal = world.relay.deliver(world.relay.late[0], world.address)
    assert isinstance(refusal, RewoundError)
    assert refusal.detail.state.state_id == model.state_id
    assert model.push(world.grads()).version == 2


def test_a_retried_deletion_does_not_delete_a_newer_model(world, server):
    """Its first try succeeded, but the answer was lost. Another program creates the model again before the second."""
    world.direct.create_model(world.name, world.arrays)
    world.relay.lose_answer("DeleteModel", TRY_AGAIN)
    again = []
    pause = world.client._connection._pause

    def meanwhile(seconds):
        again.append(world.connect(world.address).create_model(world.name, world.arrays))
        return pause(seconds)

    world.client._connection._pause = meanwhile
    with pytest.raises(RewoundError, match="an earlier try may have deleted it"):
        world.client.delete_model(world.name)
    assert again[0].push(world.grads()).version == 1


def test_a_late_creation_does_not_restore_a_deleted_model(world):
    world.relay.lose_request("CreateModel", TRY_AGAIN)
    world.client.create_model(world.name, world.arrays)
    world.direct.delete_model(world.name)
    refusal = world.relay.deliver(world.relay.late[0], world.address)
    assert isinstance(refusal, ModelNotFoundError)
    assert "this request created it, and it was deleted since" in str(refusal)
    assert world.observe() == {}


def test_a_live_caller_can_create_a_deleted_model_again(world):
    """A refused caller repeats the request with the id of the deletion, and succeeds."""
    for number in range(3):
        model = world.client.create_model(world.name, world.arrays, exist_ok=number % 2 == 0)
        assert model.push(world.grads()).version == 1
        world.client.delete_model(world.name)


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_deletion_is_remembered_after_a_restart(server_process, make_relay, connect, arrays, gradients_of, is_killed):
    world = World(server_process.address, make_relay(server_process.address), connect, arrays, gradients_of)
    world.relay.lose_request("CreateModel", GIVE_UP)
    with pytest.raises(ServiceError):
        world.client.create_model(world.name, world.arrays)
    world.direct.create_model(world.name, world.arrays)
    world.direct.delete_model(world.name)
    server_process.kill() if is_killed else server_process.stop()
    server_process.start()
    assert isinstance(world.relay.deliver(world.relay.late[0], world.address), RewoundError)
    assert world.observe() == {}
    assert world.client.create_model(world.name, world.arrays).push(world.grads()).version == 1


# --- pulls ------------------------------------------------------------------------------------------------------


def test_a_late_pull_with_min_version_changes_nothing(world):
    model = world.direct.create_model(world.name, world.arrays)
    model.push(world.grads())
    request = pb.PullRequest(model=world.name, min_version=1, state_id=model.state_id, checksum_kind=1)
    late = Late("Pull", [request.SerializeToString()])
    assert world.relay.deliver(late, world.address) is None
    model.push(world.grads())
    before = world.observe()
    assert world.relay.deliver(late, world.address) is None
    assert world.observe() == before
    is_created_anew(world)
    refusal = world.relay.deliver(late, world.address)  # it belongs to a state that is gone: nobody waits for it
    assert isinstance(refusal, RewoundError)


def test_a_late_answer_of_an_old_state_does_not_undo_a_rewind(
    server_process, make_relay, connect, arrays, gradients_of
):
    """A pull from before the crash is read after it: the worker keeps the newer state."""
    model = connect(server_process.address).create_model("m", arrays, durability="memory")
    model.push(gradients_of(arrays, 1))
    session = model._session
    old = pb.GetModelResponse.FromString(
        model._connection.unary("GetModel", pb.GetModelRequest(model="m"), pb.GetModelResponse, 30).SerializeToString()
    ).model.state
    server_process.kill()
    server_process.start()
    model.pull()
    newer = session.origin
    assert newer.state_id != old.state_id
    session.pulled(old)
    assert session.origin == newer
    assert session.take_rewinds() == []
    assert np.isfinite(model.pull()["w"]).all()
