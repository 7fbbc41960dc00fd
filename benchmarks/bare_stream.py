"""A gRPC server that receives a stream of bytes and drops it. It measures the cost of the transport alone.

`python -m benchmarks.bare_stream [CERTIFICATE KEY]` prints `serving on HOST:PORT` and runs until SIGTERM.
May import gRPC, nothing of ours.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

SERVICE, METHOD = "benchmarks.Bare", "Push"
ANNOUNCES = "serving on "
CHUNK_BYTES = 1 << 20


def _throw_away(messages: Iterable[bytes], _context: Any) -> bytes:
    for _ in messages:
        pass
    return b""


def push(channel: grpc.Channel, chunks: Iterator[bytes]) -> None:
    """Send a stream and wait for the response. Without serializers, gRPC sends and returns raw bytes."""
    channel.stream_unary(f"/{SERVICE}/{METHOD}", None, None)(chunks)


def cut(payload: memoryview) -> Iterator[bytes]:
    """Yield a payload in chunks. Copy each chunk when it is sent, because gRPC accepts only bytes."""
    for begin in range(0, payload.nbytes, CHUNK_BYTES):
        yield bytes(payload[begin : begin + CHUNK_BYTES])


def main() -> None:
    """Serve on a free port of the loopback interface."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    handler = grpc.stream_unary_rpc_method_handler(_throw_away)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    if len(sys.argv) > 1:
        certificate, key = (Path(name).read_bytes() for name in sys.argv[1:])
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=None))
    server.start()
    print(f"{ANNOUNCES}127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
