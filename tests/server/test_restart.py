"""Restarts after stops and kills: what is restored, what is lost, and how it is reported."""

import contextlib
import dataclasses
import logging
import shutil
import signal
import threading

import grpc
import numpy as np
import pytest
import xxhash
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors import safe_open

import numba_adam as na
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server


def newest(folder, model="model"):
    """Return the arrays of a model's newest snapshot, read by the safetensors library."""
    path = max((folder / "models" / model).glob("*.snapshot"))
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict


def assert_same_bits(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name


def test_a_clean_restart_continues_with_the_same_state(config, peers, params, grads_of):
    """Sessions, kept answers, state id, steps and moments survive, so a worker notices nothing."""
    rng = np.random.default_rng(1)
    grads = [grads_of(params, rng) for _ in range(4)]
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params, lr=0.1, request_id="once")
        worker = peer.session()
        first = worker.push(grads[0])
        bad = grads[1] | {"bias": np.full(70, np.nan, np.float32)}
        with pytest.raises(grpc.RpcError) as rejection:
            worker.push(bad)
        worker.push(grads[2] | {"weight": None}, sequence=3)
    with Server(config) as server:
        peer = worker.peer = peers(server.address)
        assert peer.state().state_id == worker.state_id
        assert peer.state().version == peer.state().snapshot_version == 2
        again = worker.push(grads[0], sequence=1)
        assert (again.version, again.staleness, again.duplicate) == (first.version, first.staleness, True)
        with pytest.raises(grpc.RpcError) as repeated:
            worker.push(bad, sequence=2)
        assert repeated.value.details() == rejection.value.details()
        assert worker.push(grads[3], sequence=4).version == 3
        assert peer.create(params, lr=0.1, request_id="once").created
        with pytest.raises(grpc.RpcError, match="other initial values"):
            peer.create(params | {"scalar": np.array(3, np.float32)}, lr=0.1, request_id="once")
        found = peer.pull().arrays
    state = {name: [array.copy(), np.zeros_like(array), np.zeros_like(array)] for name, array in params.items()}
    steps = dict.fromkeys(params, 0)
    for update in (grads[0], {name: grads[2][name] for name in params if name != "weight"}, grads[3]):
        for name, grad in update.items():
            steps[name] += 1
            na.adam_update(state[name][0], grad, *state[name][1:], steps[name], lr=0.1)
    assert_same_bits(found, {name: arrays[0] for name, arrays in state.items()})
    assert_same_bits(
        newest(config.data_dir),
        {
            f"{group}/{name}": arrays[index]
            for name, arrays in state.items()
            for index, group in enumerate(("param", "exp_avg", "exp_avg_sq"))
        },
    )


def test_sigkill_restores_the_last_snapshot_bit_for_bit(tmp_path, processes, peers, params, grads_of, refused):
    rng = np.random.default_rng(2)
    folder = tmp_path / "data"
    process = processes(folder)
    peer = peers(process.address)
    peer.create(params, lr=0.1)
    worker = peer.session()
    for _ in range(3):
        worker.push(grads_of(params, rng))
    peer.stub.Snapshot(pb.SnapshotRequest())
    saved = peer.pull()
    on_disk = newest(folder)
    for _ in range(2):
        lost = worker.push(grads_of(params, rng))
    assert (lost.state.version, lost.state.snapshot_version) == (5, 3)
    process.kill()

    process = processes(folder)
    peer = worker.peer = peers(process.address)
    state = peer.state()
    assert (state.version, state.snapshot_version) == (3, 3)
    assert state.state_id != worker.state_id
    assert_same_bits(peer.pull().arrays, saved.arrays)
    for call in (
        lambda: worker.push(grads_of(params, rng)),
        lambda: worker.push(grads_of(params, rng), sequence=1),
        lambda: peer.pull(min_version=5, state_id=worker.state_id),
    ):
        refusal = refused(call)
        assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_REWOUND)
        assert refusal.detail.state == state
        assert "version 3" in refusal.message
    peer.stub.Snapshot(pb.SnapshotRequest())
    assert_same_bits(newest(folder), on_disk)
    newer = peer.session()
    assert newer.epoch > worker.epoch
    assert newer.push(grads_of(params, rng)).version == 4
    assert "rewound to version 3" in process.log.read_text()


def test_a_new_model_survives_a_kill(tmp_path, processes, peers, params):
    process = processes(tmp_path / "data")
    peers(process.address).create(params, request_id="r")
    process.kill()
    peer = peers(processes(tmp_path / "data").address)
    assert_same_bits(peer.pull().arrays, params)
    assert peer.create(params, request_id="r").created


def test_a_damaged_newest_snapshot_falls_back_even_after_a_clean_stop(config, peers, params, grads_of, caplog):
    rng = np.random.default_rng(3)
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params)
        worker = peer.session()
        worker.push(grads_of(params, rng))
        peer.stub.Snapshot(pb.SnapshotRequest())
        before = peer.pull()
        worker.push(grads_of(params, rng))
    path = max((config.data_dir / "models" / "model").iterdir())
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0x10
    path.write_bytes(whole)
    with caplog.at_level(logging.INFO), Server(config) as server:
        peer = peers(server.address)
        found = peer.pull()
        assert found.state.version == 1
        assert found.state.state_id != worker.state_id
        assert_same_bits(found.arrays, before.arrays)
    assert path.name in caplog.text
    assert "trying the previous snapshot" in caplog.text
    assert "rewound to version 1" in caplog.text


@pytest.mark.parametrize("what", ["its format", "its mode", "its sessions"])
def test_a_snapshot_of_a_newer_version_stops_the_start_and_is_kept(config, peers, params, grads_of, what):
    """It is intact and acknowledged; restoring the previous one would lose it silently."""
    with Server(config) as server:
        peers(server.address).create(params)
        worker = peers(server.address).session()
        worker.push(grads_of(params, np.random.default_rng(8)))
    folder = config.data_dir / "models" / "model"
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(files) > 1
    newest = max(files)
    rewrite_header(newest, what)
    files[newest] = newest.read_bytes()
    words = {"its format": "format version is '9'", "its mode": "mode is 'later'", "its sessions": "has 'clock'"}[what]
    for _ in range(2):
        with pytest.raises(na.errors.SnapshotError, match=words):
            Server(config)
        assert {path: path.read_bytes() for path in folder.iterdir()} == files


def rewrite_header(path, what):
    """Change a snapshot's header as a newer version might, with valid checksums."""
    whole = bytearray(path.read_bytes())
    old, new = {
        "its format": (b'"format_version":"2"', b'"format_version":"9"'),
        "its mode": (rb"\"mode\":\"async\"", rb"\"mode\":\"later\""),
        "its sessions": (rb"\"sessions\":[{", rb"\"sessions\":[{\"clock\":1,"),
    }[what]
    assert whole.count(old) == 1
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].replace(old, new).rstrip(b" ")
    header = header.ljust(length)
    assert len(header) == length
    start = len(b'{"__metadata__":{"header_xxh3_64":"')
    header[start : start + 16] = b"0" * 16
    header[start : start + 16] = xxhash.xxh3_64_hexdigest(whole[:8] + header).encode()
    path.write_bytes(whole[:8] + header + whole[8 + length :])


def test_a_model_with_only_damaged_snapshots_stops_the_start(config, peers, params):
    """One such model is enough."""
    with Server(config) as server:
        peers(server.address).create(params)
        peers(server.address).create(params, name="another")
    damaged = list((config.data_dir / "models" / "model").iterdir())
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    for _ in range(2):  # and what it found is left as it was
        with pytest.raises(na.errors.CorruptSnapshotError, match="model 'model': no snapshot is intact") as caught:
            Server(config)
        assert all(str(path) in str(caught.value) for path in damaged)


@contextlib.contextmanager
def started_with_hang_up(action):
    """Set how started processes handle SIGHUP, because the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_finishes_calls_writes_snapshots_and_exits_with_0(tmp_path, processes, peers, params, grads_of, number):
    """A push in mid-stream at the signal is finished, answered, and in the last snapshot."""
    folder = tmp_path / "data"
    with started_with_hang_up(signal.SIG_DFL):
        process = processes(folder, stop_deadline_seconds=1e6)
    peer = peers(process.address)
    peer.create(params, lr=0.1)
    worker = peer.session()
    header, *rest = worker.messages(grads_of(params, np.random.default_rng(4)), chunk_bytes=100)
    begun, finish = threading.Event(), threading.Event()

    def slowly():
        yield header
        yield rest[0]
        begun.set()
        finish.wait(800)
        yield from rest[1:]

    push = peer.stub.Push.future(slowly())
    assert begun.wait(800)
    peer.pull()  # answered after the header was sent on the same connection
    waiting = peer.stub.Pull(pb.PullRequest(model="model", min_version=9, state_id=worker.state_id, checksum_kind=1))
    peer.pull()
    process.signal(number)
    with pytest.raises(grpc.RpcError) as told:
        list(waiting)
    assert told.value.code() == grpc.StatusCode.UNAVAILABLE
    finish.set()
    assert push.result(800).ack.version == 1
    assert process.wait() == 0
    assert newest(folder)["exp_avg/bias"].any()
    assert "snapshot of version 1" in process.log.read_text()

    peer = peers(processes(folder).address)
    assert peer.state().state_id == worker.state_id
    assert peer.state().version == 1


def test_under_nohup_a_closed_terminal_does_not_stop_the_server(tmp_path, processes, peers, params):
    with started_with_hang_up(signal.SIG_IGN):
        process = processes(tmp_path / "data")
    process.signal(signal.SIGHUP)
    peer = peers(process.address)
    peer.create(params)
    assert process.stop() == 0


def test_health_watchers_are_told_of_the_stop_and_do_not_delay_it(tmp_path, processes, peers, params):
    process = processes(tmp_path / "data", stop_deadline_seconds=1e6)
    peer = peers(process.address)
    peer.create(params)
    stub = health_pb2_grpc.HealthStub(peer.channel)
    watches = [
        stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "numba_adam.ps.v1.ParameterService")
    ]
    for watch in watches:
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    process.signal(signal.SIGTERM)
    for watch in watches:
        assert [answer.status for answer in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
    assert process.wait() == 0
    assert "Traceback" not in process.log.read_text()


def test_a_health_watcher_that_disconnects_is_removed(server, peer):
    watch = health_pb2_grpc.HealthStub(peer.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    while server._health._watchers:  # the test's timeout is its limit
        peer.stub.ListModels(pb.ListModelsRequest())


def test_an_endless_push_does_not_delay_the_stop(tmp_path, processes, peers, params, grads_of):
    process = processes(tmp_path / "data", stop_deadline_seconds=0.2)
    peer = peers(process.address)
    peer.create(params)
    begun, finish = threading.Event(), threading.Event()
    header, *_ = peer.session().messages(grads_of(params, np.random.default_rng(5)))

    def stuck():
        yield header
        begun.set()
        finish.wait(800)

    push = peer.stub.Push.future(stuck())
    assert begun.wait(800)
    peer.pull()
    assert process.stop() == 0
    finish.set()
    assert push.exception(800).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_snapshots_are_written_by_timer_and_after_a_number_of_pushes(tmp_path, processes, peers, params, grads_of):
    rng = np.random.default_rng(6)
    by_timer = processes(tmp_path / "timer", snapshot_interval_seconds=0.05)
    by_count = processes(tmp_path / "count", snapshot_every_pushes=2)
    for process in (by_timer, by_count):
        peer = peers(process.address)
        peer.create(params)
        worker = peer.session()
        for _ in range(2):
            worker.push(grads_of(params, rng))
        while peer.state().snapshot_version < 2:  # the test's timeout is its limit
            assert peer.state().version == 2
        process.kill()
        again = peers(processes(tmp_path / ("timer" if process is by_timer else "count")).address)
        assert again.state().version == 2


def test_a_second_server_on_the_same_folder_or_address_is_refused(server, config, tmp_path):
    with pytest.raises(na.errors.ConfigurationError, match="another server uses it"):
        Server(config)
    other = type(config)(listen=server.address, data_dir=tmp_path / "other", memory_budget_bytes=1 << 28)
    second = Server(other)
    with pytest.raises(na.errors.ConfigurationError, match="another program may have it"):
        second.start()
    assert second.stop()  # as a caller's `finally` may do
    with Server(type(config)(listen="127.0.0.1:0", data_dir=tmp_path / "other", memory_budget_bytes=1 << 28)) as third:
        assert third.address != server.address


def test_a_copy_of_a_models_folder_is_refused(config, peers, params):
    """Otherwise two models would write to one folder."""
    with Server(config) as server:
        peers(server.address).create(params)
    models = config.data_dir / "models"
    shutil.copytree(models / "model", models / "backup")
    with pytest.raises(
        na.errors.ConfigurationError, match="the folder 'backup' in it holds snapshots of model 'model'"
    ):
        Server(config)
    shutil.rmtree(models / "backup")
    with Server(config) as server:
        assert [model.spec.name for model in peers(server.address).stub.ListModels(pb.ListModelsRequest()).models] == [
            "model"
        ]


def test_a_folder_that_is_not_a_model_is_ignored(config, peers, params, caplog):
    with Server(config) as server:
        peers(server.address).create(params)
    odd = config.data_dir / "models" / "lost+found"
    odd.mkdir()
    (odd / "00000001.snapshot").write_text("something else")
    with Server(config) as server:
        assert [model.spec.name for model in peers(server.address).stub.ListModels(pb.ListModelsRequest()).models] == [
            "model"
        ]
    assert (odd / "00000001.snapshot").read_text() == "something else"
    assert "'lost+found': ignored, not the name of a model" in caplog.text


def test_a_budget_too_small_for_the_saved_models_gives_a_clear_error(config, peers):
    with Server(config) as server:
        peer = peers(server.address)
        peer.create({"x": np.ones(1 << 18, np.float32)})
        state = peer.state()
    with pytest.raises(na.errors.ConfigurationError, match=r"memory_budget_bytes=1048576: the models in .* need"):
        Server(dataclasses.replace(config, memory_budget_bytes=1 << 20))
    with Server(config) as server:  # and it was no crash: nobody has to rewind
        assert peers(server.address).state() == state
