"""The kinds of array that a program may have on a GPU: one way there, and one way back, for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.device import Array, on_gpu, synchronize, to_host
from numba_adam.cuda import seam


class Lender(NamedTuple):
    """A kind of array."""

    name: str
    lend: Callable[[Array], Any]  # copies to the GPU; uint16 means the bits of bfloat16
    back: Callable[[Any], Array]  # copies to the host, after all work; bfloat16 as its bits


OURS = Lender("our CudaArray", on_gpu, to_host)
HOST = Lender("NumPy", lambda values: values.copy(), lambda array: array)


def installed(name: str) -> Any:
    """Return a framework that is installed and sees the GPU, otherwise None."""
    if seam.SIMULATED:
        return None
    try:
        module: Any = import_module(name)
        sees = module.cuda.is_available()
    except Exception:  # whatever a framework raises when it cannot be imported or has no driver
        return None
    return module if sees else None


def lenders() -> list[Lender]:
    """Return all that are installed here."""
    found = [OURS]
    if (torch := installed("torch")) is not None:
        found.append(Lender("PyTorch", partial(_tensor, torch), partial(_from_tensor, torch)))
    if (cupy := installed("cupy")) is not None:
        found.append(Lender("CuPy", cupy.asarray, _from_cupy))
    if not seam.SIMULATED:
        found.append(Lender("Numba", seam.cuda.to_device, lambda array: array.copy_to_host()))
    return found


def _tensor(torch: Any, values: Array) -> Any:
    tensor = torch.from_numpy(values.copy()).cuda()
    return tensor.view(torch.bfloat16) if values.dtype == np.uint16 else tensor


def _from_tensor(torch: Any, tensor: Any) -> Array:
    values = tensor.detach()
    if values.dtype == torch.bfloat16:
        values = values.view(torch.uint16)
    found: Array = values.cpu().numpy()
    return found


def _from_cupy(array: Any) -> Array:
    synchronize()
    found: Array = array.get()
    return found
