"""The contestants that update some rows of an embedding table: ours and torch.optim.SparseAdam.

Each step uses the next of several disjoint sets of rows. The same rows in every step would stay in the caches, unlike
those of a real table.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contestants.contestant import BETAS, EPS, LR, DisagreementError, concrete, load
from benchmarks.workload import SEED, Array, Workload, check_usual, on_cache_lines

NAME = "torch.optim.SparseAdam"
SETS = 10


@dataclass(frozen=True)
class TableWorkload:
    """A table, and the rows that each step updates."""

    rows: int
    width: int
    touched: int

    @property
    def table(self) -> Workload:
        """The table as an array."""
        return Workload(((self.rows, self.width),))

    def sets(self) -> list[Array]:
        """Return the sets of rows: distinct, unordered, int64."""
        order = np.random.default_rng(SEED).permutation(self.rows)[: SETS * self.touched]
        return list(order.reshape(SETS, self.touched))

    def grads(self) -> list[Array]:
        """Return the gradients of each set's rows."""
        return Workload(((self.touched, self.width),) * SETS).grads()


class OurRows:
    """`adam_update_rows` over its own arrays."""

    def __init__(self, workload: TableWorkload, *, mode: str = "lazy", is_aligned: bool = True) -> None:
        """Take a table.

        Args:
            workload: the table and the rows.
            mode: "lazy", or "exact": rows replay the steps that they missed, here the other sets' steps.
            is_aligned: True: its arrays are aligned to cache lines, as PyTorch's are; False: as NumPy allocates them.
        """
        from numba_adam.rows.functional import (
            adam_update_rows,  # imported here, because the list of all cases does not need Numba
        )

        self._update = adam_update_rows
        (self._param,) = workload.table.params()
        self._exp_avg, self._exp_avg_sq = np.zeros_like(self._param), np.zeros_like(self._param)
        if is_aligned:
            self._param, self._exp_avg, self._exp_avg_sq = map(
                on_cache_lines, (self._param, self._exp_avg, self._exp_avg_sq)
            )
        exact = {"last_step": np.zeros(workload.rows, dtype=np.int64)} if mode == "exact" else {}
        self._options: dict[str, Any] = {"mode": mode, "lr": LR, "betas": BETAS, "eps": EPS, **exact}
        self._pushes = itertools.cycle(zip(workload.sets(), workload.grads(), strict=True))
        self._step = 0

    def step(self) -> object:
        """Make one step with the next rows."""
        rows, grad = next(self._pushes)
        self._step += 1
        self._update(self._param, rows, grad, self._exp_avg, self._exp_avg_sq, self._step, **self._options)
        return self._step

    def rows(self, which: Array) -> Array:
        """Return some of the table's rows."""
        taken: Array = self._param[which]
        return taken

    def table(self) -> list[Array]:
        """Return the parameters and both moments themselves, not copies."""
        return [self._param, self._exp_avg, self._exp_avg_sq]

    def moments(self, which: Array) -> list[Array]:
        """Return the moments of some rows."""
        return [self._exp_avg[which], self._exp_avg_sq[which]]


class TorchRows:
    """SparseAdam, with sparse gradients. It is lazy, has no decay, and adds eps to the uncorrected root."""

    def __init__(self, workload: TableWorkload, threads: int) -> None:
        torch = load("torch")
        torch.set_num_threads(threads)
        (param,) = workload.table.params()
        self._param = torch.from_numpy(on_cache_lines(param)).requires_grad_()
        size = (workload.rows, workload.width)
        grads = [
            torch.sparse_coo_tensor(torch.from_numpy(rows)[None], torch.from_numpy(grad), size, check_invariants=True)
            for rows, grad in zip(workload.sets(), workload.grads(), strict=True)
        ]
        self._grads = itertools.cycle(grads)
        self._optimizer = torch.optim.SparseAdam([self._param], lr=LR, betas=BETAS, eps=EPS)

    def step(self) -> object:
        """Make one step with the next rows."""
        self._param.grad = next(self._grads)
        return self._optimizer.step()

    def rows(self, which: Array) -> Array:
        """Return some of the table's rows."""
        return concrete([self._param.detach()])[0][which]

    def moments(self, which: Array) -> list[Array]:
        """Return the moments of some rows."""
        (state,) = self._optimizer.state.values()
        return [array[which] for array in concrete([state["exp_avg"], state["exp_avg_sq"]])]


def check_same_rows(ours: OurRows, peer: TorchRows | OurRows, workload: TableWorkload) -> None:
    """Check that both have the same values in the first set's rows.

    Raises:
        DisagreementError: the values differ.
        UnusualError: there are subnormal numbers, infinities or NaN.
    """
    first = workload.sets()[0]
    check_usual(ours.moments(first), "our moments")
    check_usual(peer.moments(first), "the peer's moments")
    one, other = ours.rows(first), peer.rows(first)
    before = workload.table.params()[0][first]
    if np.array_equal(one, before) or not np.allclose(one, other, rtol=1e-3, atol=1e-5):
        raise DisagreementError(f"rows did not move, or differ by {float(np.max(np.abs(one - other)))}")
