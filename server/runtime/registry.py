"""The models of a server, by name. Imports the models and the error tree."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from numba_adam.errors import ModelNotFoundError, PushInProgressError
from numba_adam.ps.detail import with_detail
from numba_adam.server.runtime.model import Model

_RETRY_MILLISECONDS = 50


class Registry:
    """The models of a server, by name. Safe to use from any thread."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def all(self) -> list[Model]:
        """Return all models, sorted by name."""
        with self._lock:
            return [self._models[name] for name in sorted(self._models)]

    def find(self, name: str) -> Model | None:
        """Return the model with this name, or None."""
        return self._models.get(name)

    def get(self, name: str) -> Model:
        """Return the model with this name.

        Raises:
            ModelNotFoundError: no model has it.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(f"model {name[:200]!r}: the server has no such model; create it first")
        return model

    def add(self, model: Model) -> None:
        """Add a model, so that calls find it."""
        with self._lock:
            self._models[model.spec.name] = model

    def remove(self, model: Model) -> None:
        """Remove a model, so that no call finds it."""
        with self._lock:
            del self._models[model.spec.name]

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[Model | None]:
        """Hold a name while its model is created or deleted; yield the existing model or None.

        Raises:
            PushInProgressError: another call holds the name.
        """
        with self._lock:
            if name in self._claimed:
                error = PushInProgressError(f"model {name!r}: another call is creating or deleting it; try again")
                raise with_detail(error, retry_after_milliseconds=_RETRY_MILLISECONDS)
            self._claimed.add(name)
            existing = self._models.get(name)
        try:
            yield existing
        finally:
            with self._lock:
                self._claimed.discard(name)
