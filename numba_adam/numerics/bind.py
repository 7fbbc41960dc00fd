"""The same source, compiled for another machine: a function whose names mean something else. Imports nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any


def bind(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """Return the function with some of its module's names bound to something else: compiled functions, for instance."""
    known = {**function.__globals__, **names}
    bound = FunctionType(function.__code__, known, function.__name__, closure=function.__closure__)
    bound.__doc__, bound.__module__, bound.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    return bound
