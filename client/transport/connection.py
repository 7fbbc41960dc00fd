"""The way to one parameter server: single tries of each call, and calls that are tried again.

May import grpc and what both ends share (`numba_adam.ps`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from numba_adam.client.progress import Progress, reporter
from numba_adam.client.transport import forks
from numba_adam.client.transport.channel import Lane
from numba_adam.client.transport.retry import Backoff, Deadline, closed, cut_short, interrupted, retry
from numba_adam.client.transport.shield import LOOK_SECONDS, Shield, is_given_up
from numba_adam.errors import ServerUnavailableError, ServiceError
from numba_adam.ps.errors import from_rpc_error
from numba_adam.ps.v1 import parameter_service_pb2 as pb

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)
_NEEDS_LISTENERS = tuple(int(part) for part in grpc.__version__.split(".")[:2]) < (1, 80)


def _ignore(connectivity: grpc.ChannelConnectivity) -> None:
    """Listen to the state of the channel for the sake of listening."""


class Connection:
    """The channel, and everything that every call needs.

    The channel is made by the first call, and made anew after one that was interrupted and after a fork: both close
    it, and whatever other calls that cuts short is tried again.
    """

    def __init__(
        self, address: str, *, timeout_seconds: float, progress: Progress | bool | None, backoff: Backoff
    ) -> None:
        forks.check_grpc_works()
        self.address = address
        self._timeout_seconds, self._progress, self._backoff = timeout_seconds, progress, backoff
        self._process_id = os.getpid()
        self._closed = threading.Event()
        self._shield = Shield()
        self._lane: Lane | None = None
        self._lane_lock = threading.Lock()
        self._on_fork: list[Callable[[], None]] = []
        forks.listen(self)

    # --- the channel --------------------------------------------------------------------------------------------

    def _current_lane(self) -> Lane:
        """Return the channel, made now if there is none."""
        lane = self._lane
        if lane is None:
            with forks.gate(), self._lane_lock:
                if self._closed.is_set():
                    raise closed(self.address)
                if self._lane is None:
                    self._lane = Lane(self.address)
                lane = self._lane
        if is_given_up():
            raise interrupted(self.address)
        return lane

    def rest(self) -> None:
        """Close the channel, which ends all calls in flight; the next call makes another."""
        with self._lane_lock:
            lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()

    # --- processes and interruptions ----------------------------------------------------------------------------

    def check_owner(self, what: str) -> None:
        """See that this is the process that made the client; comes before any lock, which the child may find held.

        Raises:
            ServiceError: it is a forked child.
        """
        forks.check_owner(what, self._process_id)

    def is_inherited(self) -> bool:
        """Say whether this is a forked child of the process that made the client."""
        return self._process_id != os.getpid()

    def on_fork(self, abandon: Callable[[], None]) -> None:
        """Call back in every forked child."""
        self._on_fork.append(abandon)

    def abandon(self) -> None:
        """In a forked child: end what can never be done there."""
        for abandon in self._on_fork:
            abandon()

    def shielded(self, job: Callable[[], _T]) -> _T:
        """Run a job where no signal can interrupt it in the middle; see `Shield.run`."""
        return self._shield.run(job, self.rest)

    # --- single tries -------------------------------------------------------------------------------------------

    def unary(self, name: str, request: Message, response_type: type[_M], timeout: float) -> _M:
        """Call a method that takes and returns one message, once."""
        answer: _M = self._translated(lambda lane: lane.unary(name, response_type)(request, timeout=timeout))
        return answer

    def create(self, messages: Iterable[bytes], timeout: float) -> pb.CreateModelResponse:
        """Call CreateModel once."""
        answer: pb.CreateModelResponse = self._translated(lambda lane: lane.create(messages, timeout=timeout))
        return answer

    def push(self, messages: Iterable[bytes], timeout: float) -> pb.PushResponse:
        """Call Push once."""
        answer: pb.PushResponse = self._translated(lambda lane: lane.push(messages, timeout=timeout))
        return answer

    def pull(self, request: pb.PullRequest, timeout: float) -> Generator[Any, None, None]:
        """Call Pull once; yields its messages."""
        return self._streamed(lambda lane: lane.pull(request, timeout=timeout))

    def push_pull(self, messages: Iterable[bytes], timeout: float) -> Generator[Any, None, None]:
        """Call PushPull once; yields its messages."""
        return self._streamed(lambda lane: lane.push_pull(messages, timeout=timeout))

    def _translated(self, call: Callable[[Lane], _T]) -> _T:
        if self._closed.is_set():
            raise closed(self.address)
        lane = self._current_lane()
        try:
            return call(lane)
        except grpc.RpcError as error:  # without gRPC's frames, which keep its threads alive
            raise self._meaning(error, lane) from error.with_traceback(None)
        except ValueError as error:  # what gRPC says of a channel that was closed a moment ago
            raise self._cut_short() from error.with_traceback(None)

    def _streamed(self, call: Callable[[Lane], Any]) -> Generator[Any, None, None]:
        lanes: list[Lane] = []

        def begin(lane: Lane) -> Any:
            lanes.append(lane)
            return call(lane)

        answers = self._translated(begin)
        try:
            for answer in answers:
                self.check_owner(self.address)  # a callback may have forked, and returned in the child
                yield answer
        except grpc.RpcError as error:
            raise self._meaning(error, lanes[0]) from error.with_traceback(None)
        finally:
            if not self.is_inherited():
                answers.cancel()  # a stream that is left half-read holds the server's buffers

    def _cut_short(self) -> ServiceError:
        return closed(self.address) if self._closed.is_set() else cut_short(self.address)

    def _meaning(self, error: grpc.RpcError, lane: Lane) -> ServiceError:
        if self._closed.is_set() or (lane is not self._lane and error.code() is grpc.StatusCode.CANCELLED):
            return self._cut_short()
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
        self.check_owner(what)
        if self._closed.is_set():
            raise closed(what)
        limit = deadline or self.deadline()
        return self.shielded(lambda: retry(attempt, limit, what=what, wait=self._pause, backoff=self._backoff))

    def _pause(self, seconds: float) -> bool:
        """Wait so long while the channel goes on reconnecting; return True at once when the call is to end.

        In older gRPC (1.70, say) a connection is worked on by the threads that wait for it, and by no other: with all
        calls failed and everyone pausing, a server that is back would never be reached. A listener is such a thread.
        """
        lane = self._lane if _NEEDS_LISTENERS else None
        if lane is None:
            return self._wait(seconds)
        lane.channel.subscribe(_ignore)
        try:
            return self._wait(seconds)
        finally:
            lane.channel.unsubscribe(_ignore)

    def _wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not is_given_up():
            left = end - time.monotonic()
            if self._closed.wait(min(max(left, 0.0), LOOK_SECONDS)):
                return True
            if left <= LOOK_SECONDS:
                return is_given_up()
        return True

    def call(
        self, name: str, request: Message, response_type: type[_M], *, what: str, deadline: Deadline | None = None
    ) -> _M:
        """Call a method that takes and returns one message."""
        return self.retry(
            lambda timeout: self.unary(name, request, response_type, timeout), what=what, deadline=deadline
        )

    def report(self, what: str) -> Progress:
        """Return what to tell about the progress of one transfer."""
        return reporter(self._progress, what)

    def close(self) -> None:
        """End all calls in flight and release the channel. May be called again."""
        if self.is_inherited():
            return
        try:
            self.shielded(self._end)
        finally:
            self._shield.close()

    def _end(self) -> None:
        self._closed.set()
        self.rest()
