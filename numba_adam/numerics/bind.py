"""The same source compiled for several targets: a function whose global names have other values. Imports nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any


def bind(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """Return a copy of a function in which some global names have other values, such as compiled functions."""
    known = {**function.__globals__, **names}
    bound = FunctionType(function.__code__, known, function.__name__, closure=function.__closure__)
    bound.__doc__, bound.__module__, bound.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    return bound
