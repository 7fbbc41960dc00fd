"""The next message of a call is asked for early: order, end and cancelled calls are as with gRPC's own iterator."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from numba_adam.server.transport.read_ahead import ReadAhead

DEADLINE = 300


@pytest.fixture
def serving():
    """Serve calls with a function of their messages and their context; return the client's method."""
    servers, channels = [], []

    def serve(run):
        handler = grpc.stream_unary_rpc_method_handler(lambda requests, context: run(ReadAhead(requests), context))
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Read": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        channels.append(grpc.insecure_channel(f"127.0.0.1:{port}"))
        return channels[-1].stream_unary("/test/Read", None, None)

    yield serve
    for channel in channels:
        channel.close()
    for server in servers:
        server.stop(None)


@pytest.mark.parametrize("starts", [[], [0], [0, 1, 2, 3, 4], [1, 3], [4]])
def test_all_messages_come_in_order_and_then_the_end(serving, starts):
    def run(messages, _):
        got = []
        for number, message in enumerate(messages):
            got.append(message)
            if number in starts:
                assert messages.start()
                assert not messages.start(), "one message at a time"
        return b"".join(got)

    call = serving(run)
    assert call(iter([b"a", b"b", b"c", b"d", b"e"]), timeout=DEADLINE) == b"abcde"


def test_a_call_that_is_cancelled_meanwhile_ends(serving):
    has_started, ended = threading.Event(), []
    is_over = threading.Event()

    def send():
        yield b"a"
        is_over.wait(DEADLINE)

    def run(messages, context):
        next(messages)
        assert messages.start()
        has_started.set()
        try:
            next(messages)
        except Exception as error:
            ended.append(type(error))
            is_over.set()
            raise
        return b""

    call = serving(run).future(send(), timeout=DEADLINE)
    assert has_started.wait(DEADLINE)
    call.cancel()
    assert is_over.wait(DEADLINE)
    assert len(ended) == 1  # gRPC's error, or the end of the stream where gRPC hears of that first


def test_a_call_may_end_with_a_message_asked_for(serving):
    def run(messages, _):
        next(messages)
        messages.start()
        return b"enough"

    call = serving(run)
    for _ in range(3):
        assert call(iter([b"a", b"b"]), timeout=DEADLINE) == b"enough"


def test_another_iterator_is_read_as_it_is():
    messages = ReadAhead(iter([b"a", b"b"]))
    assert next(messages) == b"a"
    assert not messages.start()
    assert list(messages) == [b"b"]
