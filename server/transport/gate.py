"""Admission control: admits a limited number of concurrent calls, and refuses the others before they take a thread.

gRPC gives a call its thread before the first message arrives, and a client may never send one. So there are more
threads than calls served at a time, and a call counts as served only after its first message. An incoming message
takes memory before its size is known, so few messages may arrive at a time. Imports grpc, the watch and the budget.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc

from numba_adam.ps.errors import DETAIL_KEY
from numba_adam.ps.v1.error_pb2 import ErrorDetail, Reason
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.heap import give_back_free_memory
from numba_adam.server.runtime.launcher import use_threads
from numba_adam.server.runtime.tally import Refusals
from numba_adam.server.transport.access import Guard
from numba_adam.server.transport.executor import CallExecutor
from numba_adam.server.transport.in_flight import InFlight
from numba_adam.server.transport.permits import Permits
from numba_adam.server.transport.read_ahead import ReadAhead
from numba_adam.server.transport.requests import Requests
from numba_adam.server.transport.watch import Watch

Context = grpc.ServicerContext
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

SMALL_MESSAGE_BYTES = 1 << 16
"""Messages and answers up to this size are not counted."""

_ARRIVING_BYTES = 1 << 24  # incoming messages may always take this much memory
_BUDGET_SHARE = 8  # incoming messages beyond that may take this fraction of the budget
_RARE_BYTES = 1 << 20  # larger first messages are rare: a header with tens of thousands of arrays, or an attack
_UNAUTHENTICATED = ErrorDetail(reason=Reason.REASON_UNAUTHENTICATED)
_FULL = ErrorDetail(reason=Reason.REASON_BUDGET, retry_after_milliseconds=100)


class CallPool:
    """A thread pool for calls of one kind, with a limit on concurrent calls.

    Args:
        name: part of the threads' names.
        most_calls: largest number of concurrent calls, each on its own thread.
        watch: is told when the limit is reached.
        executor: its threads. None: a pool of as many threads as calls.
    """

    def __init__(self, name: str, most_calls: int, watch: Watch, executor: ThreadPoolExecutor | None = None) -> None:
        self.executor = executor or ThreadPoolExecutor(most_calls, f"numba-adam-{name}")
        self._most_calls = most_calls
        self._watch = watch
        self._live = 0
        self._lock = threading.Lock()

    def try_admit(self) -> bool:
        """Admit a call if the limit allows; return whether it did. `release` must follow."""
        with self._lock:
            is_admitted = self._live < self._most_calls
            self._live += is_admitted
        if not is_admitted:
            self._watch.report_pressure()
        return is_admitted

    def release(self) -> None:
        """Note that an admitted call has ended."""
        with self._lock:
            self._live -= 1


class Entry(NamedTuple):
    """The pool and the handler of one method."""

    pool: CallPool
    """Admits and runs its calls."""

    handler: Handler
    """gRPC's handler. It receives requests as a stream, so that the watch sees the wait for the first message."""


class Gate(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic for type checkers only
    """Admits calls, or refuses them before they take a thread.

    Args:
        entries: every method's entry, by its path.
        guard: checks the tokens of calls; None: they need none.
        refusals: counts the refused calls.
        without_token: paths of methods that need no token.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        guard: Guard | None = None,
        refusals: Refusals | None = None,
        without_token: Collection[str] = (),
    ) -> None:
        self._entries = entries
        self._guard = guard
        self._refusals = refusals or Refusals()
        self._without_token = frozenset(without_token)
        self._executor = ThreadPoolExecutor(1, "numba-adam-refusal")
        self._of_a_web_page: Handler = grpc.stream_unary_rpc_method_handler(run_on(self._executor, _refuse_web_page))
        self._refusal: Handler = grpc.stream_unary_rpc_method_handler(run_on(self._executor, _refuse))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a call; None for an unknown method. Runs on gRPC's own thread."""
        if self._guard is not None and handler_call_details.method not in self._without_token:
            why = self._guard.refuse(handler_call_details.invocation_metadata or ())
            if why is not None:
                self._refusals.note("unauthenticated")
                return self._unauthenticated(why)
        if self._guard is None and _is_of_a_web_page(handler_call_details):
            self._refusals.note("web_page")
            return self._of_a_web_page
        entry = self._entries.get(handler_call_details.method)
        if entry is None:
            return None
        if entry.pool.try_admit():
            return entry.handler
        self._refusals.note("call_limit")
        return self._refusal

    def _unauthenticated(self, why: str) -> Handler:
        """Return the handler that refuses a call without a valid token."""

        def refuse(_: Iterator[bytes], context: Context) -> None:
            end(context, grpc.StatusCode.UNAUTHENTICATED, why, _UNAUTHENTICATED)

        return grpc.stream_unary_rpc_method_handler(run_on(self._executor, refuse))

    def stop(self) -> None:
        """End the threads after their calls; gRPC does not end them."""
        self._executor.shutdown(wait=False)
        for pool in {entry.pool for entry in self._entries.values()}:
            pool.executor.shutdown(wait=False)


class Calls:
    """What all calls of a server share: threads, limits and the budget.

    Args:
        budget: the memory budget.
        watch: ends stalled calls.
        served: number of calls served at a time.
        waiting: number of further calls that may be open.
        message_bytes: size of the largest message.
    """

    def __init__(self, budget: SlotPool, watch: Watch, served: int, waiting: int, message_bytes: int) -> None:
        self.watch = watch
        self.in_flight = InFlight()
        """The calls that a stopping server waits for."""

        self.requests = Requests(budget)
        """Parses requests."""

        self._budget = budget
        # Calls run kernels on one thread; only the launcher's thread uses more.
        self.executor = CallExecutor(served + waiting, "numba-adam-rpc", lambda: use_threads(1))
        self.pool = CallPool("rpc", served + waiting, watch, self.executor)
        self._served = Permits(served, watch)
        self._holding: set[Context] = set()  # calls whose first message holds a permit: arriving, or large and unparsed
        free = max(1, _ARRIVING_BYTES // message_bytes)
        arriving_bytes = 2 * message_bytes  # gRPC's buffer and the bytes object made of it
        self._messages = Permits(
            free + budget.budget_bytes // _BUDGET_SHARE // arriving_bytes,
            watch,
            free,
            reserve=lambda: budget.reserve(arriving_bytes),
            give_back=lambda: budget.give_back(arriving_bytes),
        )

    def handler(
        self,
        run: Callable[[bytes, Iterator[bytes], Context], Any],
        *,
        answers_stream: bool,
        frees_slot: bool = False,
    ) -> Handler:
        """Return gRPC's handler of a method.

        Args:
            run: takes the first message, an iterator of the others, and the context. Messages are bytes.
            answers_stream: True: `run` returns an iterator of messages; False: one message.
            frees_slot: whether `run` frees its slot of the executor itself, before it waits. Otherwise the first
                message frees it.
        """
        make = grpc.stream_stream_rpc_method_handler if answers_stream else grpc.stream_unary_rpc_method_handler
        call = self._streaming(run) if answers_stream else self._answering(run, frees_slot=frees_slot)
        return make(run_on(self.pool.executor, call))

    @contextlib.contextmanager
    def served(self, context: Context) -> Iterator[None]:
        """Wait for a permit to serve, and hold it during the body. The call is in flight until it ends."""
        self._release_first(context)  # it is parsed; the parser counts its memory
        self.in_flight.begin(context)
        self._served.acquire(context)
        try:
            yield
        finally:
            self._served.release()

    def counted(self, answer: bytes, context: Context) -> bytes:
        """Return an answer; a large one counts in the budget until its call ends.

        Raises:
            BudgetExceededError: it exceeds the free part of the budget.
        """
        if len(answer) > SMALL_MESSAGE_BYTES:
            owner, what = object(), f"an answer of {len(answer)} bytes"
            self._budget.keep(owner, 2 * len(answer), what)  # gRPC makes a copy
            if not context.add_callback(lambda: self._budget.keep(owner, 0, what)):
                self._budget.keep(owner, 0, what)
        return answer

    def _answering(
        self, run: Callable[[bytes, Iterator[bytes], Context], bytes], *, frees_slot: bool
    ) -> Callable[..., bytes]:
        def call(requests: Iterator[bytes], context: Context) -> bytes:
            with self._first(requests, context) as first, self._rest(requests, context) as rest:
                if not frees_slot:
                    self.executor.free_slot()
                answer = run(first, rest, context)
            self.watch.begin_last_turn(context, len(answer))
            return answer

        return call

    def _streaming(self, run: Callable[[bytes, Iterator[bytes], Context], Iterator[bytes]]) -> Callable[..., Any]:
        def call(requests: Iterator[bytes], context: Context) -> Iterator[bytes]:
            with self._first(requests, context) as first, self._rest(requests, context) as rest:
                self.executor.free_slot()
                yield from run(first, rest, context)

        return call

    @contextlib.contextmanager
    def _first(self, requests: Iterator[bytes], context: Context) -> Iterator[bytes]:
        """Wait for a call's first message; a large one holds a permit until the call is served or ends."""
        if not context.add_callback(lambda: self._end(context)):
            self._end(context)  # it ended before it got a thread
            context.abort(grpc.StatusCode.CANCELLED, "the caller is gone")
        self._messages.acquire(context, is_new=True)
        self._holding.add(context)
        size = 0
        try:
            with self.executor.waiting_for_peer():
                first = self.watch.first(requests, context)
            if first is None:
                end_as_invalid(context, "the call ended without a request; send one")
            size = len(first)
            if size <= SMALL_MESSAGE_BYTES:
                self._release_first(context)
            yield first
        finally:
            if size > _RARE_BYTES:
                give_back_free_memory()
            self._release_first(context)

    def _release_first(self, context: Context) -> None:
        """Release the permit of a call's first message, if it is held. Runs on the call's own thread."""
        if context in self._holding:
            self._holding.remove(context)
            self._messages.release()

    def _end(self, context: Context) -> None:
        self.watch.end(context)
        self.pool.release()

    def _rest(self, requests: Iterator[bytes], context: Context) -> contextlib.closing[Generator[bytes, None, None]]:
        return contextlib.closing(self._messages_of(requests, context))

    def _messages_of(self, requests: Iterator[bytes], context: Context) -> Generator[bytes, None, None]:
        """Yield a call's messages after the first; a large one holds a permit until the caller takes the next.

        While the caller has a large one, the next one arrives, if there is a permit for it.
        """
        ahead = ReadAhead(requests)
        messages = self.watch.receive(ahead, context)
        held = 0
        try:
            while True:
                if not held:
                    self._messages.acquire(context)
                    held = 1
                message = next(messages, None)
                if message is None:
                    return
                if len(message) <= SMALL_MESSAGE_BYTES:
                    self._messages.release()
                    held = 0
                elif self._messages.try_acquire():
                    held = 2
                    if not ahead.start():
                        self._messages.release()
                        held = 1
                yield message
                if len(message) > SMALL_MESSAGE_BYTES:
                    self._messages.release()
                    held -= 1
        finally:
            for _ in range(held):
                self._messages.release()


def run_on(executor: ThreadPoolExecutor, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that gRPC runs on an executor's threads. gRPC reads the executor from an attribute."""

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
    """End a call with an invalid request.

    Raises:
        Exception: gRPC's own, which ends the call.
    """
    end(context, grpc.StatusCode.INVALID_ARGUMENT, message, ErrorDetail(reason=Reason.REASON_INVALID_REQUEST))


def _refuse(_: Iterator[bytes], context: Context) -> None:
    """Refuse a call that exceeds the limit."""
    end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of concurrent calls is reached; try again later", _FULL)


def _is_of_a_web_page(call: grpc.HandlerCallDetails) -> bool:
    """Return whether a browser says, in a header that pages cannot change, that a page makes the call."""
    return any(key == "origin" or key.startswith("sec-fetch-") for key, _ in call.invocation_metadata or ())


def _refuse_web_page(_: Iterator[bytes], context: Context) -> None:
    """Refuse the call of a web page to a server that asks for no token."""
    detail = ErrorDetail(reason=Reason.REASON_PERMISSION_DENIED)
    why = "web pages may not call a server that asks for no token; start it with --loopback-token required"
    end(context, grpc.StatusCode.PERMISSION_DENIED, why, detail)
