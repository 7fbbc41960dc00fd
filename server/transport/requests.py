"""Requests become messages, without the parser taking more memory than anybody counted.

A few bytes of protobuf can become forty times as many in memory. So requests are parsed within what the budget has
room for, large ones one at a time, and count for as long as their call lasts. Imports the framing, the budget and
protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from google.protobuf.message import DecodeError

from numba_adam.errors import InvalidRequestError
from numba_adam.ps.framing import read_chunk
from numba_adam.server.runtime.budget import SlotPool

_SMALL_BYTES = 1 << 14
_UNCOUNTED_BYTES = 1 << 10  # what is no longer never becomes much, however many calls there are
_PARSED_BYTES = 48  # that a byte may become. 39 is the most we found: parts without content that replace each other


class Requests:
    """Parses what calls receive.

    Args:
        pool: the budget.
    """

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        # One thread, and not one at a time of many: the C library keeps what each thread has freed.
        self._parser = ThreadPoolExecutor(1, "numba-adam-parser")

    def stop(self) -> None:
        """End the thread, once all calls are over."""
        self._parser.shutdown(wait=False)

    def parse_only(self, parse: Callable[[bytes], Any], raw: bytes) -> Any:
        """Return the one request of a call that asks for little.

        Raises:
            InvalidRequestError: it is too long, or no message of the call.
        """
        if len(raw) > _SMALL_BYTES:
            raise InvalidRequestError(
                f"the request has {len(raw)} bytes: one of this call has at most {_SMALL_BYTES}; correct its fields"
            )
        return _parse(parse, raw)

    def parse_part(self, parse: Callable[[bytes], Any], raw: bytes, held: ExitStack) -> Any:
        """Return a part of a transfer.

        Args:
            parse: reads it.
            raw: what came.
            held: closed when the call is over; until then a header of more than a kibibyte counts.

        Raises:
            InvalidRequestError: it is no message of the call.
            BudgetExceededError: there is no room for it now.
        """
        if len(raw) <= _UNCOUNTED_BYTES:
            return _parse(parse, raw)
        chunk = read_chunk(raw)
        if chunk is not None:
            return chunk
        owner, what = object(), f"a message of {len(raw)} bytes that is no chunk: parsing it, which takes up to"
        held.callback(self._pool.keep, owner, 0, what)
        if len(raw) <= _SMALL_BYTES:
            return self._parse_counted(parse, raw, owner, what)
        return self._parser.submit(self._parse_counted, parse, raw, owner, what).result()

    def _parse_counted(self, parse: Callable[[bytes], Any], raw: bytes, owner: Hashable, what: str) -> Any:
        self._pool.keep(owner, _PARSED_BYTES * len(raw), what)
        return _parse(parse, raw)


def _parse(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request is no message of this call ({error}); check the .proto version"
        ) from error
