"""The loop of a worker: pull, compute, push, again for each batch. May import its neighbours here and the errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from numba_adam.client.ack import Ack
from numba_adam.client.info import ModelInfo
from numba_adam.client.structure import flatten
from numba_adam.errors import NamesError
from numba_adam.interop import drop_gradient, gradient_of

_Batch = TypeVar("_Batch")


class Step:
    """One pass through the loop."""

    def __init__(self, params: Any, version: int, ack: Ack | None) -> None:
        self.params = params
        """The parameters to compute the gradients from."""

        self.version = version
        """Version of these parameters on the server."""

        self.ack = ack
        """The server's answer to the loop's last push; None before the first. If its `applied` is False, the server
        lost that push, and `params` is the state that it restored."""

        self.grads: Any = None
        """Set this to the gradients. None: the parameters carry them, as PyTorch's do in `.grad`."""

        self.is_skipped = False
        """Whether this pass pushes nothing."""

    def skip(self) -> None:
        """Push nothing in this pass, and forget its gradients: they should not be applied."""
        self.is_skipped = True


class _Handle(Protocol):
    """What the loop needs of a model."""

    @property
    def version(self) -> int: ...

    @property
    def last_ack(self) -> Ack | None: ...

    @property
    def spec(self) -> ModelInfo: ...

    def leave(self) -> None: ...

    def pull(self, min_version: int | None = None, out: Any = None) -> Any: ...

    def push_pull(self, grads: Any, out: Any = None) -> Any: ...


class Worker(Generic[_Batch]):
    """An iterable of (batch, step); see `Model.worker`. Each `for` loop over it runs through the batches once."""

    def __init__(self, model: _Handle, batches: Iterable[_Batch], params: object) -> None:
        if not isinstance(batches, Iterable):
            raise NamesError(f"batches: expected an iterable, such as a list or a DataLoader, got {batches!r}")
        self._model, self._batches, self._out = model, batches, None
        self.leaves: dict[str, object] = {}
        """The arrays to pull into, by name."""

        if params is not None:
            self.leaves, form = flatten(params, "params")
            self._out = form.filled(self.leaves)  # `params` may be an iterator, which cannot be read again
        self._carries_gradients = any(gradient_of(leaf) is not leaf for leaf in self.leaves.values())

    def __iter__(self) -> Iterator[tuple[_Batch, Step]]:
        params = self._model.pull(out=self._out)
        for batch in self._batches:
            for leaf in self.leaves.values():
                drop_gradient(leaf)
            step = Step(params, self._model.version, self._model.last_ack)
            yield batch, step
            if not step.is_skipped:
                params = self._model.push_pull(self._gradients(step), out=self._out)
        if self._model.spec.mode == "ssp":  # the others should not wait for a worker that is done
            self._model.leave()

    def _gradients(self, step: Step) -> Any:
        if step.grads is not None:
            return step.grads
        if not self._carries_gradients:
            raise NamesError("step.grads is not set: assign the gradients to it in the loop, or call step.skip()")
        if all(gradient_of(leaf) is None for leaf in self.leaves.values()):
            raise NamesError("no parameter has a gradient: call backward() in the loop, or step.skip()")
        return self.leaves
