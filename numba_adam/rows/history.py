"""Which hyperparameters held at which step: what rows need that make up for steps they missed. Knows no kernel."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from numba_adam.errors import HyperparameterError
from numba_adam.numerics.array import Array
from numba_adam.numerics.constants import FLOORS, Settings
from numba_adam.settings.folding import settings
from numba_adam.settings.hyperparameters import Hyperparameters, step_number
from numba_adam.settings.limits import check_held

_REMEDY = (
    "give history=, a RowHistory or pairs (first_step, Hyperparameters); or bring all rows up to date with "
    "adam_catch_up_rows before you change them"
)


class Schedule(NamedTuple):
    """The settings of every step, as the kernels read them."""

    first_steps: Array  # (e,) int64, ascending: the step from which each entry holds
    settings: Array  # (e, 11) float64: `Settings`


class RowHistory:
    """The hyperparameters of every step so far, given to the exact mode with each call, which records its own.

        >>> from numba_adam.settings.hyperparameters import Hyperparameters
        >>> history = RowHistory()
        >>> history.record(1, Hyperparameters(lr=0.1))
        >>> history.record(100, Hyperparameters(lr=0.01))
        >>> [(first_step, entry.lr) for first_step, entry in history.entries]
        [(1, 0.1), (100, 0.01)]

    One history serves any number of tables that have the same hyperparameters. To keep it with a checkpoint, save its
    `entries`, and make a new one of them. Whether an entry says `amsgrad` is of no matter: the arrays say so.
    """

    def __init__(self, entries: Iterable[tuple[int, Hyperparameters]] = ()) -> None:
        """Take over entries.

        Args:
            entries: pairs (first_step, hyperparameters), ascending: each holds from its first step on, until the next.

        Raises:
            HyperparameterError: an entry is no such pair, or not behind the one before.
        """
        self._entries: list[tuple[int, Hyperparameters]] = []
        self._latest = 0  # the last step that is known of
        self._first_steps = np.zeros(4, dtype=np.int64)
        self._settings = {dtype: np.zeros((4, len(Settings._fields))) for dtype in FLOORS}
        self._not_held: dict[str, dict[int, str]] = {dtype: {} for dtype in FLOORS}  # by first step: what is wrong
        for entry in entries:
            self.record(*_pair(entry))

    @property
    def entries(self) -> tuple[tuple[int, Hyperparameters], ...]:
        """Pairs (first_step, hyperparameters): each holds from its first step on, until the next."""
        return tuple(self._entries)

    def record(self, first_step: int, hyperparameters: Hyperparameters) -> None:
        """Note that hyperparameters hold from a step on.

        Raises:
            HyperparameterError: the step is not behind those that are known of.
        """
        first_step = step_number(first_step)
        if first_step <= self._latest:
            raise HyperparameterError(
                f"first_step={first_step}: the history knows of step {self._latest} already; "
                "record changes in the order of their steps"
            )
        if not self._entries or not _same(self._entries[-1][1], hyperparameters):
            self._append(first_step, hyperparameters)
        self._latest = first_step

    def forget(self, before: int) -> None:
        """Drop what held before a step, when every row of every table is at the step before it or further."""
        first_step = step_number(before)
        kept = [entry for entry in self._entries if entry[0] > first_step]
        if len(kept) < len(self._entries):
            kept.insert(0, (first_step, self._entries[-len(kept) - 1][1]))
        latest = self._latest
        self.__init__(kept)  # type: ignore[misc]
        self._latest = max(latest, self._latest)

    def end_before(self, step: int) -> None:
        """Drop what begins at a step or behind it."""
        self._entries = [entry for entry in self._entries if entry[0] < step]
        kept = {first_step for first_step, _ in self._entries}
        for reasons in self._not_held.values():
            for first_step in reasons.keys() - kept:
                del reasons[first_step]
        self._latest = step - 1

    def check(self, step: int, hyperparameters: Hyperparameters) -> None:
        """Refuse a call whose hyperparameters are not those of its step, or leave open what held before it.

        Raises:
            HyperparameterError: they differ.
        """
        if not self._entries or _same(self._at(step), hyperparameters):
            return
        if step <= self._latest:
            raise HyperparameterError(
                f"the history says that step {step} had {_short(self._at(step))}, this call has "
                f"{_short(hyperparameters)}: give those of the step"
            )
        if step > self._latest + 1:
            raise HyperparameterError(
                f"the hyperparameters of step {step} differ from those of step {self._latest}, and the history "
                f"does not know from which step on: tell it with history.record(first_step, hyperparameters)"
            )

    def note(self, step: int, hyperparameters: Hyperparameters) -> None:
        """Note what a call that `check` let pass had. What held before the first of all is taken to be the same."""
        if not self._entries:
            self._append(1, hyperparameters)
        elif step > self._latest and not _same(self._entries[-1][1], hyperparameters):
            self._append(step, hyperparameters)
        self._latest = max(self._latest, step)

    def schedule(self, since: int, step: int, hyperparameters: Hyperparameters, dtype: str) -> Schedule:
        """Return what held from step `since` on, and at `step` what is given.

        Raises:
            HyperparameterError: the history begins later, or has a number that the dtype cannot hold.
        """
        for first_step, reason in self._not_held[dtype].items():
            if first_step < step:
                raise HyperparameterError(f"the history has, from step {first_step} on, {reason}")
        known = self._first_steps[: len(self._entries)]
        if since < step and len(known) and known[0] > since:
            raise HyperparameterError(
                f"a row has missed step {since}, and the history begins with step {known[0]}: "
                "give the hyperparameters of all steps that rows have missed"
            )
        begin, end = max(0, int(np.searchsorted(known, since, side="right")) - 1), int(np.searchsorted(known, step))
        own = np.array([settings(hyperparameters, dtype)])
        first = step if end > begin else min(since, step)
        return Schedule(np.append(known[begin:end], first), np.vstack([self._settings[dtype][begin:end], own]))

    def _at(self, step: int) -> Hyperparameters:
        """Return what holds at a step; before all entries what holds first."""
        count = int(np.searchsorted(self._first_steps[: len(self._entries)], step, side="right"))
        return self._entries[max(count - 1, 0)][1]

    def _append(self, first_step: int, hyperparameters: Hyperparameters) -> None:
        count = len(self._entries)
        self._make_room(count + 1)
        self._first_steps[count] = first_step
        for dtype, rows in self._settings.items():
            rows[count] = settings(hyperparameters, dtype)
            try:
                check_held(hyperparameters, dtype)
            except HyperparameterError as error:  # a history may serve tables of another dtype
                self._not_held[dtype][first_step] = str(error)
        self._entries.append((first_step, hyperparameters))

    def _make_room(self, count: int) -> None:
        if count > self._first_steps.size:
            self._first_steps = _longer(self._first_steps)
            self._settings = {dtype: _longer(rows) for dtype, rows in self._settings.items()}


def row_history(given: object, step: int) -> RowHistory:
    """Return the history that a call was given; of pairs, those before the call's own step.

    Raises:
        HyperparameterError: it is no history.
    """
    if isinstance(given, RowHistory):
        return given
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise HyperparameterError(
            f"history={given!r}: it must be a RowHistory, or pairs (first_step, Hyperparameters), ascending"
        )
    history = RowHistory(given)
    history.end_before(step)
    return history


class _Known(NamedTuple):
    """What the calls without a history had."""

    owner: weakref.ref[Array]
    hyperparameters: Hyperparameters | None  # None: they have changed


_known: dict[int, _Known] = {}  # by where a last_step array lies


def check_constant(last_step: Array, hyperparameters: Hyperparameters) -> None:
    """Refuse a call without a history whose hyperparameters differ from those of earlier calls with its `last_step`.

    Raises:
        HyperparameterError: they do, or earlier calls' differed.
    """
    known = _known.get(_place(last_step))
    if known is None or known.owner() is not _owner(last_step):
        return
    if known.hyperparameters is None:
        raise HyperparameterError(f"the hyperparameters have changed while rows waited: {_REMEDY}")
    if not _same(known.hyperparameters, hyperparameters):
        changed = f"from {_short(known.hyperparameters)} to {_short(hyperparameters)}"
        raise HyperparameterError(f"the hyperparameters have changed {changed} while rows waited: {_REMEDY}")


def note_call(last_step: Array, hyperparameters: Hyperparameters, *, is_constant: bool) -> None:
    """Note for `check_constant` what a call had, and whether it knew of no others."""
    place, owner = _place(last_step), _owner(last_step)
    known = _known.get(place)
    if known is not None and known.owner() is owner:
        if known.hyperparameters is None or (is_constant and _same(known.hyperparameters, hyperparameters)):
            return
        is_constant = is_constant and _same(known.hyperparameters, hyperparameters)
    _known[place] = _Known(weakref.ref(owner, lambda _: _drop(place)), hyperparameters if is_constant else None)


def forget_calls(last_step: Array) -> None:
    """Forget what calls had: no row waits any more."""
    _known.pop(_place(last_step), None)


def _drop(place: int) -> None:
    """Drop what is known of an array that is gone, unless another one lies there already."""
    known = _known.get(place)
    if known is not None and known.owner() is None:
        _known.pop(place, None)


def _place(array: Array) -> int:
    return int(array.ctypes.data)


def _owner(array: Array) -> Array:
    """Return the array at the end of a chain of views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _longer(array: Array) -> Array:
    return np.concatenate([array, np.zeros_like(array)])


def _same(one: Hyperparameters, other: Hyperparameters) -> bool:
    """Say whether two mean the same, AMSGrad apart."""
    return one is other or settings(one, "float64") == settings(other, "float64")


def _pair(entry: Any) -> tuple[int, Hyperparameters]:
    """Return an entry that is a pair; refuse anything else."""
    if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not isinstance(entry[1], Hyperparameters):
        raise HyperparameterError(f"history has the entry {entry!r}: it must be a pair (first_step, Hyperparameters)")
    return entry[0], entry[1]


def _short(hyperparameters: Hyperparameters) -> str:
    """Return hyperparameters without what messages need not say."""
    names = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "eps_mode", "maximize")
    default = Hyperparameters()
    said = [name for name in names if name == "lr" or getattr(hyperparameters, name) != getattr(default, name)]
    return "(" + ", ".join(f"{name}={getattr(hyperparameters, name)!r}" for name in said) + ")"
