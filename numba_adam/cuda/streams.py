"""The caller's current stream. Reads frameworks that are already imported; imports none."""

from __future__ import annotations

import sys
from typing import Any

LEGACY = 1  # CUDA's number for the default stream, which waits for all others


def current(array: Any, device: int, said: int | None) -> int:
    """Return the handle of the stream on which to queue work on an array.

    Args:
        array: the array, of any framework.
        device: its GPU.
        said: the stream in its `__cuda_array_interface__`, if that is the exporter's current one; None: not given.
    """
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if torch is not None and tensor is not None and isinstance(array, tensor):
        return int(torch.cuda.current_stream(device).cuda_stream) or LEGACY
    return said or LEGACY
