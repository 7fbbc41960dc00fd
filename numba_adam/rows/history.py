"""The hyperparameters of every step: what a replay of missed steps needs. Imports no kernel."""

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


class StepSettings(NamedTuple):
    """The settings of every step, as the kernels read them."""

    first_steps: Array  # (e,) int64, ascending: the step from which each entry is valid
    settings: Array  # (e, fields of Settings) float64


class RowHistory:
    """The hyperparameters of every step so far, for the exact mode. Each call that is given a history adds its own.

        >>> from numba_adam.settings.hyperparameters import Hyperparameters
        >>> history = RowHistory()
        >>> history.record(1, Hyperparameters(lr=0.1))
        >>> history.record(100, Hyperparameters(lr=0.01))
        >>> [(first_step, entry.lr) for first_step, entry in history.entries]
        [(1, 0.1), (100, 0.01)]

    One history serves any number of tables that have the same hyperparameters. To keep it in a checkpoint, save its
    `entries`, and make a new history of them. `amsgrad` of an entry is ignored: the arrays of a call determine it.
    """

    def __init__(self, entries: Iterable[tuple[int, Hyperparameters]] = ()) -> None:
        """Record entries.

        Args:
            entries: pairs (first_step, hyperparameters), ascending: each is valid until the next one begins.

        Raises:
            HyperparameterError: an entry is not such a pair, or not after the previous one.
        """
        self._entries: list[tuple[int, Hyperparameters]] = []
        self._latest = 0  # the last step that a call or an entry had
        self._first_steps = np.zeros(4, dtype=np.int64)
        self._settings = {dtype: np.zeros((4, len(Settings._fields))) for dtype in FLOORS}
        self._not_held: dict[str, dict[int, str]] = {dtype: {} for dtype in FLOORS}  # by first step: the error message
        for entry in entries:
            self.record(*_pair(entry))

    @property
    def entries(self) -> tuple[tuple[int, Hyperparameters], ...]:
        """Pairs (first_step, hyperparameters): each is valid from its first step on, until the next one begins."""
        return tuple(self._entries)

    def record(self, first_step: int, hyperparameters: Hyperparameters) -> None:
        """Record that hyperparameters are valid from a step on.

        Raises:
            HyperparameterError: the history knows a later step already, or this step.
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
        """Drop what only steps before `before` had; every row of every table must be at step `before` - 1 or later."""
        first_step = step_number(before)
        kept = [entry for entry in self._entries if entry[0] > first_step]
        if len(kept) < len(self._entries):
            kept.insert(0, (first_step, self._entries[-len(kept) - 1][1]))
        latest = self._latest
        self.__init__(kept)  # type: ignore[misc]
        self._latest = max(latest, self._latest)

    def end_before(self, step: int) -> None:
        """Drop the entries that begin at `step` or later."""
        self._entries = [entry for entry in self._entries if entry[0] < step]
        kept = {first_step for first_step, _ in self._entries}
        for reasons in self._not_held.values():
            for first_step in reasons.keys() - kept:
                del reasons[first_step]
        self._latest = step - 1

    def check(self, step: int, hyperparameters: Hyperparameters) -> None:
        """Refuse a call whose hyperparameters differ from those of its step, or of a gap before it.

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
        """Record the hyperparameters of a call that passed `check`. Those of the first call hold before it."""
        if not self._entries:
            self._append(1, hyperparameters)
        elif step > self._latest and not _same(self._entries[-1][1], hyperparameters):
            self._append(step, hyperparameters)
        self._latest = max(self._latest, step)

    def step_settings(self, since: int, step: int, hyperparameters: Hyperparameters, dtype: str) -> StepSettings:
        """Return the settings of the steps from `since` on; those of `step` are of the given hyperparameters.

        Raises:
            HyperparameterError: the history begins later, or has a number that the dtype cannot represent.
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
        return StepSettings(np.append(known[begin:end], first), np.vstack([self._settings[dtype][begin:end], own]))

    def _at(self, step: int) -> Hyperparameters:
        """Return the hyperparameters of a step; for a step before all entries, those of the first one."""
        count = int(np.searchsorted(self._first_steps[: len(self._entries)], step, side="right"))
        return self._entries[max(count - 1, 0)][1]

    def _append(self, first_step: int, hyperparameters: Hyperparameters) -> None:
        count = len(self._entries)
        self._grow(count + 1)
        self._first_steps[count] = first_step
        for dtype, rows in self._settings.items():
            rows[count] = settings(hyperparameters, dtype)
            try:
                check_held(hyperparameters, dtype)
            except HyperparameterError as error:  # the history may serve tables of the other dtype alone
                self._not_held[dtype][first_step] = str(error)
        self._entries.append((first_step, hyperparameters))

    def _grow(self, count: int) -> None:
        if count > self._first_steps.size:
            self._first_steps = _longer(self._first_steps)
            self._settings = {dtype: _longer(rows) for dtype, rows in self._settings.items()}


def row_history(given: object, step: int) -> RowHistory:
    """Return the history that a call was given; of pairs, those that begin before the call's step.

    Raises:
        HyperparameterError: it is not a history.
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
    """The hyperparameters of the calls without a history."""

    owner: weakref.ref[Array]
    hyperparameters: Hyperparameters | None  # None: they have changed


_known: dict[int, _Known] = {}  # by the address of a last_step array


def check_constant(last_step: Array, hyperparameters: Hyperparameters) -> None:
    """Refuse a call without a history whose hyperparameters differ from those of earlier calls with its `last_step`.

    Raises:
        HyperparameterError: they do, or those of earlier calls did.
    """
    known = _known.get(_address(last_step))
    if known is None or known.owner() is not _owner(last_step):
        return
    if known.hyperparameters is None:
        raise HyperparameterError(f"the hyperparameters have changed while rows waited: {_REMEDY}")
    if not _same(known.hyperparameters, hyperparameters):
        changed = f"from {_short(known.hyperparameters)} to {_short(hyperparameters)}"
        raise HyperparameterError(f"the hyperparameters have changed {changed} while rows waited: {_REMEDY}")


def note_call(last_step: Array, hyperparameters: Hyperparameters, *, is_constant: bool) -> None:
    """Record a call's hyperparameters for `check_constant`; `is_constant` says that its history has no others."""
    address, owner = _address(last_step), _owner(last_step)
    known = _known.get(address)
    if known is not None and known.owner() is owner:
        if known.hyperparameters is None or (is_constant and _same(known.hyperparameters, hyperparameters)):
            return
        is_constant = is_constant and _same(known.hyperparameters, hyperparameters)
    _known[address] = _Known(weakref.ref(owner, lambda _: _drop(address)), hyperparameters if is_constant else None)


def forget_calls(last_step: Array) -> None:
    """Forget the calls: no row has missed a step."""
    _known.pop(_address(last_step), None)


def _drop(address: int) -> None:
    """Forget the calls of an array that was deleted, unless another array has its address already."""
    known = _known.get(address)
    if known is not None and known.owner() is None:
        _known.pop(address, None)


def _address(array: Array) -> int:
    return int(array.ctypes.data)


def _owner(array: Array) -> Array:
    """Return the array at the end of a chain of views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _longer(array: Array) -> Array:
    return np.concatenate([array, np.zeros_like(array)])


def _same(one: Hyperparameters, other: Hyperparameters) -> bool:
    """Say whether two have the same effect, apart from `amsgrad`."""
    return one is other or settings(one, "float64") == settings(other, "float64")


def _pair(entry: Any) -> tuple[int, Hyperparameters]:
    """Return an entry of a history; refuse what is not a pair."""
    if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not isinstance(entry[1], Hyperparameters):
        raise HyperparameterError(f"history has the entry {entry!r}: it must be a pair (first_step, Hyperparameters)")
    return entry[0], entry[1]


def _short(hyperparameters: Hyperparameters) -> str:
    """Return hyperparameters for a message: the learning rate, and what differs from the defaults."""
    names = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "eps_mode", "maximize")
    default = Hyperparameters()
    said = [name for name in names if name == "lr" or getattr(hyperparameters, name) != getattr(default, name)]
    return "(" + ", ".join(f"{name}={getattr(hyperparameters, name)!r}" for name in said) + ")"
