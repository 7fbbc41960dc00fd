"""Adam as the paper states it, in NumPy, one array at a time."""

from __future__ import annotations

import numpy as np

from benchmarks.contestants.contestant import BETAS, EPS, LR
from benchmarks.workload import Array, Workload

NAME = "NumPy, as the paper reads"


class PlainNumpy:
    """Kingma & Ba's Algorithm 1, line by line."""

    def __init__(self, workload: Workload, threads: int) -> None:  # noqa: ARG002 - NumPy's arithmetic has one thread
        self._params, self._grads = workload.params(), workload.grads()
        self._exp_avgs = [np.zeros_like(param) for param in self._params]
        self._exp_avg_sqs = [np.zeros_like(param) for param in self._params]
        self._step = 0

    def step(self) -> object:
        """Make one step."""
        beta1, beta2 = BETAS
        self._step += 1
        for k, grad in enumerate(self._grads):
            self._exp_avgs[k] = beta1 * self._exp_avgs[k] + (1 - beta1) * grad
            self._exp_avg_sqs[k] = beta2 * self._exp_avg_sqs[k] + (1 - beta2) * grad**2
            corrected = self._exp_avgs[k] / (1 - beta1**self._step)
            corrected_sq = self._exp_avg_sqs[k] / (1 - beta2**self._step)
            self._params[k] -= LR * corrected / (np.sqrt(corrected_sq) + EPS)
        return self._step

    def threads(self) -> str:
        """Return the number of threads of a step."""
        return "1"

    def params(self) -> list[Array]:
        """Return the parameters."""
        return self._params

    def moments(self) -> list[Array]:
        """Return the moments."""
        return [*self._exp_avgs, *self._exp_avg_sqs]
