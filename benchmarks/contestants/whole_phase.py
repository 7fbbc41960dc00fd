"""Everything between the backward pass and the next forward pass, ours and PyTorch's.

The gradients include a loss scale. A step divides by it, checks that gradients are finite, clips the global norm, makes
an AdamW step, updates an average of the weights, and makes a bfloat16 copy of the weights for the next pass.

PyTorch divides and clips the gradients in place. In training the backward pass writes new ones; here `refresh` does,
before every step of both contestants, outside the timing. So every step has the same gradients, with the loss scale and
a norm that needs clipping.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import numba_adam as na
from benchmarks.contestants.contestant import BETAS, EPS, LR, DisagreementError, concrete, load
from benchmarks.contestants.ours import threads_of_a_step
from benchmarks.workload import Array, Workload, check_usual, widened

LOSS_SCALE = 65536.0  # initial value of GradScaler
MAX_NORM = 1.0  # a million normal gradients with deviation 0.01 have a norm of 10, so they are clipped
EMA_DECAY = 0.999
WEIGHT_DECAY = 0.01
NAME = "torch: GradScaler.unscale_, clip_grad_norm_, AdamW(fused=True), lerp_, copy_"


class _Phase:
    """Gradients in their own memory that can be refreshed."""

    def __init__(self, workload: Workload) -> None:
        self._scaled = workload.grads()
        for grad in self._scaled:
            grad *= np.float32(LOSS_SCALE)
        self._grads = [grad.copy() for grad in self._scaled]

    def refresh(self) -> None:
        """Write the gradients again, as a backward pass does."""
        for grad, scaled in zip(self._grads, self._scaled, strict=True):
            np.copyto(grad, scaled)


class OurPhase(_Phase):
    """Ours: one call."""

    def __init__(self, workload: Workload, threads: int) -> None:  # noqa: ARG002 - NUMBA_NUM_THREADS sets it
        super().__init__(workload)
        self._params = workload.params()
        self.optimizer = na.AdamW(
            self._params,
            lr=LR,
            betas=BETAS,
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
            eps_mode="algorithm1",
            ema_decay=EMA_DECAY,
            low_precision_copy="bfloat16",
        )

    def step(self) -> object:
        """Make one step."""
        return self.optimizer.step(self._grads, loss_scale=LOSS_SCALE, max_grad_norm=MAX_NORM)

    def threads(self) -> str:
        """Return the number of threads of a step."""
        return threads_of_a_step()

    def params(self) -> list[Array]:
        """Return the parameters."""
        return self._params

    def averages(self) -> list[Array]:
        """Return the averages of the parameters."""
        return [np.asarray(array) for array in self.optimizer.ema]

    def copies(self) -> list[Array]:
        """Return the bfloat16 copies, in float32."""
        return [widened(np.asarray(array)) for array in self.optimizer.low_precision]

    def moments(self) -> list[Array]:
        """Return the moments."""
        states = self.optimizer.state.values()
        return [state[key] for key in ("exp_avg", "exp_avg_sq") for state in states]


class TorchPhase(_Phase):
    """PyTorch's: the calls of its documentation, in the same order."""

    def __init__(self, workload: Workload, threads: int) -> None:
        super().__init__(workload)
        torch = self._torch = load("torch")
        torch.set_num_threads(threads)
        self._params = [torch.from_numpy(array).requires_grad_() for array in workload.params()]
        for param, grad in zip(self._params, self._grads, strict=True):
            param.grad = torch.from_numpy(grad)
        self._averages = [param.detach().clone() for param in self._params]
        self._copies = [param.detach().to(torch.bfloat16) for param in self._params]
        self._scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE, growth_interval=1 << 30)
        self._scaler.scale(torch.zeros(()))  # creates the scale's tensor, as the first loss does
        self._optimizer = torch.optim.AdamW(
            self._params, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self) -> object:
        """Make one step."""
        self._scaler.unscale_(self._optimizer)
        self._torch.nn.utils.clip_grad_norm_(self._params, MAX_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with self._torch.no_grad():
            for param, average, copy in zip(self._params, self._averages, self._copies, strict=True):
                average.lerp_(param, 1 - EMA_DECAY)
                copy.copy_(param)
        return None

    def threads(self) -> str:
        """Return the number of threads of a step."""
        return str(self._torch.get_num_threads())

    def params(self) -> list[Array]:
        """Return the parameters."""
        return concrete([param.detach() for param in self._params])

    def averages(self) -> list[Array]:
        """Return the averages of the parameters."""
        return concrete(self._averages)

    def copies(self) -> list[Array]:
        """Return the bfloat16 copies, in float32."""
        return concrete([copy.float() for copy in self._copies])

    def moments(self) -> list[Array]:
        """Return the moments."""
        states = self._optimizer.state.values()
        return concrete([state[key] for key in ("exp_avg", "exp_avg_sq") for state in states])


def check_same_phase(ours: Any, peer: Any) -> None:
    """Check that both did all of the work, with the same results.

    Raises:
        DisagreementError: parameters, averages or copies differ by more than rounding errors.
        UnusualError: the moments have subnormal numbers, infinities or NaN.
    """
    check_usual(ours.moments(), "our moments")
    check_usual(peer.moments(), "the peer's moments")
    pairs = (
        # After thousands of steps of size LR, with norms that PyTorch sums in float32: allow the size of two steps.
        ("parameters", ours.params(), peer.params(), 1e-3, 2 * LR),
        ("averages", ours.averages(), peer.averages(), 1e-3, 2 * LR),
        ("bfloat16 copies", ours.copies(), peer.copies(), 1e-2, 1e-2),  # bfloat16 has 8 bits of precision
    )
    for what, some, others, relative, absolute in pairs:
        for one, other in zip(some, others, strict=True):
            if not np.allclose(one, other, relative, absolute):
                raise DisagreementError(f"{what} of shape {one.shape} differ by {float(np.max(np.abs(one - other)))}")
