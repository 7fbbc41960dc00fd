"""Real servers and relays for the examples, and a run of a worker program through a kill of its server."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from numba_adam.ps.v1 import parameter_service_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
READY = "numba-adam: serving on "


class ServerProcess:
    """`numba-adam serve` as a process that can be killed and started again on its port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.address = "127.0.0.1:0"
        self._folder, self._options = folder, options

    def start(self) -> None:
        command = [sys.executable, "-m", "numba_adam", "serve", "--listen", self.address]
        command += ["--data-dir", str(self._folder / "data"), "--snapshot-every-pushes", "50", *self._options]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._folder)
        line = self._process.stdout.readline().strip()
        assert line.startswith(READY), f"{line!r}; {(self._folder / 'server.log').read_text()}"
        self.address = line.removeprefix(READY)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait(800)
        self._process.stdout.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server process that saves a snapshot every 50 pushes, with further options of the command."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> ServerProcess:
            process = ServerProcess(tmp_path, *options)
            process.start()
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server process without further options."""
    return start_server()


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., list[str]]:
    """The command of the worker in Node.js, with the images that it reads."""
    digits = tmp_path / "digits.json"
    program = [sys.executable, "examples/node/digits_json.py"]
    digits.write_text(subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True, timeout=800).stdout)

    def command(address: str, steps: int, *more: str, seconds: int = 800) -> list[str]:
        words = [address, str(digits), "--steps", str(steps), "--timeout-seconds", str(seconds), *more]
        return ["node", str(EXAMPLES / "node" / "digits.js"), *words]

    return command


@pytest.fixture
def cpp() -> Callable[..., list[str]]:
    """The command of the worker in C++."""

    def command(address: str, steps: int, *, seconds: int = 800) -> list[str]:
        return [str(EXAMPLES / "cpp" / "build" / "regression"), address, str(steps), str(seconds)]

    return command


class Story(NamedTuple):
    """What a worker program printed around a kill of its server."""

    before: list[str]
    """Lines before the kill."""

    saved: int
    """The newest snapshot that the last of them reports."""

    after: list[str]
    """Lines after it."""


@pytest.fixture
def train_through_a_kill(server: ServerProcess, tmp_path: Path) -> Callable[..., Story]:
    """Run a worker program that prints lines with "newest snapshot N". Kill the server when N is above 0."""

    def train(*command: str) -> Story:
        lines: tuple[list[str], list[str]] = ([], [])
        saved = 0
        errors = tmp_path / "errors"
        # The pipe is as small as a pipe can be, and is read byte by byte. So a worker that runs ahead of this process
        # waits for it after about a hundred lines, and cannot finish before the kill.
        with errors.open("w") as log:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, bufsize=0, pipesize=4096)
        try:
            for line in iter(worker.stdout.readline, b""):
                lines[saved > 0].append(line.decode().strip())
                found = re.search(r"newest snapshot (\d+)", lines[saved > 0][-1])
                if not saved and found and int(found[1]):
                    saved = int(found[1])
                    server.kill()
                    server.start()
            assert worker.wait(800) == 0, errors.read_text()
        finally:
            worker.kill()
            worker.wait(800)
            worker.stdout.close()
        assert saved, "the worker reported no snapshot"
        return Story(lines[0], saved, lines[1])

    return train


class FaultyRelay:
    """A gRPC relay whose faults a worker must survive. They hit the calls of a kind in turn.

    Push: a bit of the gradient is flipped; the answer is lost; none. Pull: a bit of a parameter is flipped; none.
    """

    def __init__(self, target: str) -> None:
        self.faults = {"Push": ["flipped", "lost", "none"], "Pull": ["flipped", "none"]}
        self._met: list[tuple[str, str]] = []
        self._turns = {method: itertools.cycle(faults) for method, faults in self.faults.items()}
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Relay any method as streams in both directions, which is the wire form of all calls."""
        method = details.method.rsplit("/", 1)[1]

        def relay(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            fault = next(self._turns[method]) if method in self._turns else "none"
            self._met.append((method, fault))
            flips = fault == "flipped"
            sent = (flipped(pb.PushRequest, raw) for raw in requests) if flips and method == "Push" else requests
            call = self._channel.stream_stream(details.method)(sent)
            try:
                answers = list(call)
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata())
                context.abort(call.code(), call.details())
            if fault == "lost":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke before the answer arrived")
            yield from (flipped(pb.PullResponse, raw) for raw in answers) if flips and method == "Pull" else answers

        return grpc.stream_stream_rpc_method_handler(relay)

    def met_by(self, method: str) -> list[str]:
        """Return the faults that the calls of a method met, in order."""
        return [fault for called, fault in self._met if called == method]

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()


def flipped(message: type, raw: bytes) -> bytes:
    """Return a message with one bit of its chunk, if it is one, changed."""
    parsed = message.FromString(raw)
    if parsed.WhichOneof("part") == "chunk":
        data = bytearray(parsed.chunk.data)
        data[len(data) // 2] ^= 1
        parsed.chunk.data = bytes(data)
    return parsed.SerializeToString()


@pytest.fixture
def faulty_relay(server: ServerProcess) -> Iterator[FaultyRelay]:
    """A relay to `server` that damages and loses messages."""
    with contextlib.closing(FaultyRelay(server.address)) as relay:
        yield relay
