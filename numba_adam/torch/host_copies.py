"""Copies of parameters in this host's memory: gradients come from any device, and updated parameters go back.

On a CUDA device both run on streams of their own, from and into pinned memory, while the program goes on. On the CPU a
gradient is used where it is. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from numba_adam.errors import DtypeError, LayoutError, ShapeError, UnsupportedArrayError
from numba_adam.interop.arrays import in_memory
from numba_adam.torch.shards import is_sharded

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Fetched(NamedTuple):
    """A gradient on its way to this host."""

    grad: torch.Tensor
    arrived: Any = None  # a CUDA event; None: it is here
    is_free: Any = None  # a CUDA event after which no kernel of the backward pass reads the parameter; None: it is free

    def wait(self) -> torch.Tensor:
        """Return the gradient when it is here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.grad


class _Streams(NamedTuple):
    """The streams of one CUDA device."""

    to_host: Any
    to_device: Any


class Transfers:
    """Moves gradients and parameters between devices and this host."""

    def __init__(self) -> None:
        """Begin without streams. Each CUDA device gets its own at the first transfer."""
        self._streams: dict[torch.device, _Streams] = {}

    def fetch(self, grad: torch.Tensor | None) -> Fetched:
        """Start to move a gradient to this host. A gradient on the CPU is not copied."""
        assert grad is not None
        grad = grad.detach()
        if not grad.is_cuda or grad.is_sparse:
            return Fetched(grad.cpu())
        streams, current = self._streams_of(grad.device), torch.cuda.current_stream(grad.device)
        host = torch.empty_like(grad, device="cpu", pin_memory=True)
        streams.to_host.wait_stream(current)
        with torch.cuda.stream(streams.to_host):
            host.copy_(grad, non_blocking=True)
        grad.record_stream(streams.to_host)  # its memory may be used again after the copy only
        return Fetched(host, streams.to_host.record_event(), current.record_event())

    def give_back(self, copy: HostCopy, fetched: Fetched) -> None:
        """Start to move an updated parameter back to its device."""
        if not copy.param.is_cuda:
            copy.write_back()
            return
        stream = self._streams_of(copy.param.device).to_device
        if fetched.is_free is not None:
            stream.wait_event(fetched.is_free)
        with torch.cuda.stream(stream):
            copy.write_back()
        copy.returned = stream.record_event()

    def finish(self) -> None:
        """Let the program's kernels wait for the parameters. Call it in the thread that starts the kernels."""
        for device, streams in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(streams.to_device)

    def _streams_of(self, device: torch.device) -> _Streams:
        if device not in self._streams:
            self._streams[device] = _Streams(torch.cuda.Stream(device), torch.cuda.Stream(device))
        return self._streams[device]


class HostCopy:
    """A parameter's copy in this host's memory, which the steps update."""

    def __init__(self, param: torch.Tensor) -> None:
        """Allocate the copy. `refresh` fills it."""
        self.param = param
        self.host = torch.empty_like(param.detach(), device="cpu", pin_memory=param.is_cuda)
        self.returned: Any = None  # a CUDA event after which the host's memory may be written again
        self._seen: object = None  # what the parameter was when both were last equal

    def refresh(self, place: int) -> None:
        """Copy the parameter, if the program has changed it or given it other memory.

        Args:
            place: its place among all parameters, for error messages.

        Raises:
            ShapeError, DtypeError: the program has given it another shape or dtype.
        """
        if self._now() == self._seen:
            return
        for what, now, before, error in (
            ("shape", self.param.shape, self.host.shape, ShapeError),
            ("dtype", self.param.dtype, self.host.dtype, DtypeError),
        ):
            if now != before:
                raise error(
                    f"params[{place}] has {what} {now}, expected {before} as in the steps before: make another "
                    "optimizer for it"
                )
        self.wait()
        self.host.copy_(self.param.detach())
        self._seen = self._now()

    def wait(self) -> None:
        """Wait until the last transfer has read the host's memory."""
        if self.returned is not None:
            self.returned.synchronize()
            self.returned = None

    def write_back(self) -> None:
        """Copy the host's memory into the parameter, on the current stream."""
        with torch.no_grad():
            self.param.copy_(self.host, non_blocking=True)
        self._seen = self._now()

    def _now(self) -> object:
        return self.param._version, self.param.data_ptr(), self.param.device


def check_params(params: Sequence[torch.Tensor]) -> None:
    """Refuse parameters that cannot be copied to this host and back.

    Raises:
        ArrayError: one is not a plain tensor with memory of its own. The message names it.
    """
    found: dict[torch.device, list[tuple[int, int, str]]] = {}
    for place, param in enumerate(params):
        name = f"params[{place}]"
        if is_sharded(param):
            raise UnsupportedArrayError(
                f"{name} is a DTensor, expected a plain tensor; give fully_shard() "
                "offload_policy=CPUOffloadPolicy(), and use numba_adam.torch.Adam, which updates shards on the CPU"
            )
        if type(param.data) is not torch.Tensor:
            raise UnsupportedArrayError(
                f"{name} is a {type(param.data).__name__}, expected a plain tensor: its parts cannot be copied to this "
                "host and back"
            )
        if param.is_meta or param.layout is not torch.strided:
            raise UnsupportedArrayError(
                f"{name} is on device {param.device} with layout {param.layout}, expected a dense tensor with memory"
            )
        axes = zip(param.shape, param.stride(), strict=True)
        if param.numel() and 1 + sum((size - 1) * stride for size, stride in axes) != param.numel():
            raise LayoutError(
                f"{name} has shape {tuple(param.shape)} and strides {param.stride()}, expected a dense tensor; copy "
                "it: x.contiguous()"
            )
        begin = param.data_ptr()
        found.setdefault(param.device, []).append((begin, begin + param.numel() * param.element_size(), name))
    for ranges in found.values():
        begins, ends, names = zip(*ranges, strict=True)
        in_memory(np.array(begins, np.uint64), np.array(ends, np.uint64), names)


def check_grads(grads: Sequence[torch.Tensor | None]) -> None:
    """Refuse gradients that no step could take, before any parameter changes.

    Raises:
        ArrayError: one is not a plain tensor of real numbers. The message names it.
    """
    for place, grad in enumerate(grads):
        if grad is None:
            continue
        if type(grad) is not torch.Tensor or grad.layout not in (torch.strided, torch.sparse_coo):
            raise UnsupportedArrayError(
                f"the gradient of params[{place}] is a {type(grad).__name__} with layout {grad.layout}, expected a "
                "plain tensor"
            )
        if grad.dtype not in _DTYPES:
            raise DtypeError(
                f"the gradient of params[{place}] has dtype {grad.dtype}, expected one of "
                f"{', '.join(map(str, _DTYPES))}; convert it: param.grad = param.grad.float()"
            )
