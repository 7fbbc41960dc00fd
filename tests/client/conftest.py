"""Real servers for the client's tests: in this process, in their own processes, and behind faulty relays."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest

from numba_adam.client import Backoff, Model, ParameterClient
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

sys.path[:0] = [str(Path(__file__).parent)]  # for `programs`, which is no test itself

# These files run twice: over the network, and through shared memory where no relay is in between.
ON_BOTH_TRANSPORTS = (
    *("test_faults", "test_forks", "test_formats", "test_frameworks", "test_interrupts", "test_model"),
    *("test_process_level", "test_sessions", "test_small_pushes", "test_structures", "test_whole_pulls", "test_worker"),
)
QUICK = Backoff(first_seconds=0.01, ceiling_seconds=0.05)
READY = "numba-adam: serving on "


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of the main files once more, as a campaign, through shared memory."""
    if metafunc.module.__name__.rpartition(".")[2] in ON_BOTH_TRANSPORTS:
        again = pytest.param("auto", marks=pytest.mark.campaign, id="same_host")
        metafunc.parametrize("transport", [pytest.param("network", id="network"), again], indirect=True)


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the way that clients of this test take: NUMBA_ADAM_TRANSPORT."""
    wanted = getattr(request, "param", "network")
    monkeypatch.setenv("NUMBA_ADAM_TRANSPORT", wanted)
    return str(wanted)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers within this process; they are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def make(folder: str = "data", **settings: object) -> Server:
            config = ServerConfig(
                listen="127.0.0.1:0", data_dir=tmp_path / folder, **{"stall_seconds": 800, **settings}
            )
            return stack.enter_context(Server(config))

        yield make


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A server in this process that writes snapshots only on request."""
    return make_server(snapshot_interval_seconds=0, snapshot_every_pushes=0)


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., ParameterClient]]:
    """Make clients; they are closed, without waiting, before the servers stop."""
    clients: list[ParameterClient] = []

    def make(address: str, worker_id: str | None = None, **settings: object) -> ParameterClient:
        clients.append(ParameterClient(address, worker_id, **{"timeout_seconds": 800.0, "backoff": QUICK, **settings}))
        return clients[-1]

    yield make
    for client in clients:
        client.close(wait=False)


@pytest.fixture
def client(server: Server, connect: Callable[..., ParameterClient]) -> ParameterClient:
    """A client of `server`."""
    return connect(server.address, "w0")


@pytest.fixture
def hurry() -> Callable[[ParameterClient | Model, float], None]:
    """Give the further calls of a client so many seconds. What prepares them has all the time that it needs."""

    def give(client: ParameterClient | Model, seconds: float) -> None:
        client._connection._timeout_seconds = seconds

    return give


class ServerProcess:
    """`numba-adam serve` as a process that can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "numba_adam", "serve", "--no-supervise", "--listen", self.address]
        command += ["--data-dir", str(self.folder / "data"), "--snapshot-interval-seconds", "0"]
        command += ["--snapshot-every-pushes", "0", "--memory-dir", str(self.folder / "memory")]
        (self.folder / "memory").mkdir(exist_ok=True)
        self._log = (self.folder / "server.log").open("a")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=self.folder)
        line = self._process.stdout.readline().strip()
        assert line.startswith(READY), f"{line!r}; {(self.folder / 'server.log').read_text()}"
        self.address = line.removeprefix(READY)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._end(self._process.kill)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        return self._end(self._process.terminate)

    def close(self) -> None:
        if self._process is not None:
            self.kill()

    def _end(self, how: Callable[[], None]) -> int:
        how()
        code = self._process.wait(800)
        self._process.stdout.close()
        self._log.close()
        self._process = None
        return code


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server process, started."""
    process = ServerProcess(tmp_path)
    try:
        process.start()
        yield process
    finally:
        process.close()


class Wire:
    """A TCP relay on loopback that counts bytes, and cuts connections at given positions."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.carried = {"up": 0, "down": 0}
        """Bytes carried towards the server and back, on all connections."""
        self.cuts = 0
        self.is_down = False
        """Whether new connections are refused."""
        self._cut_at: dict[str, int] = {}
        self._stay_down = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut_at(self, direction: str, carried: int, *, stay_down: bool = False) -> None:
        """Cut the connection once, after this number of bytes in one direction.

        `stay_down`: from then on, refuse new ones, until `is_down` is cleared.
        """
        with self._lock:
            self._cut_at[direction], self._stay_down = carried, stay_down

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                if self.is_down:
                    raise ConnectionRefusedError
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets |= {near, far}
            for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                thread = threading.Thread(target=self._carry, args=(source, sink, direction))
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                data, is_cut = self._allowed(data, direction)
                sink.sendall(data)
                if is_cut:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _allowed(self, data: bytes, direction: str) -> tuple[bytes, bool]:
        with self._lock:
            limit = self._cut_at.get(direction)
            is_cut = limit is not None and self.carried[direction] + len(data) >= limit
            if is_cut:
                data = data[: max(0, limit - self.carried[direction])]
                del self._cut_at[direction]
                self.cuts += 1
                self.is_down = self._stay_down
            self.carried[direction] += len(data)
            return data, is_cut

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = tuple(self._sockets)
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@pytest.fixture
def make_wire() -> Iterator[Callable[[str], Wire]]:
    """Make relays to servers."""
    with contextlib.ExitStack() as stack:

        def make(target: str) -> Wire:
            wire = Wire(target)
            stack.callback(wire.close)
            return wire

        yield make


class Recorder:
    """A gRPC relay that keeps the raw messages of every call, both ways, by method."""

    def __init__(self, target: str) -> None:
        self.calls: list[tuple[str, list[bytes], list[bytes]]] = []
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Relay any method as streams in both directions, which is the wire form of all calls."""

        def relay(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            sent: list[bytes] = []
            received: list[bytes] = []
            self.calls.append((details.method.rsplit("/", 1)[1], sent, received))

            def passed() -> Iterator[bytes]:
                for request in requests:
                    sent.append(request)
                    yield request

            call = self._channel.stream_stream(details.method)(passed())
            try:
                for answer in call:
                    received.append(answer)
                    yield answer
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata())
                context.abort(call.code(), call.details())

        return grpc.stream_stream_rpc_method_handler(relay)

    def of(self, method: str) -> tuple[list[bytes], list[bytes]]:
        """Return the messages of the newest call of a method: those sent, those received."""
        return next((sent, received) for name, sent, received in reversed(self.calls) if name == method)

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()


@pytest.fixture
def make_recorder() -> Iterator[Callable[[str], Recorder]]:
    """Make recording relays to servers."""
    with contextlib.ExitStack() as stack:

        def make(target: str) -> Recorder:
            recorder = Recorder(target)
            stack.callback(recorder.close)
            return recorder

        yield make


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Parameters of a small model, with sizes that are not multiples of a chunk."""
    rng = np.random.default_rng(2)
    return {
        "w": rng.normal(size=(3, 5)).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "b": rng.normal(size=7).astype(np.float32),
        "scale": np.array(0.5, np.float32),
    }


@pytest.fixture
def gradients_of() -> Callable[[dict[str, np.ndarray], int], dict[str, np.ndarray]]:
    """Gradients for a model's arrays, from a seed."""

    def make(arrays: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: rng.normal(size=array.shape).astype(array.dtype) for name, array in arrays.items()}

    return make
