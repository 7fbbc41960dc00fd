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
