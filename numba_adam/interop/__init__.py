"""Borrows arrays of any framework as NumPy views. Only this folder contains code for specific frameworks.

    view = borrow(array, name="w", writable=True)     a view of the same memory, or an error that says what to do
    count_writes([array])                             after a write to the array: tells its framework, for autograd
    gradient_of(parameter)                            its gradient, if it carries one, as PyTorch's do
    drop_gradient(parameter)                          sets that to None
    maker_of(array)                                   makes arrays of its framework of NumPy arrays
    to_torch_state_dict(opt.state_dict())             for torch.optim.Adam.load_state_dict
    to_tensors(opt.state_dict())                      for torch.save and torch.load
    to_flat_arrays(opt.state_dict())                  for numpy.savez; from_flat_arrays is the inverse

`borrow` imports no framework. A framework's array exists only if the program imported the framework, so `sys.modules`
has it. May import NumPy, `numba_adam.errors` and `numba_adam.numerics`.
"""

from numba_adam.interop.dispatch import borrow, drop_gradient, gradient_of, maker_of
from numba_adam.interop.flat import from_flat_arrays, to_flat_arrays
from numba_adam.interop.torch import to_tensors, to_torch_state_dict
from numba_adam.interop.writes import count_writes

__all__ = [
    "borrow",
    "count_writes",
    "drop_gradient",
    "from_flat_arrays",
    "gradient_of",
    "maker_of",
    "to_flat_arrays",
    "to_tensors",
    "to_torch_state_dict",
]
