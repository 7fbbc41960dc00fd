"""Steps on copies of the parameters in this host's memory, chunk by chunk. Imports torch, the tie and the transfers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from numba_adam.errors import HyperparameterError
from numba_adam.settings.options import Options
from numba_adam.settings.results import APPLIED, StepResult
from numba_adam.torch import sparse
from numba_adam.torch.backward import BackwardUpdates, Grads
from numba_adam.torch.host_copies import Fetched, HostCopy, Transfers, check_grads, check_params
from numba_adam.torch.tie import Groups, State, Tie


class _Hosts(NamedTuple):
    """The copies of all parameters."""

    groups: list[dict[str, Any]]  # the param groups, with the copies in place of the parameters
    copies: list[HostCopy]  # in the order of the parameters


class OffloadTie(Tie):
    """Makes the steps of one optimizer on copies of its parameters.

    Args:
        options: as `Tie`.
        clipping: as `Tie`.
        in_backward: whether chunks are updated during the backward pass.
        chunk_bytes: size of what is moved and updated at a time.
    """

    def __init__(self, options: Options, clipping: dict[str, Any], in_backward: bool, chunk_bytes: int) -> None:
        super().__init__(options, clipping)
        self._transfers = Transfers()
        self._copies: dict[torch.Tensor, HostCopy] = {}
        self._host_state: State = {}  # the entries of the optimizer's state, by the copies
        self._in_backward, self._chunk_bytes = in_backward, chunk_bytes
        self.backward = BackwardUpdates()
        """What takes gradients during the backward pass. It takes none before `follow`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes one without a core and without copies."""
        return OffloadTie, (self._options, self._clipping, self._in_backward, self._chunk_bytes)

    def validate(self, groups: Groups) -> None:
        """Refuse parameters and hyperparameters that no step could take; as `Tie`."""
        check_params(_params(groups))
        super().validate([{**group, "params": list(map(_stand_in, group["params"]))} for group in groups])

    def follow(self, groups: Groups, state: State) -> None:
        """From now on, take these parameters' gradients during backward passes, if the optimizer was made so.

        Raises:
            HyperparameterError: another optimizer takes the gradients of one of them.
        """
        if not self._in_backward:
            return

        def fetch(_: int, param: torch.Tensor, is_first: bool) -> Fetched:
            if is_first:
                self._refreshed(groups)
            return self._transfers.fetch(param.grad)

        def prepare() -> Callable[[Grads], object]:
            hosts = self._hosts(groups)  # with the hyperparameters of this moment
            return lambda grads: self._update(hosts, state, 1.0, grads)

        params = _params(groups)
        self.backward.follow(params, self._chunks(params, range(len(params))), fetch, prepare)

    def step(
        self,
        groups: Groups,
        state: State,
        grad_scale: float,
        grads: Sequence[torch.Tensor | None] | None = None,
        *,
        measured: bool = False,
    ) -> None:
        """Update every parameter that has a gradient, and was not updated during the backward pass; as `Tie`."""
        assert not measured  # chunk by chunk, some would be updated before another is found not to be finite
        params = _params(groups)
        grads = [param.grad for param in params] if grads is None else grads
        taken, updated = self.backward.finish()
        for place in {*taken, *updated}:
            if grads[place] is not None:
                raise HyperparameterError(
                    f"params[{place}] has a gradient again after update_in_backward=True has taken it. "
                    "DistributedDataParallel does so, and programs that set gradients themselves: use "
                    "update_in_backward=False with them"
                )
        check_grads(grads)
        rows = [place for place, grad in enumerate(grads) if grad is not None and grad.is_sparse]
        sparse.check(params, grads, rows, self._options, self._clipping)
        hosts = self._refreshed(groups)
        chunks = self._chunks(params, [place for place, grad in enumerate(grads) if grad is not None or place in taken])
        results, following = [], Grads()
        for chunk in [*chunks, []]:  # the gradients of a chunk travel while the one before is updated
            current = following
            following = {place: taken.get(place) or self._transfers.fetch(grads[place]) for place in chunk}
            if current or not chunks:
                results.append(self._update(hosts, state, grad_scale, current))
        self._transfers.finish()
        self.result = results[0] if len(results) == 1 else APPLIED
        self.follow(groups, state)

    def _update(self, hosts: _Hosts, state: State, grad_scale: float, grads: Grads) -> StepResult:
        """Update the copies that have gradients, and start to move them back.

        Args:
            hosts: the copies.
            state: the optimizer's state.
            grad_scale: a factor for every gradient.
            grads: the gradients, by the places of their parameters.
        """
        own: list[torch.Tensor | None] = [None] * len(hosts.copies)
        for place, fetched in grads.items():
            hosts.copies[place].wait()
            own[place] = fetched.wait()
        self._host_state = self._gathered(hosts, state)
        super().step(hosts.groups, self._host_state, grad_scale, own)
        self._spread(hosts, state)
        assert self.result is not None
        if self.result.applied:
            for place, fetched in grads.items():
                self._transfers.give_back(hosts.copies[place], fetched)
        return self.result

    def discard(self) -> None:
        """Wait for the updates, and drop the gradients that were taken and not used.

        Raises:
            NumbaAdamError: an update failed.
        """
        self.backward.finish()
        self._transfers.finish()

    def load(
        self, groups: Groups, state: State, numbers: Sequence[Any], states: Mapping[Any, Mapping[str, Any]]
    ) -> None:
        """Load the states of a state dict into an empty state; as `Tie`."""
        hosts, host_state = self._refreshed(groups), State()
        super().load(hosts.groups, host_state, numbers, states)
        self._host_state = host_state
        self._spread(hosts, state)

    def copies(self, groups: Groups, state: State, name: str) -> list[torch.Tensor]:
        """Return the core's copies of the parameters: "ema" or "low_precision"; as `Tie`."""
        hosts = self._refreshed(groups)
        self._host_state = self._gathered(hosts, state)
        found = super().copies(hosts.groups, self._host_state, name)
        self._spread(hosts, state)
        return found

    def _hosts(self, groups: Groups) -> _Hosts:
        """Return the copies of all parameters. Some may be empty still."""
        params = _params(groups)
        if len(params) < len(self._copies):
            self._copies = {param: self._copy_of(param) for param in params}
        return _Hosts(
            [{**group, "params": [self._copy_of(param).host for param in group["params"]]} for group in groups],
            list(map(self._copy_of, params)),
        )

    def _refreshed(self, groups: Groups) -> _Hosts:
        """Return the copies of all parameters, filled."""
        hosts = self._hosts(groups)
        for place, copy in enumerate(hosts.copies):
            copy.refresh(place)
        return hosts

    def _copy_of(self, param: torch.Tensor) -> HostCopy:
        if param not in self._copies:
            self._copies[param] = HostCopy(param)
        return self._copies[param]

    def _chunks(self, params: Sequence[torch.Tensor], places: Iterable[int]) -> list[list[int]]:
        """Divide places into chunks. With `max_grad_norm` there is one, because the norm is of all gradients."""
        limit = self._chunk_bytes if self._clipping["max_grad_norm"] is None else float("inf")
        found: list[list[int]] = []
        size = limit
        for place in places:
            if size >= limit:
                found.append([])
                size = 0
            found[-1].append(place)
            size += params[place].numel() * params[place].element_size()
        return found

    def _gathered(self, hosts: _Hosts, state: State) -> State:
        """Return the state of the copies: the entries that the optimizer's state has for their parameters."""
        found = {copy.host: state[copy.param] for copy in hosts.copies if copy.param in state}
        if found.keys() != self._host_state.keys():
            return found
        self._host_state.update(found)
        return self._host_state

    def _spread(self, hosts: _Hosts, state: State) -> None:
        """Let the optimizer's state have the entries of the copies."""
        for copy in hosts.copies:
            if copy.host in self._host_state:
                state[copy.param] = self._host_state[copy.host]


def _params(groups: Groups) -> list[torch.Tensor]:
    return [param for group in groups for param in group["params"]]


def _stand_in(param: torch.Tensor) -> torch.Tensor:
    """Return a small tensor that is refused for the same options as the parameter's copy."""
    return torch.empty(1, dtype=param.dtype)
