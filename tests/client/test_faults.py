"""Broken connections, killed and restarted servers, a full budget: every push is applied once, or reports an error.

The oracle is a model that takes the same gradients without a fault: parameters must be equal bit for bit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.errors import (
    BudgetExceededError,
    ConfigurationError,
    DeadlineExceededError,
    ModelNotFoundError,
    ServerUnavailableError,
    ServiceError,
)
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub
from numba_adam.ps.v1.transfer_pb2 import TensorChunk, TransferTrailer


@pytest.fixture
def expected(make_server, arrays, gradients_of):
    """Return a function: the parameters after the gradients of some seeds, as a server without faults makes them."""
    server = make_server("oracle", snapshot_interval_seconds=0, snapshot_every_pushes=0)

    def parameters_after(seeds, *, params=None):
        with ParameterClient(server.address) as client:
            model = client.create_model(f"m{np.random.default_rng().integers(2**60)}", params or arrays, lr=0.01)
            for seed in seeds:
                model.push(gradients_of(params or arrays, seed))
            return model.pull()

    return parameters_after


def same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


# --- connections that break -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("form", ["push", "push_pull"])
def test_a_broken_connection_at_any_byte_of_a_push_loses_nothing(
    server, connect, make_wire, arrays, gradients_of, expected, direction, form
):
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", arrays, lr=0.01)
    push = getattr(model, form)
    push(gradients_of(arrays, 0))
    before = wire.carried[direction]
    push(gradients_of(arrays, 1))
    whole = wire.carried[direction] - before
    seeds, duplicates = [0, 1], 0
    for at in range(1, whole + 1, max(1, whole // 25)):
        seeds.append(len(seeds))
        wire.cut_at(direction, wire.carried[direction] + at)
        push(gradients_of(arrays, seeds[-1]))
        duplicates += model.last_ack.duplicate
        assert (model.last_ack.version, model.last_ack.applied) == (len(seeds), True)
    assert wire.cuts >= 20
    assert direction == "up" or duplicates > 0, "some acknowledgements were lost on their way"
    same(model.pull(), expected(seeds))
    assert connect(server.address).status().models[0].pushes_applied == len(seeds)


def test_a_broken_connection_in_a_large_push_loses_nothing(server, connect, make_wire, gradients_of, expected):
    params = {"w": np.zeros(700_000, np.float32)}
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", params, lr=0.01)
    for seed, at in enumerate([1_000, 900_000, 1_200_000, 2_700_000]):
        wire.cut_at("up", wire.carried["up"] + at)
        assert model.push(gradients_of(params, seed)).version == seed + 1
    assert wire.cuts == 4
    same(model.pull(), expected(range(4), params=params))


def test_a_broken_connection_in_a_pull_is_retried(server, connect, make_wire):
    params = {"w": np.random.default_rng(0).normal(size=700_000).astype(np.float32)}
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", params)
    out = {"w": np.empty(700_000, np.float32)}
    for at in (100, 500_000, 1_500_000, 2_790_000):
        wire.cut_at("down", wire.carried["down"] + at)
        same(model.pull(), params)
        wire.cut_at("down", wire.carried["down"] + at)
        same(model.pull(out=out), params)
    assert wire.cuts == 8


def test_a_broken_connection_in_a_creation_or_deletion_is_retried(server, connect, make_wire, arrays):
    wire = make_wire(server.address)
    client, direct = connect(wire.address), connect(server.address)
    before = dict(wire.carried)
    client.create_model("m0", arrays)
    whole = {direction: wire.carried[direction] - before[direction] for direction in before}
    for direction in ("up", "down"):
        for at in range(1, whole[direction] + 1, max(1, whole[direction] // 10)):
            name = f"{direction}{at}"
            wire.cut_at(direction, wire.carried[direction] + at)
            same(client.create_model(name, arrays).pull(), arrays)
            wire.cut_at(direction, wire.carried[direction] + at // 4 + 1)
            client.delete_model(name)
            with pytest.raises(ModelNotFoundError):
                direct.delete_model(name)
    assert [model.name for model in client.list_models()] == ["m0"]


def test_an_unreachable_server_is_reported_with_its_address(connect):
    client = connect("127.0.0.1:1", timeout_seconds=2.0)
    with pytest.raises(ServerUnavailableError, match=r"gave up after \d+ tr.*127\.0\.0\.1:1 cannot be reached"):
        client.status()


def test_another_kind_of_server_is_reported_as_such(connect):
    other = grpc.server(futures.ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with pytest.raises(ConfigurationError, match=r"does not speak numba_adam\.ps\.v1; check the address"):
            connect(f"127.0.0.1:{port}").status()
    finally:
        other.stop(None).wait()


def test_an_abandoned_push_is_never_mistaken_for_the_next(
    server, connect, make_wire, arrays, gradients_of, expected, hurry
):
    """The first push is applied, its answer is lost, and the client gives up. The second must not get its answer."""
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", arrays, lr=0.01)
    model.push(gradients_of(arrays, 0))
    before = wire.carried["down"]
    model.push(gradients_of(arrays, 1))
    wire.cut_at("down", wire.carried["down"] + (wire.carried["down"] - before) // 2, stay_down=True)
    hurry(model, 3.0)
    with pytest.raises(ServerUnavailableError, match=r"gave up after \d+ tries"):
        model.push(gradients_of(arrays, 2))
    wire.is_down = False
    hurry(model, 800.0)
    ack = model.push(gradients_of(arrays, 3))
    assert not ack.duplicate
    applied = [0, 1, 2, 3] if ack.version == 4 else [0, 1, 3]
    same(model.pull(), expected(applied))


def test_a_queued_push_ends_at_its_own_deadline(server, connect, make_wire, arrays, gradients_of, hurry):
    """Those before it have more time."""
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", arrays)
    wire.cut_at("up", wire.carried["up"] + 1, stay_down=True)
    before = [model.push_async(gradients_of(arrays, seed)) for seed in range(4)]
    hurry(model, 1.0)
    with pytest.raises(
        DeadlineExceededError, match="it waited for earlier pushes until its deadline of 1 s; it was not"
    ):
        model.push(gradients_of(arrays, 4))
    assert not before[-1].done()
    hurry(model, 800.0)
    wire.is_down = False
    assert all(isinstance(push.exception(800), ServiceError | None) for push in before)
    applied = sum(push.exception() is None for push in before)
    assert model.push(gradients_of(arrays, 5)).version == applied + 1  # the one that was never sent is not in it


def test_a_push_that_waits_for_a_full_queue_ends_at_its_own_deadline(
    server, connect, make_wire, arrays, gradients_of, hurry
):
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", arrays)
    wire.cut_at("up", wire.carried["up"] + 1, stay_down=True)
    before = [model.push_async(gradients_of(arrays, seed)) for seed in range(5)]
    hurry(model, 1.0)

    def push_on() -> None:
        with pytest.raises(DeadlineExceededError, match="it was not sent"):
            model.push(gradients_of(arrays, 5))

    threads = [threading.Thread(target=push_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not before[-1].done()


# --- servers that stop and come back ------------------------------------------------------------------------------


def test_a_clean_restart_goes_unnoticed(server_process, connect, arrays, gradients_of, expected):
    rewinds: list[int] = []
    model = connect(server_process.address).create_model("m", arrays, lr=0.01)
    model.on_rewind(rewinds.append)
    for seed in range(3):
        model.push(gradients_of(arrays, seed))
    state_id = model.state_id
    assert server_process.stop() == 0
    with futures.ThreadPoolExecutor(1) as pool:
        push = pool.submit(model.push, gradients_of(arrays, 3))  # while nobody is there
        server_process.start()
        ack = push.result(timeout=800)
    assert (ack.version, ack.applied, model.state_id, rewinds) == (4, True, state_id, [])
    same(model.pull(), expected(range(4)))


def test_a_snapshot_removed_after_a_clean_stop_causes_a_rewind(server_process, connect, arrays, gradients_of, expected):
    """Version 4 once became 2 with the same state id, without a report."""
    client = connect(server_process.address)
    model = client.create_model("m", arrays, lr=0.01)
    rewinds: list[int] = []
    model.on_rewind(rewinds.append)
    for seed in range(4):
        model.push(gradients_of(arrays, seed))
        if seed == 1:
            client.snapshot("m")
    state_id = model.state_id
    assert server_process.stop() == 0
    max((server_process.folder / "data" / "models" / "m").iterdir()).unlink()
    server_process.start()
    lost = model.push(gradients_of(arrays, 4))
    assert (lost.applied, lost.rewound_to, rewinds) == (False, 2, [2])
    assert model.state_id != state_id
    same(model.pull(), expected(range(2)))


def test_a_kill_rewinds_to_the_last_snapshot_and_reports_it(
    server_process, connect, arrays, gradients_of, expected, caplog
):
    rewinds: list[int] = []
    client = connect(server_process.address)
    model = client.create_model("m", arrays, lr=0.01, durability="memory")
    model.on_rewind(rewinds.append)
    for seed in range(2):
        model.push(gradients_of(arrays, seed))
    client.snapshot("m")
    for seed in range(2, 5):
        ack = model.push(gradients_of(arrays, seed))
    model.pull()
    assert (ack.version, ack.snapshot_version, model.version) == (5, 2, 5)
    state_id = model.state_id
    server_process.kill()
    server_process.start()
    with caplog.at_level(logging.WARNING, "numba_adam.client"):
        lost = model.push(gradients_of(arrays, 5))
    assert (lost.applied, lost.rewound_to, lost.version, lost.snapshot_version) == (False, 2, 2, 2)
    assert (rewinds, model.version) == ([2], 2)
    assert model.state_id != state_id
    assert "model 'm' went back from version 5 to 2" in caplog.text
    same(model.pull(), expected(range(2)))
    assert model.push(gradients_of(arrays, 6)).version == 3
    same(model.pull(), expected([0, 1, 6]))
    assert rewinds == [2]


@pytest.mark.parametrize("notice", ["pull", "pull of a version", "push_pull", "push_async"])
def test_every_kind_of_call_reports_a_rewind_once(server_process, connect, arrays, gradients_of, expected, notice):
    client = connect(server_process.address)
    model = client.create_model("m", arrays, lr=0.01, durability="memory")
    rewinds: list[tuple[int, int]] = []
    model.on_rewind(lambda version: rewinds.append((version, model.version)))
    model.push(gradients_of(arrays, 0))
    client.snapshot()
    model.push(gradients_of(arrays, 1))
    model.pull()
    server_process.kill()
    server_process.start()
    if notice == "pull":
        same(model.pull(), expected([0]))
    elif notice == "pull of a version":
        same(model.pull(min_version=2), expected([0]))
    elif notice == "push_pull":
        same(model.push_pull(gradients_of(arrays, 2)), expected([0]))
        assert model.last_ack.rewound_to == 1
    else:
        queued = [model.push_async(gradients_of(arrays, seed)) for seed in (2, 3, 4)]
        assert {push.result().applied for push in queued} == {False}, "all were computed for the state that is gone"
    assert rewinds == [(1, 1)]
    assert model.push(gradients_of(arrays, 9)).version == 2
    same(model.pull(), expected([0, 9]))
    assert rewinds == [(1, 1)]


def test_two_workers_are_told_of_a_kill_and_continue(server_process, connect, arrays, gradients_of):
    clients = [connect(server_process.address, f"w{index}") for index in range(2)]
    models = [client.create_model("m", arrays, durability="memory", exist_ok=True) for client in clients]
    rewinds: list[list[int]] = [[], []]
    for model, heard in zip(models, rewinds, strict=True):
        model.on_rewind(heard.append)
        model.push(gradients_of(arrays, 1))
    server_process.kill()
    server_process.start()
    acks = [model.push(gradients_of(arrays, 2)) for model in models]
    assert [ack.applied for ack in acks] == [False, False]
    assert [len(heard) for heard in rewinds] == [1, 1]
    assert sorted(model.push(gradients_of(arrays, 3)).version for model in models) == [1, 2]


def test_a_late_report_of_a_rewind_has_the_restored_version(server_process, connect, arrays, gradients_of):
    early, late = (connect(server_process.address, name) for name in ("early", "late"))
    models = [client.create_model("m", arrays, durability="memory", exist_ok=True) for client in (early, late)]
    rewinds: list[int] = []
    models[1].on_rewind(rewinds.append)
    models[0].push(gradients_of(arrays, 1))
    early.snapshot("m")
    models[1].push(gradients_of(arrays, 2))
    server_process.kill()
    server_process.start()
    for seed in range(3, 6):
        models[0].push(gradients_of(arrays, seed))
    server_process.stop()
    server_process.start()  # a clean restart is no new line of history
    ack = models[1].push(gradients_of(arrays, 6))
    assert (ack.applied, ack.rewound_to, rewinds) == (False, 1, [1])
    assert ack.version == 3


def test_pushes_and_pulls_continue_through_kills(server_process, connect, arrays, gradients_of, expected):
    """Versions have no gaps, and pushes acknowledged before the snapshot are included."""
    client = connect(server_process.address, timeout_seconds=800)
    model = client.create_model("m", arrays, lr=0.01, durability="memory")
    history: list[int] = []
    model.on_rewind(lambda version: history.__delitem__(slice(version, None)))
    going = threading.Semaphore(0)

    def work() -> None:
        for seed in range(60):
            ack = model.push(gradients_of(arrays, seed))
            if ack.applied:
                history.append(seed)
                assert ack.version == len(history)
            going.release()

    with futures.ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(work)
        for _ in range(2):
            for _ in range(10):
                assert going.acquire(timeout=800)
            client.snapshot()
            for _ in range(3):
                assert going.acquire(timeout=800)
            server_process.kill()
            server_process.start()
        pushing.result(timeout=800)
    same(model.pull(), expected(history))


# --- a full memory budget -----------------------------------------------------------------------------------------


class Stalled:
    """Stalled pushes of generated code that fill the server's memory budget."""

    def __init__(self, address: str, model: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = ParameterServiceStub(self._channel)
        self._model = self._stub.GetModel(pb.GetModelRequest(model=model)).model
        self._go_on = threading.Event()
        self._calls: list[grpc.Future] = []
        while self._has_room():
            assert len(self._calls) < 20, "twenty pushes fit into memory for one or two"
            header = self._header(f"stalled {len(self._calls)}")
            self._calls.append(self._stub.Push.future(self._messages(header)))

    def _header(self, worker_id: str) -> pb.PushHeader:
        name, state = self._model.spec.name, self._model.state
        session = self._stub.OpenSession(pb.OpenSessionRequest(model=name, worker_id=worker_id))
        return pb.PushHeader(
            model=name, state_id=state.state_id, worker_id=worker_id, epoch=session.epoch, sequence=1,
            dtype=self._model.spec.dtype, tensors=self._model.spec.tensors, checksum_kind=1,
            total_bytes=4 * self._model.parameter_count,
        )  # fmt: skip

    def _messages(self, header: pb.PushHeader) -> Iterator[pb.PushRequest]:
        yield pb.PushRequest(header=header)
        yield pb.PushRequest(chunk=TensorChunk(offset=0, data=b"1234"))
        self._go_on.wait(800)
        yield pb.PushRequest(trailer=TransferTrailer(checksum=0))

    def _has_room(self) -> bool:
        """Return whether the server admits another push; it ends before its payload."""
        with pytest.raises(grpc.RpcError) as caught:
            self._stub.Push(iter([pb.PushRequest(header=self._header("looker"))]), timeout=800)
        return caught.value.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED

    def release(self) -> None:
        self._go_on.set()

    def close(self) -> None:
        self.release()
        for call in self._calls:
            call.cancel()
        self._channel.close()


class Retries(logging.Handler):
    """A log handler that records the client's retries and calls a function for each."""

    def __init__(self, callback) -> None:
        super().__init__(logging.INFO)
        self.callback, self.messages = callback, []

    def emit(self, record: logging.LogRecord) -> None:
        if "the next one in" in record.getMessage():
            self.messages.append(record)
            self.callback()


@pytest.fixture
def busy_server(make_server, connect):
    """A server with a budget that stalled pushes fill; yields it, the parameters of its model and those pushes."""
    params = {"w": np.zeros(1_000_000, np.float32)}  # its arena is 16 MB, each push takes 4 MB
    server = make_server(snapshot_interval_seconds=0, snapshot_every_pushes=0, memory_budget_bytes=22_000_000)
    connect(server.address).create_model("m", params)
    stalled = Stalled(server.address, "m")
    yield server, params, stalled
    stalled.close()


def test_a_push_waits_for_the_advised_time_and_then_succeeds(busy_server, connect):
    server, params, stalled = busy_server
    model = connect(server.address, "w1").open_model("m")
    retries = Retries(stalled.release)
    log = logging.getLogger("numba_adam.client.transport.retry")
    log.addHandler(retries)
    log.setLevel(logging.INFO)
    try:
        ack = model.push(params)
    finally:
        log.removeHandler(retries)
        log.setLevel(logging.NOTSET)
    assert (ack.version, ack.applied) == (1, True)
    assert retries.messages, "the memory was taken when the push began"
    for record in retries.messages:
        error, pause = record.args[2], record.args[3]
        assert isinstance(error, BudgetExceededError)
        assert error.detail.retry_after_milliseconds > 0
        assert pause >= error.detail.retry_after_milliseconds / 1000


def test_a_budget_that_stays_full_is_reported_at_the_deadline(busy_server, connect, hurry):
    server, params, stalled = busy_server
    model = connect(server.address, "w1").open_model("m")
    hurry(model, 3.0)
    with pytest.raises(BudgetExceededError, match=r"push to model 'm': gave up after \d+ tries within 3 s"):
        model.push(params)
    stalled.release()
    patient = connect(server.address, "w1").open_model("m")
    assert patient.push(params).version == 1


def test_a_model_larger_than_the_whole_budget_is_refused_at_once(busy_server, connect):
    server, _, _ = busy_server
    with pytest.raises(BudgetExceededError, match="whole memory budget"):
        connect(server.address).create_model("large", {"w": np.zeros(10_000_000, np.float32)})


# --- closing ------------------------------------------------------------------------------------------------------


def test_leaving_the_block_waits_for_pushes_in_the_background(server, connect, arrays, gradients_of, expected):
    with connect(server.address) as client:
        model = client.create_model("m", arrays, lr=0.01)
        pushes = [model.push_async(gradients_of(arrays, seed)) for seed in range(5)]
    assert [push.result(timeout=0).version for push in pushes] == [1, 2, 3, 4, 5]
    same(connect(server.address).open_model("m").pull(), expected(range(5)))


def test_closing_without_waiting_ends_calls_in_flight(busy_server, connect):
    server, params, _ = busy_server
    client = connect(server.address, "w1")
    model = client.open_model("m")
    pushes = [model.push_async(params) for _ in range(4)]  # no memory: the first is tried again and again
    client.close(wait=False)
    for push in pushes:
        with pytest.raises((ServiceError, futures.CancelledError)):
            push.result(timeout=800)
    assert all(push.done() for push in pushes)


def test_leaving_the_block_by_an_exception_does_not_wait(busy_server, connect):
    server, params, _ = busy_server
    queued = []

    def work() -> None:
        with connect(server.address, "w1") as client:
            queued.append(client.open_model("m").push_async(params))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    with pytest.raises((ServiceError, futures.CancelledError)):
        queued[0].result(timeout=800)


def test_a_closed_client_refuses_calls(server, connect, arrays, gradients_of):
    client = connect(server.address)
    model = client.create_model("m", arrays)
    model.push_async(gradients_of(arrays, 1)).result()
    client.close()
    client.close()
    for call in (
        client.status,
        model.pull,
        lambda: model.push(gradients_of(arrays, 2)),
        lambda: model.push_async(gradients_of(arrays, 2)),
        lambda: client.create_model("n", arrays),
    ):
        with pytest.raises(ServiceError, match="the client was closed; open a new ParameterClient"):
            call()
