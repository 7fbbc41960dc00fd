"""Calls of any method with encoded messages, as any client may send them. No test itself."""

from __future__ import annotations

import contextlib

import grpc

LONG = 800.0


def status_of(address, method, metadata, *messages):
    """Return the status code of a call of any method with encoded messages."""
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.stream_stream(method)(iter(messages), metadata=metadata, timeout=LONG)
        with contextlib.suppress(grpc.RpcError):
            list(call)
        return call.code()


def bearer(token):
    return (("authorization", f"Bearer {token}"),)
