"""JAX arrays are borrowed without a copy, for reading only."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_it_is_never_borrowed_for_writing():
    with pytest.raises(ReadOnlyError, match=r"w \(JAX array\) is read-only.*np\.array\(x\)"):
        borrow(jnp.ones(3), name="w", writable=True)


def test_other_dtypes_are_refused_by_name():
    with pytest.raises(DtypeError, match=r"bfloat16.*x\.astype\(jnp\.float32\)"):
        borrow(jnp.ones(3, jnp.bfloat16), name="grad")


def test_a_tracer_is_refused_with_the_reason():
    with pytest.raises(UnsupportedArrayError, match=r"tracer.*borrow outside of jit"):
        jax.jit(lambda x: borrow(x, name="grad").sum())(jnp.ones(3))


def test_a_deleted_array_is_refused():
    array = jnp.ones(3)
    array.delete()
    with pytest.raises(UnsupportedArrayError, match="was deleted or donated"):
        borrow(array, name="grad")
