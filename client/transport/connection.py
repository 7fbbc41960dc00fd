"""The connection to one parameter server: single tries of each call, and calls with retries.

May import grpc and `numba_adam.ps`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from numba_adam.client.progress import Progress, reporter
from numba_adam.client.transport import forks
from numba_adam.client.transport.channel import ServiceChannel
from numba_adam.client.transport.local_socket import LocalSocket, NoRoomError
from numba_adam.client.transport.probe import Probe
from numba_adam.client.transport.proxy import why_refused
from numba_adam.client.transport.retry import Backoff, Deadline, closed, cut_short, interrupted, retry
from numba_adam.client.transport.same_host import SameHost
from numba_adam.client.transport.shield import POLL_SECONDS, Shield, is_given_up
from numba_adam.client.transport.tls import Tls
from numba_adam.client.transport.token import FindToken
from numba_adam.errors import ServerUnavailableError, ServiceError, TlsError, UnauthenticatedError
from numba_adam.ps.errors import from_rpc_error
from numba_adam.ps.v1 import parameter_service_pb2 as pb

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)
_CLOSED = (
    "it closed the connection: the server may be stopping, or have as many connections as it allows "
    "(--most-connections); else check that it is a server"
)
_NEEDS_LISTENERS = tuple(int(part) for part in grpc.__version__.split(".")[:2]) < (1, 80)


def _ignore(connectivity: grpc.ChannelConnectivity) -> None:
    """Ignore a change of the channel's state; see `Connection._pause`."""


class Connection:
    """The channel to one server, with the timeout, backoff and progress settings of every call.

    The first call creates the channel. An interrupted call or a fork closes it, and the next call creates a new one.
    Other calls that this cancels are retried.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float,
        progress: Progress | bool | None,
        backoff: Backoff,
        tls: Tls | None = None,
        token: FindToken = lambda: None,
        transport: str | None = None,
        socket: Path | None = None,
    ) -> None:
        forks.check_grpc_works()
        self.address = address
        self._tls, self._find_token, self._probe = tls, token, Probe(address, tls)
        self._timeout_seconds, self._progress, self._backoff = timeout_seconds, progress, backoff
        self._process_id = os.getpid()
        self._closed = threading.Event()
        self._shield = Shield()
        self._channel: ServiceChannel | None = None
        self._channel_lock = threading.Lock()
        self._on_fork: list[Callable[[], None]] = []
        self.same_host = SameHost(address, transport, os.environ, is_secret=tls is not None, token=token, path=socket)
        """The way to a server on this machine that needs no network."""

        forks.listen(self)

    # --- the channel --------------------------------------------------------------------------------------------

    def _current_channel(self) -> ServiceChannel:
        """Return the channel; create it if there is none."""
        channel = self._channel
        if channel is None:
            with forks.gate(), self._channel_lock:
                if self._closed.is_set():
                    raise closed(self.address)
                if self._channel is None:
                    self._channel = ServiceChannel(self.address, self._tls, self._find_token())
                channel = self._channel
        if is_given_up():
            raise interrupted(self.address)
        return channel

    def close_channel(self) -> None:
        """Close the channel, which cancels all calls in flight. The next call creates a new channel."""
        self.same_host.close()
        self._close_grpc()

    def _give_up(self) -> None:
        """Cancel the call that the main thread gave up."""
        self._close_grpc()
        self.same_host.give_up()

    def _close_grpc(self) -> None:
        with self._channel_lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    # --- processes and interruptions ----------------------------------------------------------------------------

    def check_owner(self, what: str) -> None:
        """Check that this process created the client. Comes before any lock, which a forked child may find locked.

        Raises:
            ServiceError: this is a forked child.
        """
        forks.check_owner(what, self._process_id)

    def is_inherited(self) -> bool:
        """Return whether this is a forked child of the process that created the client."""
        return self._process_id != os.getpid()

    def on_fork(self, abandon: Callable[[], None]) -> None:
        """Register a callback that runs in every forked child."""
        self._on_fork.append(abandon)

    def abandon(self) -> None:
        """In a forked child: settle the calls that cannot finish there."""
        for abandon in self._on_fork:
            abandon()

    def shielded(self, job: Callable[[], _T]) -> _T:
        """Run a job that signals cannot interrupt half-way; see `Shield.run`."""
        return self._shield.run(job, self._give_up)

    def on_same_host(self, call: Callable[[LocalSocket], _T]) -> _T | None:
        """Make one try of a call without the network, if that is possible; None: use the network.

        Raises:
            ServiceError: the call failed.
        """
        if self._closed.is_set():
            raise closed(self.address)
        with self.same_host.socket() as local:
            if local is None:
                return None
            if is_given_up():
                raise interrupted(self.address)
            try:
                return call(local)
            except NoRoomError:
                return None
            except UnauthenticatedError as error:
                local.close()
                raise self._refused_token(error, is_current=self._find_token() == local.token) from error
            except ServiceError as error:
                if local.is_broken and self._closed.is_set():
                    raise closed(self.address) from error
                raise

    # --- single tries -------------------------------------------------------------------------------------------

    def unary(self, name: str, request: Message, response_type: type[_M], timeout: float) -> _M:
        """Call a method that takes and returns one message, without retries."""
        answer: _M = self._translated(lambda channel: channel.unary(name, response_type)(request, timeout=timeout))
        return answer

    def create(self, messages: Iterable[bytes], timeout: float) -> pb.CreateModelResponse:
        """Call CreateModel, without retries."""
        answer: pb.CreateModelResponse = self._translated(lambda channel: channel.create(messages, timeout=timeout))
        return answer

    def push(self, messages: Iterable[bytes] | bytes, timeout: float) -> pb.PushResponse:
        """Call Push with a stream, or with one message, without retries."""

        def call(channel: ServiceChannel) -> Any:
            method = channel.push_whole if isinstance(messages, bytes) else channel.push
            return method(messages, timeout=timeout)

        answer: pb.PushResponse = self._translated(call)
        return answer

    def pull(self, request: pb.PullRequest, timeout: float) -> Generator[Any, None, None]:
        """Call Pull, without retries; yield its messages."""
        return self._streamed(lambda channel: channel.pull(request, timeout=timeout))

    def await_push(self, request: pb.AwaitPushRequest, timeout: float) -> Generator[Any, None, None]:
        """Call AwaitPush, without retries; yield its messages."""
        return self._streamed(lambda channel: channel.await_push(request, timeout=timeout))

    def push_pull(self, messages: Iterable[bytes] | bytes, timeout: float) -> Generator[Any, None, None]:
        """Call PushPull with a stream, or with one message, without retries; yield its messages."""

        def call(channel: ServiceChannel) -> Any:
            method = channel.push_pull_whole if isinstance(messages, bytes) else channel.push_pull
            return method(messages, timeout=timeout)

        return self._streamed(call)

    def _translated(self, call: Callable[[ServiceChannel], _T]) -> _T:
        if self._closed.is_set():
            raise closed(self.address)
        channel = self._current_channel()
        try:
            return call(channel)
        except grpc.RpcError as error:  # without gRPC's stack frames, which keep its threads alive
            raise self._meaning(error, channel) from error.with_traceback(None)
        except ValueError as error:  # gRPC raises it if the channel was closed just now
            raise self._cut_short() from error.with_traceback(None)

    def _streamed(self, call: Callable[[ServiceChannel], Any]) -> Generator[Any, None, None]:
        channels: list[ServiceChannel] = []

        def begin(channel: ServiceChannel) -> Any:
            channels.append(channel)
            return call(channel)

        answers = self._translated(begin)
        try:
            for answer in answers:
                self.check_owner(self.address)  # a callback may have forked, and this may be the child
                yield answer
        except grpc.RpcError as error:
            raise self._meaning(error, channels[0]) from error.with_traceback(None)
        finally:
            if not self.is_inherited():
                answers.cancel()  # an unfinished stream would keep the server's buffers allocated

    def _cut_short(self) -> ServiceError:
        return closed(self.address) if self._closed.is_set() else cut_short(self.address)

    def _meaning(self, error: grpc.RpcError, channel: ServiceChannel) -> ServiceError:
        if self._closed.is_set() or (channel is not self._channel and error.code() is grpc.StatusCode.CANCELLED):
            return self._cut_short()
        meaning = from_rpc_error(error)
        if type(meaning) is ServerUnavailableError and meaning.detail is None:
            return self._unreachable(str(meaning), channel)
        if isinstance(meaning, UnauthenticatedError):
            return self._unauthenticated(meaning, channel)
        return meaning

    def _unauthenticated(self, error: UnauthenticatedError, channel: ServiceChannel) -> ServiceError:
        """Return the error for a refused token. It is temporary if a newer token can be found now."""
        is_current = channel is self._channel and self._find_token() == channel.token
        if not is_current and channel is self._channel:
            self.close_channel()  # the next try uses the newer token
        return self._refused_token(error, is_current=is_current)

    def _refused_token(self, error: UnauthenticatedError, *, is_current: bool) -> ServiceError:
        if is_current:
            return error
        renewed = ServerUnavailableError(f"{self.address} refused the earlier token ({error})")
        renewed.detail = error.detail  # the server has answered, so a push is not in doubt
        return renewed

    def _unreachable(self, message: str, channel: ServiceChannel) -> ServiceError:
        """Return the error for a failed connection. It is permanent if TLS is the reason and no file has changed."""
        if self._tls is not None and channel is self._channel and self._tls.identity() != channel.tls_identity:
            self.close_channel()  # the next try reads the files again
            return ServerUnavailableError(f"{self.address} cannot be reached with the earlier TLS files ({message})")
        why = self._probe.why(message)
        if why is not None:
            return TlsError(why)
        advice = why_refused(message) or (_CLOSED if "closed" in message else "check that the server runs there")
        return ServerUnavailableError(f"{self.address} cannot be reached; {advice} ({message})")

    # --- calls with retries -------------------------------------------------------------------------------------

    def deadline(self) -> Deadline:
        """Return the deadline of a call that starts now."""
        return Deadline(self._timeout_seconds)

    def retry(self, attempt: Callable[[float], _T], *, what: str, deadline: Deadline | None = None) -> _T:
        """Retry until the call succeeds, fails permanently or reaches its deadline; see `retry.retry`."""
        self.check_owner(what)
        if self._closed.is_set():
            raise closed(what)
        limit = deadline or self.deadline()
        return self.shielded(lambda: retry(attempt, limit, what=what, wait=self._pause, backoff=self._backoff))

    def _pause(self, seconds: float) -> bool:
        """Wait while the channel reconnects; return True at once if the call was given up or the client was closed.

        In gRPC before 1.80, only threads that wait for a connection make progress with it. Without a call in flight,
        the channel would not reconnect to a restarted server. A listener is such a waiting thread.
        """
        channel = self._channel if _NEEDS_LISTENERS else None
        if channel is None:
            return self._wait(seconds)
        channel.grpc_channel.subscribe(_ignore)
        try:
            return self._wait(seconds)
        finally:
            channel.grpc_channel.unsubscribe(_ignore)

    def _wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not is_given_up():
            left = end - time.monotonic()
            if self._closed.wait(min(max(left, 0.0), POLL_SECONDS)):
                return True
            if left <= POLL_SECONDS:
                return is_given_up()
        return True

    def call(
        self, name: str, request: Message, response_type: type[_M], *, what: str, deadline: Deadline | None = None
    ) -> _M:
        """Call a method that takes and returns one message, with retries."""
        return self.retry(
            lambda timeout: self.unary(name, request, response_type, timeout), what=what, deadline=deadline
        )

    def report(self, what: str) -> Progress:
        """Return the callable that gets the progress of one transfer."""
        return reporter(self._progress, what)

    def close(self) -> None:
        """Cancel all calls in flight and release the channel. A second call does nothing."""
        if self.is_inherited():
            return
        try:
            self.shielded(self._end)
        finally:
            self._shield.close()

    def _end(self) -> None:
        self._closed.set()
        self.close_channel()
