"""Fixtures of the server's tests: a running server, and a client made of generated code."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import xxhash

from numba_adam.ps.errors import DETAIL_KEY
from numba_adam.ps.v1 import model_pb2, transfer_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import ErrorDetail
from numba_adam.ps.v1.parameter_service_pb2_grpc import ParameterServiceStub
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `power_loss`, which is no test itself

# OpenMP's threads spin while they wait, which takes for ever where other programs want the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

DTYPES = {"float32": model_pb2.DTYPE_FLOAT32, "float64": model_pb2.DTYPE_FLOAT64}
XXH3 = transfer_pb2.CHECKSUM_KIND_XXH3_64
Arrays = dict[str, np.ndarray]


class Refusal(NamedTuple):
    """The status of a failed call."""

    code: grpc.StatusCode
    message: str
    detail: ErrorDetail


def refusal_of(call: Callable[[], object]) -> Refusal:
    """Return the status of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    details = [value for key, value in error.trailing_metadata() if key == DETAIL_KEY]
    return Refusal(error.code(), error.details(), ErrorDetail.FromString(details[0]) if details else ErrorDetail())


def tensor_specs(arrays: Arrays) -> list[model_pb2.TensorSpec]:
    return [model_pb2.TensorSpec(name=name, shape=array.shape) for name, array in arrays.items()]


def payload_of(arrays: Arrays) -> bytes:
    return b"".join(array.tobytes() for array in arrays.values())


def transfer(
    request: Any, header: Any, payload: bytes, *, chunk_bytes: int = 1 << 20, checksum: int | None = None
) -> Iterator[Any]:
    """Yield the messages of a transfer, made only by generated code."""
    yield request(header=header)
    for offset in range(0, len(payload), chunk_bytes):
        yield request(chunk=transfer_pb2.TensorChunk(offset=offset, data=payload[offset : offset + chunk_bytes]))
    found = xxhash.xxh3_64_intdigest(payload) if checksum is None else checksum
    yield request(trailer=transfer_pb2.TransferTrailer(checksum=found))


class Pulled(NamedTuple):
    """Parameters and their state."""

    state: model_pb2.StatePoint
    arrays: Arrays


@dataclass
class Session:
    """One worker's session on one model."""

    peer: Peer
    model: str
    spec: model_pb2.ModelSpec
    worker_id: str
    epoch: int
    state_id: str
    sequence: int = 0

    def header(self, grads: dict[str, np.ndarray | None], **changes: Any) -> pb.PushHeader:
        """Return the header of the next push; `changes` replace its fields."""
        present = {name: grad for name, grad in grads.items() if grad is not None}
        fields: dict[str, Any] = {
            "model": self.model,
            "state_id": self.state_id,
            "worker_id": self.worker_id,
            "epoch": self.epoch,
            "sequence": self.sequence + 1,
            "dtype": self.spec.dtype,
            "tensors": tensor_specs(present),
            "absent": [name for name, grad in grads.items() if grad is None],
            "total_bytes": len(payload_of(present)),
            "checksum_kind": XXH3,
        }
        return pb.PushHeader(**(fields | changes))

    def messages(
        self,
        grads: dict[str, np.ndarray | None],
        *,
        chunk_bytes: int = 1 << 20,
        checksum: int | None = None,
        **changes: Any,
    ) -> Iterator[pb.PushRequest]:
        payload = payload_of({name: grad for name, grad in grads.items() if grad is not None})
        header = self.header(grads, **changes)
        return transfer(pb.PushRequest, header, payload, chunk_bytes=chunk_bytes, checksum=checksum)

    def push(self, grads: dict[str, np.ndarray | None], **changes: Any) -> pb.PushAck:
        """Push with the next or the given sequence number, and count it when it is answered."""
        ack = self.peer.stub.Push(self.messages(grads, **changes), timeout=800).ack
        self.sequence = max(self.sequence, changes.get("sequence", self.sequence + 1))
        return ack


def _mode_of(rounds: dict[str, Any] | None, staleness: int | None) -> Any:
    if rounds is not None:
        return model_pb2.MODE_SYNC
    return model_pb2.MODE_ASYNC if staleness is None else model_pb2.MODE_SSP


@dataclass
class Peer:
    """A client made of generated code."""

    address: str
    channel: grpc.Channel = field(init=False)
    stub: ParameterServiceStub = field(init=False)

    def __post_init__(self) -> None:
        options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)]
        self.channel = grpc.insecure_channel(self.address, options=options)
        self.stub = ParameterServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def create(
        self,
        params: Arrays,
        name: str = "model",
        *,
        request_id: str = "",
        exist_ok: bool = False,
        durability: int = model_pb2.DURABILITY_UNSPECIFIED,
        rounds: dict[str, Any] | None = None,
        staleness: int | None = None,
        lease_seconds: float | None = None,
        settings: dict[str, Any] | None = None,
        **hyper: Any,
    ) -> pb.CreateModelResponse:
        spec = model_pb2.ModelSpec(
            name=name,
            dtype=DTYPES[next(iter(params.values())).dtype.name],
            tensors=tensor_specs(params),
            hyperparameters=model_pb2.Hyperparameters(**hyper),
            durability=durability,
            mode=_mode_of(rounds, staleness),
            staleness=staleness,
            lease_seconds=lease_seconds,
            settings=None if settings is None else model_pb2.Settings(**settings),
            rounds=None if rounds is None else model_pb2.Rounds(**rounds),
        )
        header = pb.CreateModelHeader(
            spec=spec,
            request_id=request_id or uuid.uuid4().hex,
            exist_ok=exist_ok,
            total_bytes=len(payload_of(params)),
            checksum_kind=XXH3,
        )
        return self.stub.CreateModel(transfer(pb.CreateModelRequest, header, payload_of(params)), timeout=800)

    def session(self, model: str = "model", worker_id: str = "worker") -> Session:
        spec = self.stub.GetModel(pb.GetModelRequest(model=model)).model.spec
        opened = self.stub.OpenSession(pb.OpenSessionRequest(model=model, worker_id=worker_id))
        assert opened.first_sequence == 1
        return Session(self, model, spec, worker_id, opened.epoch, opened.state.state_id)

    def state(self, model: str = "model") -> model_pb2.StatePoint:
        return self.stub.GetModel(pb.GetModelRequest(model=model)).model.state

    def pull(self, model: str = "model", *, timeout: float = 60, **request: Any) -> Pulled:
        request = {"checksum_kind": XXH3} | request
        answers = self.stub.Pull(pb.PullRequest(model=model, **request), timeout=timeout)
        return self._gather(model, list(answers))

    def push_pull(self, session: Session, grads: Arrays) -> tuple[pb.PushAck, Pulled]:
        messages = transfer(pb.PushPullRequest, session.header(grads), payload_of(grads))
        ack, *rest = self.stub.PushPull(messages, timeout=800)
        session.sequence += 1
        return ack.ack, self._gather(session.model, rest)

    def _gather(self, model: str, answers: Sequence[Any]) -> Pulled:
        """Check a transfer and divide it into arrays."""
        first, *chunks, last = answers
        payload = b""
        for answer in chunks:
            assert answer.chunk.offset == len(payload)
            payload += answer.chunk.data
        assert first.header.total_bytes == len(payload)
        assert last.trailer.checksum == xxhash.xxh3_64_intdigest(payload)
        spec = self.stub.GetModel(pb.GetModelRequest(model=model)).model.spec
        dtype = "float32" if spec.dtype == model_pb2.DTYPE_FLOAT32 else "float64"
        arrays, flat = {}, np.frombuffer(payload, dtype)
        for tensor in spec.tensors:
            size = int(np.prod(tensor.shape, dtype=np.int64))
            arrays[tensor.name], flat = flat[:size].reshape(tensor.shape), flat[size:]
        return Pulled(first.header.state, arrays)


class Process:
    """A server in its own process, started through `serve`."""

    PROGRAM = (
        "import json, logging, pathlib, resource, sys\n"
        "from numba_adam.server.config import ServerConfig\n"
        "from numba_adam.server.main import serve\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "options = dict(listen='127.0.0.1:0', snapshot_interval_seconds=0, threads=2)\n"
        "options.update(json.loads(sys.argv[2]))\n"
        "exec(options.pop('first', ''))\n"
        "limit = options.pop('descriptors', None)\n"
        "limit and resource.setrlimit(resource.RLIMIT_NOFILE, limit)\n"
        "sys.exit(serve(ServerConfig(data_dir=pathlib.Path(sys.argv[1]), **options)))\n"
    )

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, **options: Any) -> None:
        self.log = folder.parent / f"{folder.name}-{uuid.uuid4().hex}.log"
        self._was_signalled = "first" in options or environment is not None  # these may end the server
        with self.log.open("w") as log:
            command = [sys.executable, "-c", self.PROGRAM, str(folder), json.dumps(options)]
            variables = {**os.environ, **(environment or {})}
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=variables)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 800)
        line = self._process.stdout.readline() if ready else ""
        if not line.startswith("numba-adam: serving on "):
            self.kill()
            raise AssertionError(f"the server did not start: {self.log.read_text()}")
        self.address = line.split()[-1]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        try:
            self._process.wait(0.01)  # whoever asks in a loop leaves the server some of the processor
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """Send SIGKILL and wait.

        Raises:
            AssertionError: the server had crashed before, which its clients see as a broken connection only.
        """
        status = self._process.poll()
        crashed = status is not None and status < 0 and not self._was_signalled
        self.signal(signal.SIGKILL)
        self._finish()
        assert not crashed, f"the server died of signal {-status}: {self.log.read_text()}"

    def signal(self, number: int) -> None:
        """Send a signal without waiting."""
        self._was_signalled = True
        self._process.send_signal(number)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.signal(signal.SIGTERM)
        return self._finish()

    def wait(self) -> int:
        return self._finish()

    def _finish(self) -> int:
        status = self._process.wait(800)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return status


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(
        listen="127.0.0.1:0",
        data_dir=tmp_path / "data",
        memory_budget_bytes=1 << 28,
        snapshot_interval_seconds=0,
        snapshot_every_pushes=0,
        stall_seconds=800,  # where a test holds a call up, only it says for how long
        rpc_threads=16,
        threads=2,
    )


@pytest.fixture
def server(config: ServerConfig) -> Iterator[Server]:
    with Server(config) as running:
        yield running


@pytest.fixture
def peers() -> Iterator[Callable[[str], Peer]]:
    """Makes peers, and closes them at the end."""
    made: list[Peer] = []

    def make(address: str) -> Peer:
        made.append(Peer(address))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


@pytest.fixture
def peer(server: Server, peers: Callable[[str], Peer]) -> Peer:
    return peers(server.address)


@pytest.fixture
def make_model() -> Callable[..., model_pb2.Model]:
    """Makes the model `model` with settings; returns its description."""

    def make(peer: Peer, params: Arrays, level: str = "memory", settings: Any = None) -> model_pb2.Model:
        spec = model_pb2.ModelSpec(
            name="model",
            dtype=DTYPES[next(iter(params.values())).dtype.name],
            tensors=tensor_specs(params),
            durability=model_pb2.Durability.Value(f"DURABILITY_{level.upper()}"),
            settings=settings,
        )
        payload = payload_of(params)
        header = pb.CreateModelHeader(
            spec=spec, request_id=uuid.uuid4().hex, total_bytes=len(payload), checksum_kind=XXH3, after_state_id=""
        )
        return peer.stub.CreateModel(transfer(pb.CreateModelRequest, header, payload), timeout=800).model

    return make


@pytest.fixture
def processes() -> Iterator[Callable[..., Process]]:
    """Starts servers in their own processes, and ends them at the end."""
    started: list[Process] = []

    def start(folder: Path, **options: Any) -> Process:
        started.append(Process(folder, **options))
        return started[-1]

    yield start
    with contextlib.ExitStack() as stack:
        for process in started:
            stack.callback(process.kill)


@pytest.fixture
def wire() -> SimpleNamespace:
    """Functions that make messages by generated code."""
    return SimpleNamespace(transfer=transfer, payload_of=payload_of, tensor_specs=tensor_specs, Process=Process)


@pytest.fixture
def refused() -> Callable[[Callable[[], object]], Refusal]:
    return refusal_of


@pytest.fixture
def params() -> Arrays:
    rng = np.random.default_rng(7)
    return {
        "weight": rng.standard_normal((5, 3), dtype=np.float32),
        "scalar": np.array(0.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
        "bias": rng.standard_normal(70, dtype=np.float32),
    }


def random_grads(params: Arrays, rng: np.random.Generator) -> Arrays:
    return {name: np.asarray(rng.standard_normal(array.shape), array.dtype) for name, array in params.items()}


@pytest.fixture
def grads_of() -> Callable[[Arrays, np.random.Generator], Arrays]:
    return random_grads
