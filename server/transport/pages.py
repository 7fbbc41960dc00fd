"""Pagination of answers about many models. Pages are limited in models and in bytes.

Imports protobuf and the models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, Protocol, TypeVar

from google.protobuf.message import Message

from numba_adam.errors import InvalidRequestError, TransferTooLargeError
from numba_adam.server.model.names import is_model_name
from numba_adam.server.runtime.model import Model

LARGEST_PAGE = 1000
"""Most models in one page, even if a request asks for more."""

PAGE_BYTES = 1 << 20
"""Size of the largest page, unless one model alone takes more."""

WHOLE_BYTES = 64 << 20
"""Size of the largest answer without pages: the limit of our client."""

_M = TypeVar("_M", bound=Message)


class PageRequest(Protocol):
    """The fields of a request that ask for a page."""

    page_size: int
    page_token: str


class Page(NamedTuple, Generic[_M]):
    """One page of models."""

    messages: list[_M]
    """Their descriptions, ordered by name."""

    next_page_token: str
    """The token of the next page; empty on the last page."""


def page_of(models: Iterable[Model], request: PageRequest, describe: Callable[[Model], _M]) -> Page[_M]:
    """Return the page that a request asks for.

    Args:
        models: all models, ordered by name.
        request: page_size 0 asks for all models in one answer.
        describe: returns a model's description.

    Raises:
        InvalidRequestError: an invalid page size or token.
        TransferTooLargeError: page_size is 0, and the answer would exceed WHOLE_BYTES.
    """
    if request.page_size < 0:
        raise InvalidRequestError(f"page_size={request.page_size}: it must be at least 0")
    token = request.page_token
    if token and not is_model_name(token):
        raise InvalidRequestError(
            f"page_token={token[:80]!r}: give the next_page_token of the answer before, unchanged"
        )
    messages: list[_M] = []
    size, last = 0, ""
    for model in models:
        if model.spec.name <= token:
            continue
        message = describe(model)
        size += message.ByteSize()
        if request.page_size and messages and (len(messages) >= _most(request.page_size) or size > PAGE_BYTES):
            return Page(messages, last)
        if not request.page_size and size > WHOLE_BYTES:
            raise TransferTooLargeError(
                f"page_size=0: the descriptions of all models take more than {WHOLE_BYTES} bytes; ask for pages"
            )
        messages.append(message)
        last = model.spec.name
    return Page(messages, "")


def _most(page_size: int) -> int:
    return min(page_size, LARGEST_PAGE)
