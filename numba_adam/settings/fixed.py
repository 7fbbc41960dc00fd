"""What is fixed after the construction of an optimizer: an attempt to change it raises an error with advice.

An assignment that no code reads is worse than an error: after `opt.lr = 0.1` training would go on with the old rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NoReturn

from numba_adam.errors import ImmutableError
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import Options

HYPERPARAMETER_NAMES = tuple(field.name for field in fields(Hyperparameters))
OPTION_NAMES = tuple(field.name for field in fields(Options))
STEP_NAMES = ("grad_scale", "loss_scale", "max_grad_norm", "clip_value", "zero_grad", "accumulation")

_ADVICE = {
    **dict.fromkeys(OPTION_NAMES, "is fixed when the optimizer is made: make another one, and load_state_dict"),
    **dict.fromkeys(STEP_NAMES, "belongs to one step: give it to step()"),
    "params": "are fixed when the optimizer is made: write into the arrays, or make another optimizer",
    "param_groups": "cannot be replaced: set their values, as in opt.param_groups[0]['lr'] = 0.1",
    "defaults": "are not kept: set the values of each group, as in opt.param_groups[0]['lr'] = 0.1",
    "state": "cannot be replaced: write into its arrays, or load_state_dict",
    "ema": "cannot be replaced: write into its arrays",
    "low_precision": "cannot be replaced: write into its arrays",
}


class FixedList(list[Any]):
    """A read-only list. Its copies are plain lists."""

    __slots__ = ("_advice",)

    def __init__(self, items: Iterable[Any], advice: str) -> None:
        """Hold items; `advice` is the message of the error that an attempt to change them raises."""
        super().__init__(items)
        self._advice = advice

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ImmutableError(self._advice)

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce_ex__(self, protocol: object) -> tuple[type[list[Any]], tuple[list[Any]]]:
        return list, (list(self),)


class FixedDict(dict[Any, Any]):
    """A read-only dict. Its copies are plain dicts."""

    __slots__ = ("_advice",)

    def __init__(self, items: Mapping[Any, Any], advice: str) -> None:
        """Hold items; `advice` is the message of the error that an attempt to change them raises."""
        super().__init__(items)
        self._advice = advice

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise ImmutableError(self._advice)

    pop = popitem = clear = update = setdefault = __setitem__ = __delitem__ = __ior__ = _refuse

    def __reduce_ex__(self, protocol: object) -> tuple[type[dict[Any, Any]], tuple[dict[Any, Any]]]:
        return dict, (dict(self),)


def check_attribute(kind: type, name: str, *, is_extended: bool) -> None:
    """Refuse an attribute of an optimizer that no code would read.

    Args:
        kind: the class of the optimizer.
        name: the name of the attribute.
        is_extended: whether the class is a user's subclass of ours, which may have more attributes.

    Raises:
        ImmutableError: no code would read it; the message says what to do instead.
    """
    if name in HYPERPARAMETER_NAMES:
        raise ImmutableError(
            f"opt.{name} cannot be set: each param group has its own; opt.param_groups[0][{name!r}] = ... sets that of "
            "the first"
        )
    if name in _ADVICE:
        raise ImmutableError(f"opt.{name} cannot be set, for the {name} {_ADVICE[name]}")
    if not is_extended and not hasattr(kind, name):
        raise ImmutableError(
            f"{kind.__name__} has no attribute {name!r}; these can be set in param_groups: "
            f"{', '.join(HYPERPARAMETER_NAMES)}"
        )
