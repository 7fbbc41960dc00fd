"""The parameters of one dtype within an optimizer, their state, and their step. Knows no framework but NumPy.

An optimizer has one part, unless it mixes float32 and float64: one kernel launch serves one dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.arrays import Array
from numba_adam.hyperparameters import Hyperparameters
from numba_adam.param_groups import ParamGroup
from numba_adam.table import UpdateTable


class Member(NamedTuple):
    """One parameter."""

    place: int  # its place among all parameters of the optimizer
    label: str  # what messages call it: "['w']" or "[3]"
    param: Array  # a view of its memory
    group: ParamGroup


class Part:
    """The parameters of one dtype."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Check that the parameters can be updated in place together. Their state is made when it is first needed."""
        self.members = list(members)
        self.places = [member.place for member in self.members]
        self.dtype: str = self.members[0].param.dtype.name
        self.steps = np.zeros(len(self.members), dtype=np.int64)
        self.exp_avgs: list[Array] = []
        self.exp_avg_sqs: list[Array] = []
        self.max_exp_avg_sqs: list[Array | None] = [None] * len(self.members)
        self._runs = _runs_of_groups(self.members)
        self._table: UpdateTable | None = None
        self._current: list[Hyperparameters] = []  # what the table was told last

    def prepare(self, grads: Sequence[Any], grad_scale: float) -> int:
        """Check the gradients, make what state is missing, and plan the step; return what `launch` takes."""
        current = [run.group.hyperparameters for run in self._runs]
        if self._table is None or any(a.amsgrad != b.amsgrad for a, b in zip(current, self._current, strict=True)):
            self._table = self._make_table(current)
        elif current != self._current:
            for index, hyperparameters in enumerate(current):
                self._table.set_hyperparameters(index, hyperparameters)
        self._current = current
        return self._table.prepare(grads, self.steps, grad_scale)

    def launch(self, count: int) -> None:
        """Make the step that `prepare` planned."""
        assert self._table is not None
        self._table.launch(count, self.steps)

    def state_of(self, position: int) -> dict[str, Any]:
        """Return one parameter's state, with PyTorch's keys; empty before its first step."""
        if not self.steps[position]:
            return {}
        state: dict[str, Any] = {
            "step": int(self.steps[position]),
            "exp_avg": self.exp_avgs[position],
            "exp_avg_sq": self.exp_avg_sqs[position],
        }
        if self.max_exp_avg_sqs[position] is not None:
            state["max_exp_avg_sq"] = self.max_exp_avg_sqs[position]
        return state

    def set_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace every parameter's state; the arrays are copied. An empty dict is the state before the first step."""

        def copies(key: str) -> list[Array]:
            return [
                state[key].copy() if key in state else np.zeros(member.param.shape, member.param.dtype)
                for state, member in zip(states, self.members, strict=True)
            ]

        self.steps = np.array([state.get("step", 0) for state in states], dtype=np.int64)
        self.exp_avgs, self.exp_avg_sqs = copies("exp_avg"), copies("exp_avg_sq")
        self.max_exp_avg_sqs = [
            state["max_exp_avg_sq"].copy() if "max_exp_avg_sq" in state else None for state in states
        ]
        self._table = None

    def _make_table(self, hyperparameters: Sequence[Hyperparameters]) -> UpdateTable:
        """Make the arrays that are missing, and the table over all."""
        params = [member.param for member in self.members]
        if not self.exp_avgs:
            self.exp_avgs = [np.zeros(param.shape, param.dtype) for param in params]
            self.exp_avg_sqs = [np.zeros(param.shape, param.dtype) for param in params]
        for position, member in enumerate(self.members):
            if member.group.hyperparameters.amsgrad and self.max_exp_avg_sqs[position] is None:
                self.max_exp_avg_sqs[position] = np.zeros(member.param.shape, member.param.dtype)
        used = [
            largest if member.group.hyperparameters.amsgrad else None
            for member, largest in zip(self.members, self.max_exp_avg_sqs, strict=True)
        ]
        return UpdateTable(
            params,
            self.exp_avgs,
            self.exp_avg_sqs,
            used,
            hyperparameters=hyperparameters,
            groups=[index for index, run in enumerate(self._runs) for _ in range(run.begin, run.end)],
            names=[member.label for member in self.members],
        )


class _Run(NamedTuple):
    """Neighbouring members of one group."""

    group: ParamGroup
    begin: int
    end: int


def _runs_of_groups(members: Sequence[Member]) -> list[_Run]:
    starts = [k for k, member in enumerate(members) if k == 0 or member.group is not members[k - 1].group]
    return [
        _Run(members[begin].group, begin, end) for begin, end in zip(starts, [*starts[1:], len(members)], strict=True)
    ]
