"""Parses requests within the memory budget.

Parsed protobuf can take forty times the memory of its encoding. So a request counts in the budget before it is parsed
and until its call ends. Large requests are parsed one at a time. Imports the framing, the budget and protobuf.
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
_UNCOUNTED_BYTES = 1 << 10  # requests up to this size stay small in memory, and calls are limited
_PARSED_BYTES = 48  # memory for each encoded byte; we measured up to 39, with empty parts that replace each other


class Requests:
    """Parses requests.

    Args:
        budget: the memory budget.
    """

    def __init__(self, budget: SlotPool) -> None:
        self._budget = budget
        # A thread instead of a lock: the C library keeps the memory that each thread has freed.
        self._parser = ThreadPoolExecutor(1, "numba-adam-parser")

    def stop(self) -> None:
        """End the thread, after all calls have ended."""
        self._parser.shutdown(wait=False)

    def parse_only(self, parse: Callable[[bytes], Any], raw: bytes) -> Any:
        """Return the request of a call that sends exactly one, which must be small.

        Raises:
            InvalidRequestError: it is too large, or cannot be decoded.
        """
        if len(raw) > _SMALL_BYTES:
            raise InvalidRequestError(
                f"the request has {len(raw)} bytes: this call allows at most {_SMALL_BYTES}; shorten its fields"
            )
        return _parse(parse, raw)

    def parse_part(self, parse: Callable[[bytes], Any], raw: bytes, held: ExitStack) -> Any:
        """Return a part of a transfer: header, chunk or trailer.

        Args:
            parse: decodes it.
            raw: the encoded part.
            held: closed when the call ends; until then a header of more than 1 KiB counts in the budget.

        Raises:
            InvalidRequestError: it cannot be decoded.
            BudgetExceededError: it exceeds the free part of the budget.
        """
        if len(raw) <= _UNCOUNTED_BYTES:
            return _parse(parse, raw)
        chunk = read_chunk(raw)
        if chunk is not None:
            return chunk
        owner, what = object(), f"a header or trailer of {len(raw)} bytes: parsing it, which takes up to"
        held.callback(self._budget.keep, owner, 0, what)
        if len(raw) <= _SMALL_BYTES:
            return self._parse_counted(parse, raw, owner, what)
        return self._parser.submit(self._parse_counted, parse, raw, owner, what).result()

    def _parse_counted(self, parse: Callable[[bytes], Any], raw: bytes, owner: Hashable, what: str) -> Any:
        self._budget.keep(owner, _PARSED_BYTES * len(raw), what)
        return _parse(parse, raw)


def _parse(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request cannot be decoded as a message of this call ({error}); check the .proto version"
        ) from error
