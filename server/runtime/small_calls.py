"""Gives calls about small models priority over large updates. Imports the models and the launcher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from numba_adam.server.runtime.launcher import Launcher
from numba_adam.server.runtime.model import Model


@contextlib.contextmanager
def small_call(model: Model, launcher: Launcher) -> Iterator[None]:
    """Make large updates give way to the body, if the model is small."""
    if model.is_small:
        launcher.note_small_call()
    try:
        yield
    finally:
        if model.is_small:
            launcher.note_small_call()
