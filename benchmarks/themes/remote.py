"""The parameter server over a long line and with TLS and a token, compared with bare gRPC streams over the same.

The line is tests/network/proxy.py: it adds a delay to each direction. Every server and proxy runs in its own process.

The peer has what our transport has: the sizes of messages, frames and window, and the experiments of gRPC that `serve`
switches on. A note has the same against a stream with gRPC's own settings, and, for a push in one message, against a
call without a stream.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import bare_stream
from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants.contestant import load
from benchmarks.measure import interleave, rotate
from benchmarks.process import answer_of, serving
from benchmarks.statistics import summarise
from benchmarks.workload import one_array

_ELEMENTS = 25_000_000  # 100 MB of float32
_SMALL_ELEMENTS = 1000
_WHOLE_BYTES = 1 << 16  # the largest push that goes as one message
_ANNOUNCES = "numba-adam: serving on "
_PROXY = str(Path(__file__).resolve().parents[2] / "tests/network/proxy.py")
_MODEL = "benchmark"
_WINDOW_BYTES = 1 << 27
_STEPS = 10
_EXPERIMENTS = "tcp_rcv_lowat,tcp_frame_size_tuning"  # as in server/grpc_experiments.py
_COMMAND = "import sys; from numba_adam.cli import main; sys.exit(main({words!r}))"


class _Ends(NamedTuple):
    """What a client needs."""

    address: str
    bare_address: str
    """Of a bare server with our settings."""

    default_address: str
    """Of a bare server with gRPC's own settings."""

    folder: Path
    token: str | None = None


def _commanded(folder: Path, *words: str) -> str:
    """Run a command of numba-adam in a folder; return the last line that it prints."""
    return answer_of(f"import os; os.chdir({str(folder)!r})\n" + _COMMAND.format(words=list(words)))


@contextlib.contextmanager
def _servers(*, tls: bool) -> Iterator[_Ends]:
    """Run a parameter server and a bare one, both with TLS or both without."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, token, bare_words, words = Path(name), None, [], ["--receive-window-bytes", str(_WINDOW_BYTES)]
        if tls:
            _commanded(folder, "certificate", "ca")
            _commanded(folder, "certificate", "server", "localhost")
            token = _commanded(folder, "token", "make", "w0", "--admin", "*", "--data-dir", str(folder / "data"))
            files = [str(folder / "numba-adam-certificates" / each) for each in ("server.pem", "server.key")]
            words += ["--tls-certificate", files[0], "--tls-key", files[1], "--loopback-token", "required"]
            bare_words = files
        quiet = ("--snapshot-interval-seconds", "0", "--snapshot-every-pushes", "0")
        arguments = ("serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder / "data"), *quiet, *words)
        ours = stack.enter_context(serving("-m", "numba_adam", *arguments, announces=_ANNOUNCES, cwd=name))
        alike = stack.enter_context(_bare("--window-bytes", str(_WINDOW_BYTES), *bare_words, experiments=_EXPERIMENTS))
        default = stack.enter_context(_bare(*bare_words, experiments=""))
        yield _Ends(ours, alike, default, folder, token)


def _bare(*words: str, experiments: str) -> contextlib.AbstractContextManager[str]:
    variables = {"GRPC_EXPERIMENTS": experiments}
    return serving("-m", "benchmarks.bare_stream", *words, announces=bare_stream.ANNOUNCES, variables=variables)


def _line(address: str, delay_seconds: float) -> contextlib.AbstractContextManager[str]:
    return serving(_PROXY, "127.0.0.1:0", address, "--delay", str(delay_seconds), announces="proxy on ")


def _through(delay_seconds: float, settings: Settings) -> Measurement:
    """Compare a push with a bare stream of the same bytes, both through a line with a delay."""
    grpc, client_of = load("grpc"), load("numba_adam.client").ParameterClient
    with (
        _servers(tls=False) as ends,
        _line(ends.address, delay_seconds) as address,
        _line(ends.bare_address, delay_seconds) as bare_address,
        _line(ends.default_address, delay_seconds) as default_address,
        client_of(address, timeout_seconds=600, transport="network") as client,
        grpc.insecure_channel(bare_address, bare_stream.LARGE_FRAMES) as alike,
        grpc.insecure_channel(default_address) as default,
    ):
        return _compared(client, alike, default, _ELEMENTS, settings)


def _compared(client: Any, alike: Any, default: Any, elements: int, settings: Settings) -> Measurement:
    """Compare pushes of a client with bare streams."""
    workload = one_array(settings.elements(elements))
    (param,), (grad,) = workload.params(), workload.grads()
    payload = grad.view(np.uint8).data
    chunk_bytes: int = load("numba_adam.client.transfer").CHUNK_BYTES
    model = client.create_model(_MODEL, {"w": param}, durability="memory")
    steps = [
        lambda: model.push({"w": grad}),
        lambda: bare_stream.push(alike, bare_stream.cut(payload, chunk_bytes)),
        lambda: bare_stream.push(default, bare_stream.cut(payload)),
    ]
    if payload.nbytes <= _WHOLE_BYTES:
        steps.append(lambda: bare_stream.push_whole(alike, bytes(payload)))
    turns = rotate(steps, settings)
    client.delete_model(_MODEL)
    names = ("a stream with gRPC's own settings", "a call of one message without a stream")
    notes = {f"against {name}": _ratio(turns, place) for place, name in enumerate(names, 2) if place < len(steps)}
    sizes = {"bytes pushed": f"{grad.nbytes:,}", "window bytes": f"{_WINDOW_BYTES:,}"}
    return Measurement([(turn[0], turn[1]) for turn in turns], {**sizes, **notes})


def _ratio(turns: list[tuple[float, ...]], place: int) -> str:
    found = summarise([turn[0] / turn[place] for turn in turns])
    return f"{found.median:.3g} [{found.lower:.3g}, {found.upper:.3g}]"


def _hidden(delay_seconds: float, settings: Settings) -> Measurement:
    """Compare steps that push in the background with steps that wait for each push; both compute for a round trip."""
    client_of = load("numba_adam.client").ParameterClient
    workload = one_array(_SMALL_ELEMENTS)
    (param,), (grad,) = workload.params(), workload.grads()
    computes = threading.Event()
    with (
        _servers(tls=False) as ends,
        _line(ends.address, delay_seconds) as address,
        client_of(address, timeout_seconds=600) as client,
    ):
        model = client.create_model(_MODEL, {"w": param}, durability="memory")

        def in_background() -> None:
            futures = []
            for _ in range(_STEPS):
                computes.wait(2 * delay_seconds)
                futures.append(model.push_async({"w": grad}))
            for future in futures:
                future.result()

        def waiting() -> None:
            for _ in range(_STEPS):
                computes.wait(2 * delay_seconds)
                model.push({"w": grad})

        pairs = interleave(in_background, waiting, settings)
        client.delete_model(_MODEL)
    return Measurement(pairs, {"steps": str(_STEPS), "computation of a step": f"{2 * delay_seconds:g} s"})


def _encrypted(elements: int, settings: Settings) -> Measurement:
    """Compare a push with TLS and a token with a bare stream with TLS."""
    grpc, client = load("grpc"), load("numba_adam.client")
    with _servers(tls=True) as ends:
        ca = ends.folder / "numba-adam-certificates" / "ca.pem"
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        options: dict[str, Any] = {"tls": client.Tls(server_ca=ca), "token": ends.token, "timeout_seconds": 600}
        with (
            client.ParameterClient(ends.address, **options) as ours,
            grpc.secure_channel(ends.bare_address, credentials, bare_stream.LARGE_FRAMES) as alike,
            grpc.secure_channel(ends.default_address, credentials) as default,
        ):
            return _compared(ours, alike, default, elements, settings)


def _delayed(milliseconds: int) -> Callable[[Settings], Measurement]:
    return lambda settings: _through(milliseconds / 1000, settings)


CASES: tuple[Case, ...] = (
    *(
        Case(
            name=f"remote/push/{milliseconds}ms",
            title=f"100 MB pushed over a line with {milliseconds} ms of delay each way",
            peer="bare gRPC stream over the same line, thrown away",
            bar=Bar(1.25),  # 0.8 of the bare stream's throughput
            is_long=True,
            run=_delayed(milliseconds),
        )
        for milliseconds in (1, 10, 50)
    ),
    Case(
        name="remote/push-async/50ms",
        title="steps that push 4 kB in the background over a line with 50 ms of delay each way",
        peer="the same steps, each waiting for its push",
        is_long=True,
        run=lambda settings: _hidden(0.05, settings),
    ),
    Case(
        name="remote/tls/100m",
        title="100 MB pushed with TLS and a token",
        peer="bare gRPC stream with TLS, thrown away",
        bar=Bar(1.25),
        is_long=True,
        run=lambda settings: _encrypted(_ELEMENTS, settings),
    ),
    Case(
        name="remote/tls/4k",
        title="4 kB pushed with TLS and a token",
        peer="bare gRPC stream with TLS, thrown away",
        bar=Bar(1.25),
        is_long=True,
        run=lambda settings: _encrypted(_SMALL_ELEMENTS, settings),
    ),
)
