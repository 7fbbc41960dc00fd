"""The stream that the caller works on. Looks at what is loaded already; imports no framework."""

from __future__ import annotations

import sys
from typing import Any

LEGACY = 1  # CUDA's number for the stream that waits for all others: what a program uses that says nothing


def current(array: Any, device: int, said: int | None) -> int:
    """Return the handle of the stream on which work on an array is to be queued.

    Args:
        array: the array, of whatever framework.
        device: its GPU.
        said: the stream in its `__cuda_array_interface__`, where that is the exporter's current one; None: not said.
    """
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if torch is not None and tensor is not None and isinstance(array, tensor):
        return int(torch.cuda.current_stream(device).cuda_stream) or LEGACY
    return said or LEGACY
