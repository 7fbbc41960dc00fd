"""Arrays of any framework, borrowed as NumPy views: the only place that knows frameworks by name.

    view = borrow(array, name="w", writable=True)     the same memory, or an error that says what to do
    count_writes([array])                             after a write to it: autograd hears of it
    to_torch_state_dict(opt.state_dict())             what torch.optim.Adam.load_state_dict takes
    to_tensors(opt.state_dict())                      what torch.save writes and torch.load reads
    to_flat_arrays(opt.state_dict())                  what numpy.savez writes; from_flat_arrays makes a state dict of it

Nothing here imports a framework: an array of one can only exist where its user imported it, so looking at what is
loaded already is enough. May import NumPy and `numba_adam.errors`.
"""

from numba_adam.interop.dispatch import borrow
from numba_adam.interop.flat import from_flat_arrays, to_flat_arrays
from numba_adam.interop.torch import to_tensors, to_torch_state_dict
from numba_adam.interop.writes import count_writes

__all__ = ["borrow", "count_writes", "from_flat_arrays", "to_flat_arrays", "to_tensors", "to_torch_state_dict"]
