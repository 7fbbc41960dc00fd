"""Ties the state of a `torch.optim.Optimizer` to the optimizer of this library that makes the steps.

PyTorch keeps `state` and `param_groups`, and lets the program change both. The steps are those of `numba_adam.Adam`,
the core. Its arrays are what the tensors in `state` show. When the program has put in other parameters or other state,
the tie makes a new core from what it finds. Imports torch, the optimizer, and sparse.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from numba_adam.errors import HyperparameterError, StateDictError
from numba_adam.interop.torch import to_tensor
from numba_adam.optimizer import Adam
from numba_adam.settings.options import Options
from numba_adam.settings.results import APPLIED, StepResult
from numba_adam.settings.scalars import plain
from numba_adam.torch import sparse
from numba_adam.torch.shards import Shards

Groups = Sequence[dict[str, Any]]
State = dict[torch.Tensor, dict[str, Any]]

GROUP_KEYS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay", "eps_mode")
_said = operator.itemgetter(*GROUP_KEYS, "capturable", "differentiable")
_REFUSED = {
    "capturable": "a step on the CPU cannot be part of a CUDA graph",
    "differentiable": "autograd does not see the steps of this library",
}


class Core(Adam):
    """The optimizer that makes the steps."""

    @property
    def owner(self) -> object:
        """What owns the arrays of its state. Another one has new arrays."""
        return self._parameters.parts


class Tie:
    """Makes the steps of one `torch.optim.Optimizer`.

    Args:
        options: of the core, for all groups.
        clipping: `max_grad_norm` and `clip_value` of each step.
    """

    def __init__(self, options: Options, clipping: dict[str, Any]) -> None:
        self._options, self._clipping = options, clipping
        self.result: StepResult | None = None
        """Of the last step."""

        self._core: Core | None = None
        self._owner: object = None  # of the arrays that the state shows
        self._said: list[tuple[Any, ...]] = []  # the hyperparameters of each group, as the program has set them
        self._settings: list[tuple[Any, ...]] = []  # the same as plain numbers, as the core has them
        self._groups: list[int] = []  # the number of each of the core's groups
        self._params: list[torch.Tensor] = []  # all of them, in order
        self._shards = Shards([])  # of these parameters
        self._is_sharded = False  # whether there are any
        self._dense: list[int] = []  # the places of the core's parameters among all
        self._sparse: set[int] = set()  # the places of those whose last gradient was sparse
        self._seen: list[int] = []  # the identities of what the core was made from
        self._held: list[object] = []  # these objects, whose identities nothing else may get meanwhile
        self._steps: npt.NDArray[np.float32] = np.zeros(0, np.float32)  # what the tensors "step" show
        self._counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # the same numbers, exactly
        self._shown = b""
        self._new: set[int] = set()  # the core's parameters that have no state yet

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes a tie without a core. Its first step makes the core from the copied state."""
        return Tie, (self._options, self._clipping)

    def validate(self, groups: Groups) -> None:
        """Refuse parameters and hyperparameters that no step could take.

        Raises:
            HyperparameterError: a hyperparameter is out of range, or refused.
            ArrayError: a parameter cannot be updated in place.
        """
        settings = [_settings(group) for group in groups]
        shards = Shards(list(chain.from_iterable(group["params"] for group in groups)))
        shards.check(self._options, self._clipping)
        own = iter(shards.own)
        members = [list(islice(own, len(group["params"]))) for group in groups]
        checked = [each or [torch.zeros(1)] for each in members]  # PyTorch admits groups that are still empty
        Core([_core_group(each, its) for each, its in zip(checked, settings, strict=True)], **self._named())

    def step(
        self,
        groups: Groups,
        state: State,
        grad_scale: float,
        grads: Sequence[torch.Tensor | None] | None = None,
        *,
        measured: bool = False,
    ) -> None:
        """Update every parameter that has a gradient.

        Args:
            groups: the param groups of the optimizer.
            state: its state.
            grad_scale: a factor for every gradient.
            grads: the gradient of each parameter, or None for none. Default: what the parameters have.
            measured: whether the step is skipped if a gradient is not finite, also without `max_grad_norm`.

        Raises:
            ArrayError: a gradient does not fit. Nothing was changed.
            HyperparameterError: a hyperparameter is out of range. Nothing was changed.
        """
        params = [param for group in groups for param in group["params"]]
        grads = [param.grad for param in params] if grads is None else grads
        rows = {place for place, grad in enumerate(grads) if grad is not None and grad.is_sparse}
        if rows:
            sparse.check(params, grads, rows, self._options, self._clipping)
        excluded = self._excluded(params, grads, rows) if rows or self._sparse else rows
        if excluded != self._sparse or not self._is_current(params, state):
            self._tie(groups, state, excluded)
        else:
            self._follow(groups)
        if self._is_sharded:
            grads = self._shards.grads(grads)
        own = grads if len(self._dense) == len(grads) else [grads[place] for place in self._dense]
        result = APPLIED
        if self._core is not None:
            loss_scale = 1.0 if measured else None
            result = self._core.step(own, grad_scale=grad_scale, loss_scale=loss_scale, **self._clipping)
            if result.applied:
                self._count(own)
            if self._core.owner is not self._owner:  # a parameter's axes lie in another order now
                self._new = set(range(len(own)))
                self._show(state, self._core)
            elif self._new and any(own[index] is not None for index in self._new):
                self._show(state, self._core)
        if self._is_sharded:
            self._shards.count_writes(grads)
        for place in sorted(rows):
            number, param = _group_of(groups, place), params[place]
            sparse.step(
                param,
                grads[place],
                state.setdefault(param, {}),
                dict(zip(GROUP_KEYS, self._settings[number], strict=True)),
                grad_scale,
            )
        if rows:
            self._note(params, state)
        self.result = result

    def load(
        self, groups: Groups, state: State, numbers: Sequence[Any], states: Mapping[Any, Mapping[str, Any]]
    ) -> None:
        """Load the states of a state dict into an empty state.

        Args:
            groups: the loaded param groups.
            state: gets the states.
            numbers: the keys of the parameters in `states`, in order.
            states: the states of the state dict, copied here.

        Raises:
            StateDictError: a state does not fit. Nothing was changed.
            HyperparameterError: a hyperparameter is out of range. Nothing was changed.
        """
        params = list(chain.from_iterable(group["params"] for group in groups))
        strangers = states.keys() - set(numbers)
        if strangers:
            raise StateDictError(f"state[{min(strangers, key=repr)!r}] belongs to no param group of the state dict")
        for number, param in zip(numbers, params, strict=True):
            if number in states:
                state[param] = dict(states[number])
        self._tie(groups, state, set())

    def copies(self, groups: Groups, state: State, name: str) -> list[torch.Tensor]:
        """Return the core's copies of the parameters: "ema" or "low_precision".

        Raises:
            HyperparameterError: the optimizer keeps none.
        """
        params = list(chain.from_iterable(group["params"] for group in groups))
        if not self._is_current(params, state):
            self._tie(groups, state, set())
        found = getattr(self._core, name) if self._core is not None else []
        return [self._shards.shown(place, to_tensor(array)) for place, array in zip(self._dense, found, strict=True)]

    def _is_current(self, params: Sequence[torch.Tensor], state: State) -> bool:
        """Return whether the core still has the parameters and the state that the program sees."""
        return (
            self._steps.tobytes() == self._shown
            and self._seen == _identities(params, state)
            and (not self._is_sharded or self._shards.are_current())
        )

    def _excluded(self, params: Sequence[torch.Tensor], grads: Sequence[Any], rows: set[int]) -> set[int]:
        """Return the places that the core does not update: of sparse gradients, and of none after a sparse one."""
        return rows | {
            place
            for place in self._sparse
            if place < len(params) and grads[place] is None and params[place] is self._params[place]
        }

    def _tie(self, groups: Groups, state: State, rows: set[int]) -> None:
        """Make a core from the groups and the state, and let the state show its arrays."""
        said = list(map(_said, groups))
        settings = [_settings(group) for group in groups]
        params = list(chain.from_iterable(group["params"] for group in groups))
        shards = Shards(params)
        shards.check(self._options, self._clipping)
        core_groups, numbers, dense, place = [], [], [], 0
        for number, group in enumerate(groups):
            own = [place + index for index in range(len(group["params"])) if place + index not in rows]
            place += len(group["params"])
            if own:
                core_groups.append(_core_group([shards.own[each] for each in own], settings[number]))
                numbers.append(number)
                dense.extend(own)
        core = Core(core_groups, **self._named()) if dense else None
        if core is not None:
            entries = {
                index: shards.entry(each, state[params[each]]) if shards else state[params[each]]
                for index, each in enumerate(dense)
                if state.get(params[each])
            }
            if entries:
                core.load_state_dict({**core.state_dict(), "state": entries})
        self._core, self._said, self._settings, self._groups = core, said, settings, numbers
        self._params, self._dense, self._sparse = params, dense, rows
        self._shards, self._is_sharded = shards, bool(shards)
        self._counts, self._steps = np.zeros(len(dense), np.int64), np.zeros(len(dense), np.float32)
        self._new = set(range(len(dense)))
        if core is not None:
            self._show(state, core)
        self._shown = self._steps.tobytes()
        self._note(params, state)

    def _note(self, params: Sequence[torch.Tensor], state: State) -> None:
        """Note which objects the core goes with."""
        self._seen = _identities(params, state)
        self._held = [state, *state.values(), *chain.from_iterable(map(dict.values, state.values()))]

    def _follow(self, groups: Groups) -> None:
        """Give the core the hyperparameters that the program has set."""
        said = list(map(_said, groups))
        if said == self._said and not self._said_by_tensors:
            return
        settings = [_settings(group) for group in groups]
        if self._core is not None:
            for number, group in zip(self._groups, self._core.param_groups, strict=True):
                for key, new, old in zip(GROUP_KEYS, settings[number], self._settings[number], strict=True):
                    if new != old:
                        self._set(group, key, new)
        self._said, self._settings = said, settings

    def _set(self, group: Any, key: str, value: object) -> None:
        """Set one of the core's hyperparameters. If it is refused, the next step makes a new core."""
        try:
            group[key] = value
        except HyperparameterError:
            self._seen = []
            raise
        if key == "amsgrad":  # the next step makes or drops an array of the state
            self._new = set(range(len(self._dense)))

    @property
    def _said_by_tensors(self) -> bool:
        """Whether a hyperparameter is a tensor, whose value may change in place."""
        return any(isinstance(value, torch.Tensor) for lr, betas, *_ in self._said for value in (lr, *betas))

    def _count(self, grads: Sequence[Any]) -> None:
        """Count an applied step of the parameters that had a gradient."""
        self._counts += [grad is not None for grad in grads]
        self._steps[:] = self._counts
        self._shown = self._steps.tobytes()

    def _show(self, state: State, core: Core) -> None:
        """Put tensors over the core's arrays into the state, for the parameters that it does not show yet."""
        self._owner = core.owner
        steps = torch.from_numpy(self._steps)
        for index, entry in core.state.items():
            if index in self._new:
                self._new.remove(index)
                self._counts[index] = self._steps[index] = entry["step"]
                place = self._dense[index]
                shown = {key: self._shards.shown(place, _shown(value)) for key, value in entry.items() if key != "step"}
                state[self._params[place]] = {"step": steps[index], **shown}
        self._shown = self._steps.tobytes()
        self._note(self._params, state)

    def _named(self) -> dict[str, Any]:
        return asdict(self._options)


def _settings(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a group's hyperparameters as plain numbers, in the order of `GROUP_KEYS`.

    Raises:
        HyperparameterError: a setting is refused.
    """
    for key, reason in _REFUSED.items():
        if group[key]:
            raise HyperparameterError(f"{key}={group[key]!r} is refused: {reason}; leave it out")
    beta1, beta2 = group["betas"]
    return (plain(group["lr"]), (plain(beta1), plain(beta2)), *map(plain, map(group.__getitem__, GROUP_KEYS[2:])))


def _core_group(params: Sequence[torch.Tensor], settings: tuple[Any, ...]) -> dict[str, Any]:
    return {"params": params, **dict(zip(GROUP_KEYS, settings, strict=True))}


def _group_of(groups: Groups, place: int) -> int:
    """Return the number of the group of the parameter at a place among all."""
    for number, group in enumerate(groups):
        if place < len(group["params"]):
            return number
        place -= len(group["params"])
    raise AssertionError("the place is of no group")


def _identities(params: Sequence[torch.Tensor], state: State) -> list[int]:
    """Return what tells whether somebody has put other parameters, entries or tensors in their places."""
    entries = state.values()
    return [*map(id, params), id(state), *map(id, entries), *map(id, chain.from_iterable(map(dict.values, entries)))]


def _shown(value: Any) -> Any:
    """Return a tensor over an array; other values, such as an order of axes, as they are."""
    return to_tensor(value) if isinstance(value, np.ndarray) else value
