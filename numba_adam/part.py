"""The parameters of one dtype within an optimizer, their state, and their step. Knows no framework but NumPy.

An optimizer has one part, unless it mixes float32 and float64: one kernel launch serves one dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_adam.arrays import Array
from numba_adam.folding import Constants, fold
from numba_adam.kernels.gather import Gathered
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
        self.dtype: str = self.members[0].param.dtype.name
        self.steps = np.zeros(len(self.members), dtype=np.int64)
        self.exp_avgs: list[Array] = []
        self.exp_avg_sqs: list[Array] = []
        self.max_exp_avg_sqs: list[Array | None] = [None] * len(self.members)
        self._runs = _runs_of_groups(self.members)
        self._which_run = np.repeat(np.arange(len(self._runs)), [run.end - run.begin for run in self._runs])
        self._uniform = True  # whether all parameters are at the same step
        self._table: UpdateTable | None = None
        self._amsgrad: tuple[bool, ...] = ()

    def prepare(self, grads: Sequence[Any]) -> Gathered:
        """Return where the gradients lie, after checking them; make what state is missing."""
        amsgrad = tuple(run.group.hyperparameters.amsgrad for run in self._runs)
        if self._table is None or amsgrad != self._amsgrad:
            self._make_table()
            self._amsgrad = amsgrad
        assert self._table is not None
        return self._table.gather(grads)

    def step(self, grads: Gathered, grad_scale: float) -> None:
        """Make one step with what `prepare` returned."""
        steps = self.steps + (grads.addresses != 0) if grads.absent else self.steps + 1
        uniform = self._uniform and not grads.absent
        constants: list[Constants] = []
        which = self._which_run if uniform else np.empty_like(steps)
        for run in self._runs:
            distinct = [int(steps[run.begin])]
            if not uniform:
                values, inverse = np.unique(steps[run.begin : run.end], return_inverse=True)
                distinct, which[run.begin : run.end] = values.tolist(), inverse + len(constants)
            hyperparameters = run.group.hyperparameters
            constants += [fold(hyperparameters, max(1, step), self.dtype, grad_scale) for step in distinct]
        assert self._table is not None
        self._table.launch(grads, constants, which)
        self.steps, self._uniform = steps, uniform

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
                state[key].copy() if key in state else np.zeros_like(member.param)
                for state, member in zip(states, self.members, strict=True)
            ]

        self.steps = np.array([state.get("step", 0) for state in states], dtype=np.int64)
        self._uniform = bool((self.steps == self.steps[0]).all())
        self.exp_avgs, self.exp_avg_sqs = copies("exp_avg"), copies("exp_avg_sq")
        self.max_exp_avg_sqs = [
            state["max_exp_avg_sq"].copy() if "max_exp_avg_sq" in state else None for state in states
        ]
        self._table = None

    def _make_table(self) -> None:
        """Make the arrays that are missing, and the table over all."""
        params = [member.param for member in self.members]
        if not self.exp_avgs:
            self.exp_avgs = [np.zeros_like(param, order="C") for param in params]
            self.exp_avg_sqs = [np.zeros_like(param, order="C") for param in params]
        for position, member in enumerate(self.members):
            if member.group.hyperparameters.amsgrad and self.max_exp_avg_sqs[position] is None:
                self.max_exp_avg_sqs[position] = np.zeros_like(member.param)
        used = [
            largest if member.group.hyperparameters.amsgrad else None
            for member, largest in zip(self.members, self.max_exp_avg_sqs, strict=True)
        ]
        labels = [member.label for member in self.members]
        self._table = UpdateTable(params, self.exp_avgs, self.exp_avg_sqs, used, labels)


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
