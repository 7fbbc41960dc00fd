"""Adam and AdamW in optax's form: optax is the oracle, and NumPy arrays have the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import DtypeError, HyperparameterError, ShapeError

jax = pytest.importorskip("jax", reason="JAX is not installed; the parity environment has it")
optax = pytest.importorskip("optax", reason="optax is not installed; the parity environment has it")
jnp = jax.numpy

from numba_adam.jax import AdamState, adam, adamw  # noqa: E402

pytestmark = pytest.mark.parity

SCHEDULE = optax.exponential_decay(1e-2, 5, 0.5)
PAIRS = {
    "adam": (adam(1e-2), optax.adam(1e-2)),
    "betas and eps": (adam(1e-2, 0.5, 0.9, 1e-3), optax.adam(1e-2, 0.5, 0.9, 1e-3)),
    "schedule": (adam(SCHEDULE), optax.adam(SCHEDULE)),
    "adamw": (adamw(1e-2), optax.adamw(1e-2)),
    "decay": (adamw(SCHEDULE, weight_decay=0.3), optax.adamw(SCHEDULE, weight_decay=0.3)),
    "mask": (
        adamw(1e-2, weight_decay=0.3, mask={"w": True, "b": [False, True]}),
        optax.adamw(1e-2, weight_decay=0.3, mask={"w": True, "b": [False, True]}),
    ),
    "mask of the parameters": (
        adamw(1e-2, weight_decay=0.3, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        optax.adamw(1e-2, weight_decay=0.3, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    ),
    "in a chain": (
        optax.chain(optax.clip_by_global_norm(0.5), adamw(1e-2)),
        optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2)),
    ),
}


def params(size: int = 300) -> dict:
    random = np.random.default_rng(0)
    w = jnp.asarray(random.standard_normal((size, 3), dtype=np.float32))
    return {"w": w, "b": [jnp.ones(3), jnp.float32(2.0)]}


def grads_of(tree, number: int):
    return jax.tree.map(lambda p: jnp.sin(3 * p + number), tree)


def trained(optimizer, start, steps: int = 30, update=None):
    """Return the parameters after some steps, and the state."""
    update, tree, state = update or optimizer.update, start, optimizer.init(start)
    for number in range(steps):
        updates, state = update(grads_of(tree, number), state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def check_close(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", PAIRS)
def test_training_gives_optaxs_parameters(name, is_compiled):
    ours, theirs = PAIRS[name]
    compiled = jax.jit(ours.update) if is_compiled else None
    check_close(trained(ours, params(), update=compiled)[0], trained(theirs, params())[0])


def test_the_bits_are_those_of_numpy_arrays():
    start = params(20_000)
    arrays = [np.array(leaf) for leaf in jax.tree.leaves(start)]
    optimizer = na.Adam(arrays, lr=1e-2, eps_mode="algorithm1")
    tree, state, adam_ = start, adam(1e-2).init(start), adam(1e-2)
    update = jax.jit(adam_.update)
    for number in range(3):
        grads = grads_of(tree, number)
        updates, state = update(grads, state, tree)
        tree = optax.apply_updates(tree, updates)
        optimizer.step(jax.tree.leaves(grads))
    for leaf, array in zip(jax.tree.leaves(tree), arrays, strict=True):
        np.testing.assert_array_equal(leaf, array, strict=True)


def test_the_state_has_the_fields_and_values_of_optaxs():
    state = trained(adam(1e-2), params(), 4)[1]
    theirs = trained(optax.adam(1e-2), params(), 4)[1][0]
    assert isinstance(state, AdamState)
    assert state._fields == theirs._fields
    check_close(state._asdict(), theirs._asdict())


def test_an_update_changes_none_of_its_arguments():
    optimizer, tree = adamw(1e-2), params()
    state = trained(optimizer, tree, 2)[1]
    before = [np.array(leaf) for leaf in jax.tree.leaves((tree, state))]
    one = optimizer.update(grads_of(tree, 0), state, tree)
    other = optimizer.update(grads_of(tree, 0), state, tree)
    for leaf, copy in zip(jax.tree.leaves((tree, state)), before, strict=True):
        np.testing.assert_array_equal(leaf, copy)
    assert all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_whole_training_loop_may_be_compiled():
    optimizer, tree = adam(SCHEDULE), params()

    @jax.jit
    def train(tree):
        def step(carry, number):
            updates, state = optimizer.update(grads_of(carry[0], number), carry[1])
            return (optax.apply_updates(carry[0], updates), state), number

        return jax.lax.scan(step, (tree, optimizer.init(tree)), jnp.arange(10))[0][0]

    check_close(train(tree), trained(optimizer, tree, 10)[0])


def test_several_models_may_be_trained_by_vmap():
    optimizer = adam(1e-2)
    models = [jax.tree.map(lambda p, k=k: p * k, params(4)) for k in (1, 2, 3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    states = jax.vmap(optimizer.init)(stacked)
    updates, _ = jax.vmap(optimizer.update)(grads_of(stacked, 0), states)
    for index, model in enumerate(models):
        expected, _ = optimizer.update(grads_of(model, 0), optimizer.init(model))
        check_close(jax.tree.map(lambda leaf, index=index: leaf[index], updates), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_parameters_have_float32_moments_and_updates(dtype):
    tree = {"w": jnp.ones(5, dtype), "none": None}
    optimizer = adamw(0.25, weight_decay=0.5)
    updates, state = optimizer.update({"w": jnp.ones(5, dtype), "none": None}, optimizer.init(tree), tree)
    assert [updates["w"].dtype, state.mu["w"].dtype, state.nu["w"].dtype] == [jnp.float32] * 3
    np.testing.assert_allclose(updates["w"], -0.25 - 0.25 * 0.5, rtol=1e-6)
    assert optax.apply_updates(tree, updates)["w"].dtype == dtype


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adam(-1.0), "lr=-1.0"),
        (lambda: adam(1e-3, 1.0), r"betas\[0\]=1.0"),
        (lambda: adam(1e-3, eps=float("nan")), "eps=nan"),
        (lambda: adamw(1e-3, weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda: adamw(1e-3).update({"w": jnp.ones(2)}, adamw(1e-3).init({"w": jnp.ones(2)})), "needs the parameters"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(make, message):
    with pytest.raises(HyperparameterError, match=message):
        make()


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"w": jnp.ones(3)}, ShapeError, r"grads\['w'\] has shape \(3,\), expected \(2,\)"),
        ({"w": jnp.ones(2, jnp.int32)}, DtypeError, r"grads\['w'\] has dtype int32, expected an array of float32"),
        ({"w": 1.0}, DtypeError, r"grads\['w'\] has float, expected an array"),
        ({"v": jnp.ones(2)}, ShapeError, r"state\.mu is the pytree .*'w'.*expected that of grads, .*'v'"),
    ],
)
def test_gradients_that_do_not_fit_are_refused_by_name(grads, error, message):
    optimizer = adam(1e-3)
    with pytest.raises(error, match=message):
        optimizer.update(grads, optimizer.init({"w": jnp.ones(2)}))


def test_parameters_that_are_no_floating_point_arrays_are_refused():
    with pytest.raises(DtypeError, match=r"params\['n'\] has dtype int32"):
        adam(1e-3).init({"w": jnp.ones(2), "n": jnp.arange(3)})
