"""Adam and AdamW for PyTorch programs: `from numba_adam.torch import AdamW` in place of torch.optim's.

They are `torch.optim.Optimizer`s. CPUOffloadAdam keeps the state of parameters on any device in this host's memory.

optimizers     Adam and AdamW
tie            connects PyTorch's state to the optimizer of this library that makes the steps
sparse         the steps of sparse gradients
shards         parameters that are divided among processes (FSDP2, tensor parallel layers)
offload        CPUOffloadAdam
offload_steps  its steps, on copies of the parameters
host_copies    these copies, and what moves between devices and this host
scaler         GradScaler, whose check is part of the steps
backward       updates during the backward pass
"""

from numba_adam.torch.offload import CPUOffloadAdam
from numba_adam.torch.optimizers import Adam, AdamW
from numba_adam.torch.scaler import GradScaler

__all__ = ["Adam", "AdamW", "CPUOffloadAdam", "GradScaler"]
