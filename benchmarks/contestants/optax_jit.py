"""optax.adam in one compiled function, with donated parameters and state, as its users run it."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.contestant import BETAS, EPS, LR, concrete, load
from benchmarks.workload import Array, Workload

NAME = "optax.adam (jit, donated)"


class OptaxJit:
    """Update and apply_updates in one jitted function. XLA uses one thread for each CPU of the process."""

    def __init__(self, workload: Workload, threads: int) -> None:
        self._jax: Any = load("jax")
        optax: Any = load("optax")
        optimizer = optax.adam(LR, b1=BETAS[0], b2=BETAS[1], eps=EPS)

        def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self._update = self._jax.jit(update, donate_argnums=(0, 1))
        self._params = [self._jax.numpy.array(array) for array in workload.params()]
        self._grads = [self._jax.numpy.array(array) for array in workload.grads()]
        self._state = optimizer.init(self._params)
        self._threads = threads

    def step(self) -> object:
        """Make one step and wait for it."""
        self._params, self._state = self._update(self._params, self._state, self._grads)
        return self._jax.block_until_ready((self._params, self._state))

    def threads(self) -> str:
        """Return the number of threads of a step."""
        return str(self._threads)

    def params(self) -> list[Array]:
        """Return the parameters."""
        return concrete(self._params)

    def moments(self) -> list[Array]:
        """Return the moments."""
        return concrete([*self._state[0].mu, *self._state[0].nu])
