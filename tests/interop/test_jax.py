"""JAX arrays are borrowed without a copy, for reading only."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import DtypeError, ReadOnlyError, UnsupportedArrayError
from numba_adam.interop import borrow

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(jax is None, reason="JAX is not installed; the parity environment has it"),
]


def test_an_array_is_borrowed_without_a_copy():
    array = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
    view = borrow(array, name="grad")
    assert type(view) is np.ndarray
    assert view.tolist() == array.tolist()
    assert view.ctypes.data == array.unsafe_buffer_pointer()


def test_borrowing_for_writing_is_refused():
    with pytest.raises(ReadOnlyError, match=r"w \(JAX array\) is read-only.*np\.array\(x\)"):
        borrow(jnp.ones(3), name="w", writable=True)


def test_other_dtypes_are_refused_by_name():
    with pytest.raises(DtypeError, match=r"bfloat16.*x\.astype\(jnp\.float32\)"):
        borrow(jnp.ones(3, jnp.bfloat16), name="grad")


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_16_bit_gradients_keep_their_values(name):
    values = np.random.default_rng(1).normal(size=1_300).astype(np.float32)
    grad = jnp.asarray(values).astype(name)
    assert borrow(grad, name="grad", narrow=True).dtype == grad.dtype
    one, other = np.zeros(1_300, np.float32), np.zeros(1_300, np.float32)
    na.Adam([one]).step([grad])
    na.Adam([other]).step([np.asarray(grad.astype(jnp.float32))])
    assert one.tobytes() == other.tobytes() != np.zeros(1_300, np.float32).tobytes()


def test_a_gradient_cannot_be_set_to_zero():
    w = np.ones(3, np.float32)
    optimizer = na.Adam([w])
    with pytest.raises(ReadOnlyError, match=r"grads\[0\] \(JAX array\)"):
        optimizer.step([jnp.ones(3)], zero_grad=True)
    assert (optimizer.state, w.tolist()) == ({}, [1, 1, 1])


def test_a_tracer_is_refused_with_a_reason():
    with pytest.raises(UnsupportedArrayError, match=r"tracer.*borrow outside of jit"):
        jax.jit(lambda x: borrow(x, name="grad").sum())(jnp.ones(3))


def test_a_deleted_array_is_refused():
    array = jnp.ones(3)
    array.delete()
    with pytest.raises(UnsupportedArrayError, match="was deleted or donated"):
        borrow(array, name="grad")


def test_gradients_update_some_rows_of_a_table():
    table, moments = np.ones((4, 2), np.float32), np.zeros((2, 4, 2), np.float32)
    na.adam_update_rows(table, jnp.array([3, 1]), jnp.array([[1.0, -1.0], [2.0, 0.0]]), *moments, 1, lr=0.25)
    np.testing.assert_allclose(table, [[1, 1], [0.75, 1], [1, 1], [0.75, 1.25]], rtol=1e-6)


@pytest.mark.parametrize("options", [{"state_dtype": "8bit"}, {"state_dtype": "bfloat16"}, {"ema_decay": 0.5}], ids=str)
def test_steps_with_gradients_from_jax_have_numpys_bits(options):
    """Unscaled and clipped, with state in any format."""
    one, other = np.ones(1000, np.float32), np.ones(1000, np.float32)
    first, second = na.Adam([one], **options), na.Adam([other], **options)
    for seed in range(3):
        grad = np.random.default_rng(seed).normal(size=1000).astype(np.float32)
        result = first.step([jnp.asarray(grad)], loss_scale=8.0, max_grad_norm=0.5)
        expected = second.step([grad], loss_scale=8.0, max_grad_norm=0.5)
        assert result.grad_norm == expected.grad_norm > 0.5
    assert one.tobytes() == other.tobytes() != np.ones(1000, np.float32).tobytes()
