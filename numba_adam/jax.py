"""Adam and AdamW for JAX programs: `from numba_adam.jax import adamw` in place of optax's.

    optimizer = adamw(1e-3)
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)

They have optax's two functions, so `optax.chain` and everything else that takes an optimizer of optax takes them. The
functions are pure: JAX arrays cannot change, so each update returns a new state. Within `jit`, a callback makes the
update in this host's memory. Derivatives do not pass through it.

May import JAX, NumPy and the public face. Does not import optax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from numba_adam.errors import DtypeError, HyperparameterError, ShapeError
from numba_adam.functional import adam_update
from numba_adam.numerics.array import Array
from numba_adam.numerics.formats import format_of
from numba_adam.settings.hyperparameters import Hyperparameters

__all__ = ["AdamState", "Transformation", "adam", "adamw"]

Rate = float | Callable[[Any], Any]
Mask = Any  # a pytree of booleans, a function of the parameters that returns one, or None


class AdamState(NamedTuple):
    """The state of Adam: a pytree with the fields of optax.ScaleByAdamState."""

    count: Any
    """The number of updates so far, int32."""

    mu: Any
    """The first moments, a pytree like the parameters. float64 for float64 parameters, otherwise float32."""

    nu: Any
    """The second moments, as `mu`."""


class Transformation(NamedTuple):
    """An optimizer in optax's form."""

    init: Callable[[Any], AdamState]
    """Takes the parameters and returns the first state."""

    update: Callable[..., tuple[Any, AdamState]]
    """Takes gradients, state and parameters. Returns what `optax.apply_updates` adds, and the next state."""


class _Settings(NamedTuple):
    """What stays the same in all updates."""

    learning_rate: Rate
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.0
    mask: Mask = None


def adam(learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Transformation:
    """Return Adam in optax's form, with optax's defaults; eps is added as in Kingma and Ba's Algorithm 1.

    Args:
        learning_rate: a number, or a schedule: a function of the number of updates so far.
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: added to the bias-corrected root of the second moment.

    Raises:
        HyperparameterError: a number is out of range.
    """
    return _transformation(_Settings(learning_rate, (b1, b2), eps))


def adamw(
    learning_rate: Rate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float = 1e-4,
    mask: Mask = None,
) -> Transformation:
    """Return AdamW in optax's form, with optax's defaults. Its `update` needs the parameters.

    Args:
        learning_rate: as for `adam`.
        b1: as for `adam`.
        b2: as for `adam`.
        eps: as for `adam`.
        weight_decay: each update subtracts the learning rate times this times the parameter.
        mask: which parameters decay: a pytree of booleans like the parameters, or a function of them that returns one.
            None: all.

    Raises:
        HyperparameterError: a number is out of range.
    """
    return _transformation(_Settings(learning_rate, (b1, b2), eps, weight_decay, mask))


def _transformation(settings: _Settings) -> Transformation:
    rate = 0.0 if callable(settings.learning_rate) else settings.learning_rate
    Hyperparameters(rate, settings.betas, settings.eps, settings.weight_decay)  # refuses what is out of range

    def update(grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        """Return what is to be added to the parameters, and the next state."""
        return _updated(settings, grads, state, params)

    return Transformation(_initial, update)


def _initial(params: Any) -> AdamState:
    """Return a state of zeros.

    Raises:
        DtypeError: a parameter is not a floating-point array.
    """

    def zeros(path: Any, leaf: Any) -> Any:
        return jnp.zeros(leaf.shape, _wide(f"params{jax.tree_util.keystr(path)}", leaf))

    mu, nu = (jax.tree_util.tree_map_with_path(zeros, params) for _ in range(2))
    return AdamState(jnp.zeros((), jnp.int32), mu, nu)


def _wide(name: str, leaf: Any) -> np.dtype[Any]:
    """Return the dtype of the moments and the updates of an array; refuse one that is not of floating point."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or format_of(np.dtype(dtype)) is None:
        given = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
        raise DtypeError(f"{name} has {given}, expected an array of float32, float64, bfloat16 or float16; convert it")
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _updated(settings: _Settings, grads: Any, state: AdamState, params: Any) -> tuple[Any, AdamState]:
    """Make one update, in a callback if a value is traced.

    Raises:
        HyperparameterError: weight decay needs the parameters, and they are not given.
        ShapeError: a pytree differs from that of the gradients, or a shape differs.
    """
    leaves, tree = jax.tree.flatten(grads)
    first, second = _leaves_like(tree, state.mu, "state.mu"), _leaves_like(tree, state.nu, "state.nu")
    _check_shapes(grads, first)
    decays = _decays(settings, tree, params)
    decaying = [leaf for leaf, decay in zip(jax.tree.leaves(params), decays, strict=False) if decay]
    rate = settings.learning_rate
    rates = [rate(state.count)] if callable(rate) else []

    def run(*arrays: Any) -> list[Array]:
        return _run(settings, decays, [np.asarray(each) for each in arrays])

    operands = [*leaves, *first, *second, *decaying, state.count, *rates]
    if any(isinstance(each, jax.core.Tracer) for each in operands):
        shapes = [jax.ShapeDtypeStruct(moment.shape, moment.dtype) for moment in (*first, *first, *second)]
        results = jax.pure_callback(run, shapes, *operands, vmap_method="sequential")
    else:
        results = [jnp.asarray(each) for each in run(*operands)]
    size = len(leaves)
    updates, mu, nu = (jax.tree.unflatten(tree, results[size * part : size * (part + 1)]) for part in range(3))
    return updates, AdamState(state.count + 1, mu, nu)


def _leaves_like(tree: Any, other: Any, name: str) -> list[Any]:
    """Return the leaves of a pytree that must have the structure of the gradients."""
    leaves: list[Any]
    leaves, structure = jax.tree.flatten(other)
    if structure != tree:
        raise ShapeError(f"{name} is the pytree {structure}, expected that of grads, {tree}")
    return leaves


def _check_shapes(grads: Any, moments: Sequence[Any]) -> None:
    """Refuse gradients whose shape or dtype does not fit. The moments have the parameters' shapes."""
    for (path, grad), moment in zip(jax.tree_util.tree_leaves_with_path(grads), moments, strict=True):
        name = f"grads{jax.tree_util.keystr(path)}"
        _wide(name, grad)
        if grad.shape != moment.shape:
            raise ShapeError(f"{name} has shape {grad.shape}, expected {moment.shape} as its parameter")


def _decays(settings: _Settings, tree: Any, params: Any) -> list[bool]:
    """Return which parameters decay."""
    if not settings.weight_decay:
        return [False] * tree.num_leaves
    if params is None:
        raise HyperparameterError(
            f"weight_decay={settings.weight_decay!r} needs the parameters: call update(grads, state, params)"
        )
    _leaves_like(tree, params, "params")
    mask = settings.mask(params) if callable(settings.mask) else settings.mask
    flags = [True] * tree.num_leaves if mask is None else _leaves_like(tree, mask, "mask")
    return [bool(flag) for flag in flags]


def _run(settings: _Settings, decays: Sequence[bool], arrays: Sequence[Array]) -> list[Array]:
    """Make the update of arrays in this host's memory. Returns updates, first moments, second moments."""
    size = len(decays)
    grads, (first, second) = arrays[:size], ([each.copy() for each in arrays[k * size :][:size]] for k in (1, 2))
    end = 3 * size + sum(decays)
    decaying, (count, *rates) = iter(arrays[3 * size : end]), arrays[end:]
    rate = float(rates[0] if rates else cast(float, settings.learning_rate))
    updates = [np.zeros_like(each) for each in first]
    for update, grad, exp_avg, exp_avg_sq, decay in zip(updates, grads, first, second, decays, strict=True):
        adam_update(
            update,
            grad,
            exp_avg,
            exp_avg_sq,
            int(count) + 1,
            lr=rate,
            betas=settings.betas,
            eps=settings.eps,
            eps_mode="algorithm1",
        )
        if decay:
            update -= update.dtype.type(rate * settings.weight_decay) * next(decaying).astype(update.dtype)
    return [*updates, *first, *second]
