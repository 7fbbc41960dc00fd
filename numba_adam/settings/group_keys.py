"""The keys that a param group may have besides its hyperparameters: notes of the user, unless they look misspelled.

Notes such as "name" or "initial_lr" are kept, saved and restored. A key that could be meant as a hyperparameter is
refused, because no code would read it.
"""

from __future__ import annotations

from difflib import get_close_matches

from numba_adam.errors import HyperparameterError
from numba_adam.settings.fixed import HYPERPARAMETER_NAMES, OPTION_NAMES, STEP_NAMES

FIXED = ("params", "param_names")
PYTORCHS = ("foreach", "capturable", "differentiable", "fused")  # options of PyTorch that do not change the result

_MEANT = {
    **dict.fromkeys(("learning_rate", "learningrate", "alpha", "step_size"), "lr"),
    **dict.fromkeys(("beta", "beta1", "beta2", "beta_1", "beta_2", "b1", "b2", "momentum"), "betas"),
    "epsilon": "eps",
    **dict.fromkeys(("decay", "wd", "l2", "weight_decay_rate"), "weight_decay"),
    **dict.fromkeys(("decoupled", "decouple"), "decoupled_weight_decay"),
}
_ANOTHERS = ("momentum_decay", "nesterov", "dampening", "rho", "centered", "lr_decay", "lambd", "etas", "beta2_decay")
_LIKENESS = 0.85  # similarity of two words from which on one is taken for a misspelling of the other


def check_note(key: object) -> None:
    """Refuse a key that cannot be a note of the user.

    Raises:
        HyperparameterError: it cannot; the message suggests a similar key.
    """
    if not isinstance(key, str) or not key:
        raise HyperparameterError(f"{key!r} is not a hyperparameter, and keys of param groups must be words")
    if key in FIXED:
        raise HyperparameterError(
            f"{key!r} cannot be changed: make another optimizer; these can be set: {', '.join(HYPERPARAMETER_NAMES)}"
        )
    if key in OPTION_NAMES:
        raise HyperparameterError(f"{key!r} holds for all groups: give it to the optimizer when you make it")
    if key in STEP_NAMES:
        raise HyperparameterError(f"{key!r} holds for one step, in all groups: give it to step()")
    if key in PYTORCHS:
        raise HyperparameterError(f"{key!r} says how PyTorch computes, and means nothing here: leave it out")
    if key in _ANOTHERS:
        raise HyperparameterError(f"{key!r} is a hyperparameter of other optimizers, unknown to Adam: leave it out")
    word = key.lower().replace("-", "_").replace(" ", "_")
    meant = _MEANT.get(word) or next(iter(get_close_matches(word, [*HYPERPARAMETER_NAMES, *FIXED], 1, _LIKENESS)), None)
    if meant is not None:
        raise HyperparameterError(
            f"{key!r} is not a hyperparameter: did you mean {meant!r}? (A note of your own needs a name less like it.)"
        )


def is_switch_left_off(key: object, value: object) -> bool:
    """Say whether an entry is an unused option of PyTorch: every param group of PyTorch has some."""
    return key in PYTORCHS and (value is None or value is False)
