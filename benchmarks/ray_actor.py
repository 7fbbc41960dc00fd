"""A Ray actor that holds parameters and PyTorch's fused Adam: gradients reach it through Ray's shared memory.

May import Ray and torch, nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.contestants.contestant import load

_STORE_BYTES = 2_000_000_000  # several gradients and parameters of 100 MB
_LR = 1e-3


class _Optimizer:
    """The actor's class.

    Args:
        elements: number of parameters.
        threads: of PyTorch.
    """

    def __init__(self, elements: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._param = torch.nn.Parameter(torch.zeros(elements))
        self._adam = torch.optim.Adam([self._param], lr=_LR, fused=True)

    def push(self, grad: Any) -> None:
        """Make a step."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the store's memory is read-only, and so is the tensor over it
            self._param.grad = self._torch.from_numpy(grad)
        self._adam.step()

    def push_pull(self, grad: Any) -> Any:
        """Make a step and return the parameters."""
        self.push(grad)
        return self._param.detach().numpy()


@contextlib.contextmanager
def calls(elements: int, threads: int) -> Iterator[tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    """Run a node of Ray with one actor; yield two functions that push a gradient, of which the second pulls too.

    Raises:
        MissingError: Ray is not installed.
    """
    ray = load("ray")
    load("torch")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        stack.callback(ray.shutdown)
        ray.init(
            num_cpus=threads,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
        )
        actor = ray.remote(num_cpus=1)(_Optimizer).remote(elements, threads)
        yield (
            lambda grad: ray.get(actor.push.remote(grad)),
            lambda grad: ray.get(actor.push_pull.remote(grad)),
        )
