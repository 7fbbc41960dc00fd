"""Stopping a server: it saves first, and slow, silent or stalled peers cannot prevent that."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.embedded import Server

pytestmark = pytest.mark.campaign  # each starts two servers
SERVICE = "/numba_adam.ps.v1.ParameterService"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and empty settings
FOREVER_SECONDS = 1e6

# Sends half of a push, prints that it did, and then waits until it is killed.
HALF_A_PUSH = """
import sys, threading
import grpc, numpy as np
from numba_adam.ps.v1 import transfer_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub
stub = ParameterServiceStub(grpc.insecure_channel(sys.argv[1]))
opened = stub.OpenSession(pb.OpenSessionRequest(model="model", worker_id="stopped"))
spec = stub.GetModel(pb.GetModelRequest(model="model")).model.spec
size = 4 * sum(int(np.prod(tensor.shape)) for tensor in spec.tensors)
def half():
    yield pb.PushRequest(header=pb.PushHeader(model="model", state_id=opened.state.state_id, worker_id="stopped",
        epoch=opened.epoch, sequence=1, dtype=spec.dtype, tensors=spec.tensors, total_bytes=size, checksum_kind=1))
    yield pb.PushRequest(chunk=transfer_pb2.TensorChunk(offset=0, data=bytes(size // 2)))
    stub.GetServerStatus(pb.GetServerStatusRequest())  # the server answers it after the chunk above
    print("half", flush=True)
    threading.Event().wait()
stub.Push(half())
"""


A_WATCHER = """
import sys
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
watch = health_pb2_grpc.HealthStub(grpc.insecure_channel(sys.argv[1])).Watch(health_pb2.HealthCheckRequest())
assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
print("serving", flush=True)
list(watch)
"""


@contextlib.contextmanager
def connected(peer, sends):
    """A connection that sends these bytes, and then nothing."""
    host, port = peer.address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(sends)
        if sends:
            assert connection.recv(9)  # the server's settings frame: the connection is established
        yield


@contextlib.contextmanager
def half_open(peer, method, *, first=()):
    """A call that sends these first requests and then no more."""
    over, begun = threading.Event(), threading.Event()

    def requests():
        yield from first
        begun.set()
        over.wait()

    call = peer.channel.stream_stream(method)(requests())
    try:
        assert begun.wait(800)
        peer.stub.GetServerStatus(pb.GetServerStatusRequest())  # answered after what was sent before it
        yield
    finally:
        call.cancel()
        over.set()


@contextlib.contextmanager
def watching(peer):
    watch = health_pb2_grpc.HealthStub(peer.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    yield
    watch.cancel()


@contextlib.contextmanager
def pulling(peer):
    """A pull that reads one message."""
    pull = peer.stub.Pull(pb.PullRequest(model="large", checksum_kind=1))
    next(pull)
    yield
    pull.cancel()


@contextlib.contextmanager
def in_mid_push(peer, *, stopped):
    process = subprocess.Popen([sys.executable, "-c", HALF_A_PUSH, peer.address], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "half\n"
        if stopped:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.kill()
        process.wait(800)
        process.stdout.close()


IDLE = {
    "an idle connection": lambda peer: connected(peer, b""),
    "an idle HTTP/2 connection": lambda peer: connected(peer, PREFACE),
    "an idle channel": contextlib.nullcontext,
    "who watches its health": watching,
    "a push without a header": lambda peer: half_open(peer, f"{SERVICE}/Push"),
    "a unary call without a request": lambda peer: half_open(peer, f"{SERVICE}/GetModel"),
    "a pull without a request": lambda peer: half_open(peer, f"{SERVICE}/Pull"),
    "a health check without a request": lambda peer: half_open(peer, "/grpc.health.v1.Health/Check"),
    "a reflection call without a request": lambda peer: half_open(
        peer, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    ),
}
BUSY = {
    "a push in mid-stream": lambda peer: in_mid_push(peer, stopped=False),
    "a pusher that was stopped in mid-push": lambda peer: in_mid_push(peer, stopped=True),
    "a puller that takes nothing": pulling,
}


@pytest.fixture
def serve(tmp_path, processes, peers, params, grads_of):
    """Starts a server with a model at version 3 without a snapshot, and a large model."""

    def start(**options):
        process = processes(tmp_path / "data", stall_seconds=FOREVER_SECONDS, **options)
        peer = peers(process.address)
        peer.create(params)
        peer.create({"x": np.ones(1 << 20, np.float32)}, "large")
        worker = peer.session()
        for seed in range(3):
            worker.push(grads_of(params, np.random.default_rng(seed)))
        return process, peer, worker

    return start


def wait_for_snapshot(process):
    """Wait until version 3 of the model is on disk; the test's timeout is the limit."""
    while "model model: snapshot of version 3" not in process.log.read_text():
        assert process.is_running


@pytest.mark.parametrize("who", IDLE)
def test_silent_calls_do_not_delay_the_stop(tmp_path, processes, peers, serve, who):
    """The deadline for calls in flight is eleven days."""
    process, peer, worker = serve(stop_deadline_seconds=FOREVER_SECONDS)
    with IDLE[who](peer):
        assert process.stop() == 0
    state = peers(processes(tmp_path / "data").address).state()
    assert (state.state_id, state.version) == (worker.state_id, 3)


@pytest.mark.parametrize("who", BUSY)
def test_acknowledged_pushes_are_saved_before_waiting_for_calls_in_flight(tmp_path, processes, peers, serve, who):
    """`docker stop` kills after ten seconds."""
    process, peer, worker = serve(stop_deadline_seconds=FOREVER_SECONDS)
    with BUSY[who](peer):
        process.signal(signal.SIGTERM)
        wait_for_snapshot(process)
        assert process.is_running
        process.kill()
    state = peers(processes(tmp_path / "data").address).state()
    assert state.version == 3
    assert state.state_id != worker.state_id  # it did not stop cleanly


@pytest.mark.parametrize("who", BUSY)
def test_calls_that_do_not_end_are_cancelled_at_the_deadline(tmp_path, processes, peers, serve, who):
    process, peer, worker = serve(stop_deadline_seconds=0.2)
    with BUSY[who](peer):
        assert process.stop() == 0
    state = peers(processes(tmp_path / "data").address).state()
    assert (state.state_id, state.version) == (worker.state_id, 3)


def limit_files(process, nbytes):
    """Make writes of a process beyond this file size fail, as on a full disk."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))


def test_a_full_disk_is_reported_and_affects_only_models_without_space(tmp_path, processes, peers, serve, grads_of):
    process, peer, worker = serve(stop_deadline_seconds=FOREVER_SECONDS)
    large = peer.session("large")
    large.push({"x": np.ones(1 << 20, np.float32)})
    limit_files(process, 1 << 20)
    with in_mid_push(peer, stopped=True):
        process.signal(signal.SIGTERM)
        wait_for_snapshot(process)
    assert process.wait() == 1
    assert "model large: the last snapshot could not be written" in process.log.read_text()
    peer = peers(processes(tmp_path / "data").address)
    assert (peer.state().state_id, peer.state().version) == (worker.state_id, 3)
    assert peer.state("large").version == 0
    assert peer.state("large").state_id != large.state_id


def test_disk_space_freed_during_the_stop_is_used(tmp_path, processes, peers, serve):
    process, peer, _ = serve(stop_deadline_seconds=FOREVER_SECONDS)
    large = peer.session("large")
    large.push({"x": np.ones(1 << 20, np.float32)})
    limit_files(process, 1 << 20)  # the log is a file too
    with in_mid_push(peer, stopped=True):
        process.signal(signal.SIGTERM)
        while "model large: the last snapshot could not be written" not in process.log.read_text():
            assert process.is_running
        limit_files(process, resource.RLIM_INFINITY)
    assert process.wait() == 0
    state = peers(processes(tmp_path / "data").address).state("large")
    assert (state.state_id, state.version) == (large.state_id, 1)


def test_pushes_acknowledged_during_the_stop_are_in_the_last_snapshot(
    tmp_path, processes, peers, serve, params, grads_of
):
    """Many are in mid-stream at the signal, and continue after the first snapshot."""
    process, peer, _ = serve(stop_deadline_seconds=FOREVER_SECONDS)
    begun, finish = threading.Semaphore(0), threading.Event()
    workers = [peer.session(worker_id=f"w{index}") for index in range(8)]

    def slowly(worker, index):
        header, *rest = worker.messages(grads_of(params, np.random.default_rng(index)))
        yield header
        begun.release()
        finish.wait(800)
        yield from rest

    pushes = [peer.stub.Push.future(slowly(worker, index)) for index, worker in enumerate(workers)]
    for _ in workers:
        assert begun.acquire(timeout=800)
    peer.pull()  # answered after the headers were sent on the same connection
    process.signal(signal.SIGTERM)
    wait_for_snapshot(process)
    finish.set()
    assert sorted(push.result(800).ack.version for push in pushes) == list(range(4, 12))
    assert process.wait() == 0
    state = peers(processes(tmp_path / "data").address).state()
    assert (state.state_id, state.version) == (workers[0].state_id, 11)


def test_a_health_watcher_that_reads_nothing_does_not_prevent_saving(tmp_path, processes, peers, serve):
    """Its connection is open and its process stopped. Watchers are told of the stop before models are saved."""
    process, peer, worker = serve(stop_deadline_seconds=FOREVER_SECONDS)
    watcher = subprocess.Popen([sys.executable, "-c", A_WATCHER, peer.address], stdout=subprocess.PIPE, text=True)
    try:
        assert watcher.stdout.readline() == "serving\n"
        watcher.send_signal(signal.SIGSTOP)
        assert process.stop() == 0
    finally:
        watcher.kill()
        watcher.wait(800)
        watcher.stdout.close()
    state = peers(processes(tmp_path / "data").address).state()
    assert (state.state_id, state.version) == (worker.state_id, 3)


def test_a_new_call_is_refused_during_the_stop(serve):
    """Clients treat gRPC's own answer as an unreachable server, and retry."""
    process, peer, _ = serve(stop_deadline_seconds=FOREVER_SECONDS)
    with in_mid_push(peer, stopped=True):
        process.signal(signal.SIGTERM)
        wait_for_snapshot(process)
        with pytest.raises(grpc.RpcError) as refused:
            peer.stub.GetModel(pb.GetModelRequest(model="model"), timeout=800)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert process.wait() == 0


def test_simultaneous_signals_cause_one_stop(tmp_path, processes, peers, serve):
    """The second handler could run while the first one held a lock, and the server never stopped."""
    process, peer, worker = serve(stop_deadline_seconds=FOREVER_SECONDS)
    with in_mid_push(peer, stopped=True):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM) * 10:
            process.signal(number)
        wait_for_snapshot(process)
        assert process.is_running
    assert process.wait() == 0
    state = peers(processes(tmp_path / "data").address).state()
    assert (state.state_id, state.version) == (worker.state_id, 3)


def test_a_stopped_server_leaves_no_threads_or_descriptors(config, peers, params):
    """A program may embed many servers in turn."""

    def run():
        with Server(config) as server:
            peer = peers(server.address)
            peer.create(params, exist_ok=True)
            host, port = server.address.rsplit(":", 1)
            idle = socket.create_connection((host, int(port)))
        idle.close()
        peer.close()

    run()
    lock = os.stat(config.data_dir / "lock").st_ino
    for _ in range(3):
        run()
    held = [
        os.fstat(int(name)).st_ino for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")
    ]
    assert lock not in held
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("numba-adam")]
