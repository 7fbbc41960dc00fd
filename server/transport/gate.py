"""Which calls are taken: so many at a time, each on a thread of its own; the rest are refused before they cost one.

A call takes its thread before its first message is there, and may never send one. So there are more threads than
calls are served at a time, and a call counts as served only from its first message on. Messages that are on their way
in take memory that nobody has declared; so few come at a time. Imports grpc, the watch and the budget.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc

from numba_adam.ps.errors import DETAIL_KEY
from numba_adam.ps.v1.error_pb2 import ErrorDetail, Reason
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.heap import give_back_free_memory
from numba_adam.server.runtime.launcher import use_threads
from numba_adam.server.transport.in_flight import InFlight
from numba_adam.server.transport.permits import Permits
from numba_adam.server.transport.requests import Requests
from numba_adam.server.transport.watch import Watch

Context = grpc.ServicerContext
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

SMALL_MESSAGE_BYTES = 1 << 16
"""What is no longer than this is not worth waiting for."""

_ARRIVING_BYTES = 1 << 24  # of messages may be on their way in, however little of the budget is left
_BUDGET_SHARE = 8  # and further ones together may take this part of the budget
_RARE_BYTES = 1 << 20  # a first message is a header: a larger one names tens of thousands of arrays, or is an attack
_FULL = ErrorDetail(reason=Reason.REASON_BUDGET, retry_after_milliseconds=100)


class Lane:
    """The calls of one kind: how many there may be, and the threads they run on.

    Args:
        name: for the threads.
        most_calls: how many there may be, each on a thread of its own.
        watch: is told when there is no room for more.
        initializer: runs on each of the threads before anything else.
    """

    def __init__(self, name: str, most_calls: int, watch: Watch, initializer: Callable[[], None] | None = None) -> None:
        self.executor = ThreadPoolExecutor(most_calls, f"numba-adam-{name}", initializer)
        self._most_calls = most_calls
        self._watch = watch
        self._live = 0
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Take a call, if there is room; every call that is taken leaves again."""
        with self._lock:
            has_room = self._live < self._most_calls
            self._live += has_room
        if not has_room:
            self._watch.press()
        return has_room

    def leave(self) -> None:
        """Say that a call is over."""
        with self._lock:
            self._live -= 1


class Entry(NamedTuple):
    """How the calls of one method are taken."""

    lane: Lane
    """Where they count."""

    handler: Handler
    """What runs them; it takes its requests as a stream, so that its first message is awaited where it is watched."""


class Gate(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic for type checkers only
    """Takes calls, or refuses them before they have a thread.

    Args:
        entries: how the calls of each method are taken, by its path.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._executor = ThreadPoolExecutor(1, "numba-adam-refusal")
        self._refusal: Handler = grpc.stream_unary_rpc_method_handler(on(self._executor, _refuse))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return what answers a call; None where there is no such method. On gRPC's own thread."""
        entry = self._entries.get(handler_call_details.method)
        if entry is None:
            return None
        return entry.handler if entry.lane.enter() else self._refusal

    def stop(self) -> None:
        """End the threads, once their calls are over; gRPC leaves them as they are."""
        self._executor.shutdown(wait=False)
        for lane in {entry.lane for entry in self._entries.values()}:
            lane.executor.shutdown(wait=False)


class Calls:
    """What the calls of a server share.

    Args:
        pool: the budget.
        watch: ends calls that keep the server waiting.
        served: how many are served at a time.
        waiting: how many more may be there beside them.
        message_bytes: the largest message.
    """

    def __init__(self, pool: SlotPool, watch: Watch, served: int, waiting: int, message_bytes: int) -> None:
        self.watch = watch
        self.in_flight = InFlight()
        """What a server that stops waits for."""

        self.requests = Requests(pool)
        """Parses what the calls receive."""

        self._pool = pool
        # What is worth several threads is launched from one that all models share; see the launcher.
        self.lane = Lane("rpc", served + waiting, watch, initializer=lambda: use_threads(1))
        self._served = Permits(served, watch)
        self._arrived: set[Context] = set()  # calls whose first message is on its way in, or large and not parsed yet
        free = max(1, _ARRIVING_BYTES // message_bytes)
        arriving_bytes = 2 * message_bytes  # gRPC holds it, and makes the bytes that we get
        self._messages = Permits(
            free + pool.budget_bytes // _BUDGET_SHARE // arriving_bytes,
            watch,
            free,
            take=lambda: pool.reserve(arriving_bytes),
            give_back=lambda: pool.give_back(arriving_bytes),
        )

    def handler(self, run: Callable[[bytes, Iterator[bytes], Context], Any], *, answers_stream: bool) -> Handler:
        """Return gRPC's handler of a method.

        Args:
            run: takes the first message, the further ones and the context.
            answers_stream: whether it returns an iterator of messages, or one message; they are bytes.
        """
        make = grpc.stream_stream_rpc_method_handler if answers_stream else grpc.stream_unary_rpc_method_handler
        call = self._streaming(run) if answers_stream else self._answering(run)
        return make(on(self.lane.executor, call))

    @contextlib.contextmanager
    def served(self, context: Context) -> Iterator[None]:
        """Have the body be one of the calls that are served at a time; the call is in flight until it is over."""
        self._let_first_go(context)  # it is parsed, and counts as such
        self.in_flight.begin(context)
        self._served.acquire(context)
        try:
            yield
        finally:
            self._served.release()

    def counted(self, answer: bytes, context: Context) -> bytes:
        """Return an answer; a large one counts until its peer has taken it.

        Raises:
            BudgetExceededError: there is no room for it now.
        """
        if len(answer) > SMALL_MESSAGE_BYTES:
            owner, what = object(), f"an answer of {len(answer)} bytes"
            self._pool.keep(owner, 2 * len(answer), what)  # gRPC makes a copy
            if not context.add_callback(lambda: self._pool.keep(owner, 0, what)):
                self._pool.keep(owner, 0, what)
        return answer

    def _answering(self, run: Callable[[bytes, Iterator[bytes], Context], bytes]) -> Callable[..., bytes]:
        def call(requests: Iterator[bytes], context: Context) -> bytes:
            with self._first(requests, context) as first, self._rest(requests, context) as rest:
                answer = run(first, rest, context)
            self.watch.leave(context, len(answer))
            return answer

        return call

    def _streaming(self, run: Callable[[bytes, Iterator[bytes], Context], Iterator[bytes]]) -> Callable[..., Any]:
        def call(requests: Iterator[bytes], context: Context) -> Iterator[bytes]:
            with self._first(requests, context) as first, self._rest(requests, context) as rest:
                yield from run(first, rest, context)

        return call

    @contextlib.contextmanager
    def _first(self, requests: Iterator[bytes], context: Context) -> Iterator[bytes]:
        """Wait for a call's first message; a large one counts until the call is served, or over."""
        if not context.add_callback(lambda: self._end(context)):
            self._end(context)  # it was over before it had a thread
            context.abort(grpc.StatusCode.CANCELLED, "the caller is gone")
        self._messages.acquire(context, is_new=True)
        self._arrived.add(context)
        size = 0
        try:
            first = self.watch.first(requests, context)
            if first is None:
                end_as_invalid(context, "the call ended without a request; send one")
            size = len(first)
            if size <= SMALL_MESSAGE_BYTES:
                self._let_first_go(context)
            yield first
        finally:
            if size > _RARE_BYTES:
                give_back_free_memory()
            self._let_first_go(context)

    def _let_first_go(self, context: Context) -> None:
        """Have a call's first message count no more; called by the call's own thread."""
        if context in self._arrived:
            self._arrived.remove(context)
            self._messages.release()

    def _end(self, context: Context) -> None:
        self.watch.end(context)
        self.lane.leave()

    def _rest(self, requests: Iterator[bytes], context: Context) -> contextlib.closing[Generator[bytes, None, None]]:
        return contextlib.closing(self._messages_of(requests, context))

    def _messages_of(self, requests: Iterator[bytes], context: Context) -> Generator[bytes, None, None]:
        """Yield the further messages of a call; a large one counts until the next is asked for."""
        messages = self.watch.receive(requests, context)
        while True:
            self._messages.acquire(context)
            is_held = True
            try:
                message = next(messages, None)
                if message is None:
                    return
                if len(message) <= SMALL_MESSAGE_BYTES:
                    is_held = False
                    self._messages.release()
                yield message
            finally:
                if is_held:
                    self._messages.release()


def on(executor: ThreadPoolExecutor, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call that gRPC runs on an executor's threads, which it takes from an attribute of the function."""

    def run(*args: Any) -> Any:
        return call(*args)

    run.experimental_thread_pool = executor  # type: ignore[attr-defined]
    return run


def end(context: Context, code: grpc.StatusCode, message: str, detail: ErrorDetail) -> NoReturn:
    """End a call with a status and its detail.

    Raises:
        Exception: gRPC's own, which ends the call.
    """
    context.set_trailing_metadata(((DETAIL_KEY, detail.SerializeToString()),))
    context.abort(code, message)
    raise AssertionError("abort raises")


def end_as_invalid(context: Context, message: str) -> NoReturn:
    """End a call whose request makes no sense.

    Raises:
        Exception: gRPC's own, which ends the call.
    """
    end(context, grpc.StatusCode.INVALID_ARGUMENT, message, ErrorDetail(reason=Reason.REASON_INVALID_REQUEST))


def _refuse(_: Iterator[bytes], context: Context) -> None:
    """Answer a call for which there is no room."""
    end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls are under way already; try again later", _FULL)
