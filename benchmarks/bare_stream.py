"""A gRPC server that receives a stream of bytes and drops it. It measures the cost of the transport alone.

`python -m benchmarks.bare_stream [--window-bytes BYTES] [CERTIFICATE KEY]` prints `serving on HOST:PORT` and runs until
SIGTERM. With a window it has the frame size and the window that our server has; without, gRPC's own. May import gRPC,
nothing of ours.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

SERVICE, METHOD = "benchmarks.Bare", "Push"
ANNOUNCES = "serving on "
CHUNK_BYTES = 1 << 20
LARGE_FRAMES = (("grpc.http2.max_frame_size", (1 << 24) - 1), ("grpc.max_receive_message_length", 1 << 26))
"""The options of a channel or a server that sends and takes a message in one frame, as ours do."""


def _throw_away(messages: Iterable[bytes], _context: Any) -> bytes:
    for _ in messages:
        pass
    return b""


def push(channel: grpc.Channel, chunks: Iterator[bytes]) -> None:
    """Send a stream and wait for the response. Without serializers, gRPC sends and returns raw bytes."""
    channel.stream_unary(f"/{SERVICE}/{METHOD}", None, None)(chunks)


def push_whole(channel: grpc.Channel, message: bytes) -> None:
    """Send a stream of one message and wait for the response. The client needs no thread for it."""
    channel.unary_unary(f"/{SERVICE}/{METHOD}", None, None)(message)


def cut(payload: memoryview, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield a payload in chunks. Copy each chunk when it is sent, because gRPC accepts only bytes."""
    for begin in range(0, payload.nbytes, chunk_bytes):
        yield bytes(payload[begin : begin + chunk_bytes])


def _options(window_bytes: int | None) -> list[tuple[str, int]]:
    if window_bytes is None:
        return []
    return [*LARGE_FRAMES, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", window_bytes)]


def main() -> None:
    """Serve on a free port of the loopback interface."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--window-bytes", type=int)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(max_workers=2), options=_options(arguments.window_bytes))
    handler = grpc.stream_unary_rpc_method_handler(_throw_away)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    if arguments.files:
        certificate, key = (name.read_bytes() for name in arguments.files)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=None))
    server.start()
    print(f"{ANNOUNCES}127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
