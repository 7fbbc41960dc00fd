"""Adam and AdamW for PyTorch programs: `from numba_adam.torch import AdamW` in place of torch.optim's.

They are `torch.optim.Optimizer`s. `optimizers` has the two classes, `tie` connects PyTorch's state to the optimizer of
this library that makes the steps, and `sparse` makes the steps of sparse gradients.
"""

from numba_adam.torch.optimizers import Adam, AdamW

__all__ = ["Adam", "AdamW"]
