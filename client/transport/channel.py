"""One gRPC channel with the methods of the service, from when it is made until it is closed.

May import grpc and what both ends share (`numba_adam.ps`).
"""

from __future__ import annotations

import _thread
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from numba_adam.client.transport.loopback import is_loopback
from numba_adam.ps import framing
from numba_adam.ps.v1 import parameter_service_pb2 as pb

_SERVICE = "numba_adam.ps.v1.ParameterService"
_LONGEST_MESSAGE_BYTES = 64 << 20  # a server of another make may send large chunks; ours are about 1 MiB

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", _LONGEST_MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", (1 << 24) - 1),  # a chunk in one frame instead of sixty-four
    ("grpc.enable_retries", 0),  # its own buffer at most 256 KiB of a call; ours know about sequence numbers
    ("grpc.initial_reconnect_backoff_ms", 50),  # a restarted server is found within a moment ...
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),  # ... and a dead one is not hammered
    ("grpc.keepalive_time_ms", 20_000),  # during calls: a peer that is gone without a word is found out
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),  # no backoff inherited from another client of this process
)


def _options(address: str) -> tuple[tuple[str, int], ...]:
    """Return the channel's options; this machine is never reached through a proxy, whatever http_proxy says."""
    return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_loopback(address) else _OPTIONS


class Lane:
    """A channel that is closed by its process, or never.

    The end of a channel that is merely dropped waits for threads of gRPC's. When the interpreter exits, or in a
    forked child, they do not run any more, and it would wait for ever; so a reference too many keeps it from ending.
    """

    def __init__(self, address: str) -> None:
        self._process_id = os.getpid()
        self._is_open = False
        self.channel = grpc.insecure_channel(address, options=_options(address))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.channel))
        self._is_open = True
        self.create = self._method("stream_unary", "CreateModel", pb.CreateModelResponse.FromString)
        self.push = self._method("stream_unary", "Push", pb.PushResponse.FromString)
        self.pull = self._method("unary_stream", "Pull", framing.decode_pull_response)
        self.push_pull = self._method("stream_stream", "PushPull", framing.decode_push_pull_response)

    def unary(self, name: str, response_type: type[Message]) -> Any:
        """Return a method that takes and returns one message."""
        return self._method("unary_unary", name, response_type.FromString)

    def _method(self, kind: str, name: str, decode: Callable[[bytes], Any]) -> Any:
        make = getattr(self.channel, kind)
        return make(f"/{_SERVICE}/{name}", request_serializer=framing.encode_message, response_deserializer=decode)

    def close(self) -> None:
        """End all calls in flight and release the channel. Called once."""
        self._is_open = False
        _close(self.channel)

    def __del__(self) -> None:
        """Close it, if it is the channel of a client that was dropped without being closed."""
        if self._is_open and self._process_id == os.getpid() and not sys.is_finalizing():
            _thread.start_new_thread(_close, (self.channel,))  # takes no lock: garbage is collected anywhere


def _close(channel: grpc.Channel) -> None:
    channel.close()
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(channel))
