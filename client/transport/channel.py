"""One gRPC channel with the methods of the service. May import grpc and `numba_adam.ps`."""

from __future__ import annotations

import _thread
import ctypes
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from numba_adam.client.transport.loopback import is_loopback
from numba_adam.client.transport.tls import Tls
from numba_adam.ps import framing
from numba_adam.ps.v1 import parameter_service_pb2 as pb

_SERVICE = "numba_adam.ps.v1.ParameterService"
_LONGEST_MESSAGE_BYTES = 64 << 20  # other servers may send large chunks; ours are about 1 MiB

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", _LONGEST_MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", (1 << 24) - 1),  # a chunk in one frame, not in sixty-four
    ("grpc.enable_retries", 0),  # gRPC buffers at most 256 KiB of a call; our retries handle sequence numbers
    ("grpc.initial_reconnect_backoff_ms", 50),  # reconnects soon after a restart of the server ...
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),  # ... without many attempts while it is down
    ("grpc.keepalive_time_ms", 20_000),  # during calls: detects a server that vanished
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),  # share no reconnect backoff with another client of this process
)


def _options(address: str, tls: Tls | None) -> tuple[tuple[str, int | str], ...]:
    """Return the channel's options. Connections to this machine ignore http_proxy."""
    options: tuple[tuple[str, int | str], ...] = _OPTIONS
    if is_loopback(address):
        options = (*options, ("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name is not None:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return options


class ServiceChannel:
    """A gRPC channel that only `close` releases.

    The destructor of a gRPC channel waits for gRPC's threads. They no longer run at interpreter exit or in a forked
    child, so the destructor would wait forever. An extra reference prevents the destructor from running.
    """

    def __init__(self, address: str, tls: Tls | None, token: str | None) -> None:
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        self._process_id = os.getpid()
        self._is_open = False
        self.tls_identity = () if tls is None else tls.identity()
        """Of the TLS files that it uses."""

        self.token = token
        """The access token that it sends."""

        options = _options(address, tls)
        self.grpc_channel = (
            grpc.insecure_channel(address, options)
            if tls is None
            else grpc.secure_channel(address, tls.credentials(), options)
        )
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.grpc_channel))
        self._is_open = True
        self.create = self._method("stream_unary", "CreateModel", pb.CreateModelResponse.FromString)
        self.push = self._method("stream_unary", "Push", pb.PushResponse.FromString)
        self.await_push = self._method("unary_stream", "AwaitPush", pb.AwaitPushResponse.FromString)
        self.pull = self._method("unary_stream", "Pull", framing.decode_pull_response)
        # A stream costs gRPC a thread for each call. One message needs none, and is the same on the wire.
        self.push_whole = self._method("unary_unary", "Push", pb.PushResponse.FromString)
        self.push_pull_whole = self._method("unary_stream", "PushPull", framing.decode_push_pull_response)
        self.push_pull = self._method("stream_stream", "PushPull", framing.decode_push_pull_response)

    def unary(self, name: str, response_type: type[Message]) -> Any:
        """Return a method that takes and returns one message."""
        return self._method("unary_unary", name, response_type.FromString)

    def _method(self, kind: str, name: str, decode: Callable[[bytes], Any]) -> Any:
        make = getattr(self.grpc_channel, kind)
        call = make(f"/{_SERVICE}/{name}", request_serializer=framing.encode_message, response_deserializer=decode)
        return call if self._metadata is None else partial(call, metadata=self._metadata)

    def close(self) -> None:
        """Cancel all calls in flight and release the channel. Call it once only."""
        self._is_open = False
        _close(self.grpc_channel)

    def __del__(self) -> None:
        """Close the channel of a client that was dropped without `close`."""
        if self._is_open and self._process_id == os.getpid() and not sys.is_finalizing():
            _thread.start_new_thread(_close, (self.grpc_channel,))  # takes no lock: garbage collection may run anywhere


def _close(channel: grpc.Channel) -> None:
    channel.close()
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(channel))
