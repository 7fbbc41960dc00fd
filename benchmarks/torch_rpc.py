"""A second process of torch.distributed.rpc, which receives tensors over TCP, and the calls that send them.

`python -m benchmarks.torch_rpc FILE` joins through that file, and ends when the first process does.
Both processes may use TCP only, as between two machines. May import torch, nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SECONDS = 600.0
_TCP = {"_transports": ["uv"], "_channels": ["basic"]}  # otherwise tensors travel through shared memory


def take(_tensor: Any) -> None:
    """Receive a tensor."""


def give_back(tensor: Any) -> Any:
    """Receive a tensor and return one of the same size."""
    return tensor


@contextlib.contextmanager
def calls() -> Iterator[tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """Run the second process; yield two functions that send a tensor, of which the second returns one."""
    from torch.distributed import rpc

    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder, "meeting"))
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.torch_rpc", meeting])
        try:
            _join(0, meeting)
            yield (
                lambda tensor: rpc.rpc_sync("second", take, args=(tensor,)),
                lambda tensor: rpc.rpc_sync("second", give_back, args=(tensor,)),
            )
            rpc.shutdown()
            process.wait(_SECONDS)
        finally:
            process.kill()
            process.wait()


def _join(rank: int, meeting: str) -> None:
    from torch.distributed import rpc

    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{meeting}", rpc_timeout=_SECONDS, **_TCP)
    rpc.init_rpc(("first", "second")[rank], rank=rank, world_size=2, rpc_backend_options=options)


if __name__ == "__main__":
    from torch.distributed import rpc

    _join(1, sys.argv[1])
    rpc.shutdown()  # waits for the first process
    os._exit(0)
