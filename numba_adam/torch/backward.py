"""Updates during the backward pass: a hook takes each gradient, and a thread updates what is complete. Imports torch.

A chunk of neighbouring parameters is updated when the gradients of all of them have been taken. What is not complete
at the end of the backward pass stays for the optimizer's step.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from numba_adam.errors import HyperparameterError
from numba_adam.torch.host_copies import Fetched

Grads = dict[int, Fetched]  # by the places of their parameters

_owners: Any = WeakIdKeyDictionary()  # parameter -> a weak reference to what takes its gradients


class BackwardUpdates:
    """The updates of one optimizer during backward passes. Takes no gradients before `follow`."""

    def __init__(self) -> None:
        """Begin without parameters."""
        self._lock = threading.Lock()  # a backward pass has one thread for each device
        self._places: dict[torch.Tensor, int] = {}
        self._chunks: dict[int, Sequence[torch.Tensor]] = {}  # place -> all parameters of its chunk
        self._handles: dict[torch.Tensor, Any] = {}  # of the hooks
        self._fetch: Callable[[int, torch.Tensor, bool], Fetched] | None = None
        self._prepare: Callable[[], Callable[[Grads], object]] | None = None
        self._taken: Grads = {}  # not updated yet
        self._updated: set[int] = set()  # places whose updates have begun since the last step
        self._updates: list[Future[object]] = []
        self._is_paused = False
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        weakref.finalize(self, _remove, self._handles)

    def follow(
        self,
        params: Sequence[torch.Tensor],
        chunks: Sequence[Sequence[int]],
        fetch: Callable[[int, torch.Tensor, bool], Fetched],
        prepare: Callable[[], Callable[[Grads], object]],
    ) -> None:
        """From now on, take the gradients of these parameters, as far as they require gradients now.

        Args:
            params: all parameters, in order.
            chunks: the places of the parameters that are updated together.
            fetch: starts to move a gradient to this host. It gets the parameter's place, the parameter, and whether it
                is the first since the last step. The thread of the backward pass calls it.
            prepare: returns the update of a chunk that is complete, with the hyperparameters of this moment. The thread
                of the backward pass calls it. Another thread calls the update, with the gradients.

        Raises:
            HyperparameterError: another optimizer takes the gradients of one of them. Nothing was changed.
        """
        new = [(place, param) for place, param in enumerate(params) if param.requires_grad]
        new = [(place, param) for place, param in new if param not in self._handles]
        for place, param in new:
            owner = _owners.get(param)
            if owner is not None and owner() not in (None, self):
                raise HyperparameterError(
                    f"params[{place}]: another optimizer with update_in_backward=True has it; call that one's close()"
                )
        self._fetch, self._prepare = fetch, prepare
        self._places = {param: place for place, param in enumerate(params)}
        self._chunks = {place: [params[each] for each in chunk] for chunk in chunks for place in chunk}
        this = weakref.ref(self)
        for _, param in new:
            _owners[param] = this
            self._handles[param] = param.register_post_accumulate_grad_hook(_Hook(this))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the gradients of backward passes where they are, so that they add up."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def take(self, param: torch.Tensor) -> None:
        """Take a parameter's gradient, and start the update of its chunk if that is complete."""
        place = self._places.get(param)
        if self._is_paused or place is None or param.grad is None:
            return
        assert self._fetch is not None
        with self._lock:
            if place in self._taken or place in self._updated:
                raise HyperparameterError(
                    f"params[{place}] has a second gradient before step(), and update_in_backward=True has used the "
                    "first: call step() after each backward pass, or add gradients up inside `with "
                    "optimizer.accumulating():`"
                )
            self._taken[place] = self._fetch(place, param, not self._taken and not self._updated)
            param.grad = None
            chunk = [self._places[each] for each in self._chunks[place] if each.requires_grad]
            if all(each in self._taken for each in chunk):
                self._start({each: self._taken.pop(each) for each in chunk})

    def _start(self, grads: Grads) -> None:
        assert self._prepare is not None
        update = self._prepare()
        if self._executor is None or self._process != os.getpid():  # a forked process has no threads
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="numba-adam-offload")
            self._process = os.getpid()
        self._updated.update(grads)
        self._updates.append(self._executor.submit(update, grads))

    def finish(self) -> tuple[Grads, set[int]]:
        """Wait for the updates, and begin anew.

        Returns:
            the gradients that were taken and not used, and the places of the parameters that were updated.

        Raises:
            NumbaAdamError: an update failed. The gradients are dropped.
        """
        with self._lock:
            updates, taken, updated = self._updates, self._taken, self._updated
            self._updates, self._taken, self._updated = [], {}, set()
        wait(updates)
        for update in updates:
            update.result()
        return taken, updated

    def wait(self) -> None:
        """Wait for the updates that have begun. `finish` reports their errors."""
        wait(list(self._updates))

    def close(self) -> None:
        """Take no gradients any more."""
        self.wait()
        for param in self._handles:
            _owners.pop(param, None)
        _remove(self._handles)
        self._places = {}
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


class _Hook:
    """The hook of a parameter. It does not keep the optimizer alive."""

    def __init__(self, updates: weakref.ref[BackwardUpdates]) -> None:
        self._updates = updates

    def __call__(self, param: torch.Tensor) -> None:
        updates = self._updates()
        if updates is not None:
            updates.take(param)


def _remove(handles: dict[torch.Tensor, Any]) -> None:
    """Remove the hooks."""
    for handle in handles.values():
        handle.remove()
    handles.clear()
