"""One gRPC channel to a parameter server: its options, its methods, and calls that are tried again.

May import grpc and what both ends share (`numba_adam.ps`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from numba_adam.client.loopback import is_loopback
from numba_adam.client.progress import Progress, reporter
from numba_adam.client.retry import Backoff, Deadline, closed, retry
from numba_adam.errors import ServerUnavailableError, ServiceError
from numba_adam.ps import framing
from numba_adam.ps.errors import from_rpc_error
from numba_adam.ps.v1 import parameter_service_pb2 as pb

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)

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


def _ignore(connectivity: grpc.ChannelConnectivity) -> None:
    """Listen to the state of the channel for the sake of listening."""


class Connection:
    """The channel, and everything that every call needs."""

    def __init__(
        self, address: str, *, timeout_seconds: float, progress: Progress | bool | None, backoff: Backoff
    ) -> None:
        self.address = address
        self._timeout_seconds, self._progress, self._backoff = timeout_seconds, progress, backoff
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(address, options=_options(address))
        self._create = self._method("stream_unary", "CreateModel", pb.CreateModelResponse.FromString)
        self._push = self._method("stream_unary", "Push", pb.PushResponse.FromString)
        self._pull = self._method("unary_stream", "Pull", framing.decode_pull_response)
        self._push_pull = self._method("stream_stream", "PushPull", framing.decode_push_pull_response)

    def _method(self, kind: str, name: str, decode: Callable[[bytes], Any]) -> Any:
        make = getattr(self._channel, kind)
        return make(f"/{_SERVICE}/{name}", request_serializer=framing.encode_message, response_deserializer=decode)

    # --- single tries -------------------------------------------------------------------------------------------

    def unary(self, name: str, request: Message, response_type: type[_M], timeout: float) -> _M:
        """Call a method that takes and returns one message, once."""
        method = self._method("unary_unary", name, response_type.FromString)
        answer: _M = self._translated(lambda: method(request, timeout=timeout))
        return answer

    def create(self, messages: Iterable[bytes], timeout: float) -> pb.CreateModelResponse:
        """Call CreateModel once."""
        answer: pb.CreateModelResponse = self._translated(lambda: self._create(messages, timeout=timeout))
        return answer

    def push(self, messages: Iterable[bytes], timeout: float) -> pb.PushResponse:
        """Call Push once."""
        answer: pb.PushResponse = self._translated(lambda: self._push(messages, timeout=timeout))
        return answer

    def pull(self, request: pb.PullRequest, timeout: float) -> Generator[Any, None, None]:
        """Call Pull once; yields its messages."""
        return self._streamed(lambda: self._pull(request, timeout=timeout))

    def push_pull(self, messages: Iterable[bytes], timeout: float) -> Generator[Any, None, None]:
        """Call PushPull once; yields its messages."""
        return self._streamed(lambda: self._push_pull(messages, timeout=timeout))

    def _translated(self, call: Callable[[], _T]) -> _T:
        if self._closed.is_set():
            raise closed(self.address)
        try:
            return call()
        except grpc.RpcError as error:
            raise self._meaning(error) from error
        except ValueError as error:  # what gRPC says of a channel that was closed a moment ago
            raise closed(self.address) from error

    def _streamed(self, call: Callable[[], Any]) -> Generator[Any, None, None]:
        answers = self._translated(call)
        try:
            yield from answers
        except grpc.RpcError as error:
            raise self._meaning(error) from error
        finally:
            answers.cancel()  # a stream that is left half-read holds the server's buffers

    def _meaning(self, error: grpc.RpcError) -> ServiceError:
        if self._closed.is_set():
            return closed(self.address)
        meaning = from_rpc_error(error)
        if type(meaning) is ServerUnavailableError and meaning.detail is None:
            unreachable = f"{self.address} cannot be reached; is the server running there? ({meaning})"
            return ServerUnavailableError(unreachable)
        return meaning

    # --- with all their tries -----------------------------------------------------------------------------------

    def deadline(self) -> Deadline:
        """Return the deadline of a call that begins now."""
        return Deadline(self._timeout_seconds)

    def retry(self, attempt: Callable[[float], _T], *, what: str, deadline: Deadline | None = None) -> _T:
        """Try until it succeeds, fails for good or the deadline is near; see `retry.retry`."""
        if self._closed.is_set():
            raise closed(what)
        limit = deadline or self.deadline()
        return retry(attempt, limit, what=what, wait=self._pause, backoff=self._backoff)

    def _pause(self, seconds: float) -> bool:
        """Wait so long while the channel goes on reconnecting; return True at once when it is closed.

        In older gRPC (1.70, say) a connection is worked on by the threads that wait for it, and by no other: with all
        calls failed and everyone pausing, a server that is back would never be reached. A listener is such a thread.
        """
        self._channel.subscribe(_ignore)
        try:
            return self._closed.wait(seconds)
        finally:
            self._channel.unsubscribe(_ignore)

    def call(self, name: str, request: Message, response_type: type[_M], *, what: str) -> _M:
        """Call a method that takes and returns one message."""
        return self.retry(lambda timeout: self.unary(name, request, response_type, timeout), what=what)

    def report(self, what: str) -> Progress:
        """Return what to tell about the progress of one transfer."""
        return reporter(self._progress, what)

    def close(self) -> None:
        """End all calls in flight and release the channel. May be called again."""
        self._closed.set()
        self._channel.close()
