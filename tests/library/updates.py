"""A fixed sequence of updates, and the SHA-256 of all resulting bits. Also a script that prints it.

python updates.py DTYPE SIZE... THREADS        (0: as many as Numba takes by itself)
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import numpy as np

import numba_adam as na

STEPS = 4
SIZES = (70_001, 1, 0, 33_000, 17)  # on two threads and more, with borders inside arrays
HYPERPARAMETERS = {
    "hat": {},
    "algorithm1": {"eps_mode": "algorithm1", "weight_decay": 0.1, "betas": (0.8, 0.97)},
    "adamw": {"decoupled_weight_decay": True, "weight_decay": 0.05, "maximize": True, "lr": 0.03},
    "amsgrad": {"amsgrad": True, "eps": 1e-3},
}


def data(total: int, dtype: object, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return initial parameters and the gradients of every step; magnitudes over many powers of two."""
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        return (rng.normal(size=total) * np.exp(rng.uniform(-20, 5, total))).astype(dtype)

    return draw(), [draw() for _ in range(STEPS)]


def cut(flat: np.ndarray, sizes: Iterable[int]) -> list[np.ndarray]:
    """Return copies of consecutive pieces of `flat`."""
    return [piece.copy() for piece in np.split(flat, np.cumsum(list(sizes))[:-1])]


def train(sizes: Iterable[int], dtype: object, hyperparameters: dict, grad_scale: float = 0.7) -> na.Adam:
    """Return an optimizer over arrays of these sizes after all steps."""
    sizes = list(sizes)
    param, grads = data(sum(sizes), dtype)
    optimizer = na.Adam(cut(param, sizes), **hyperparameters)
    for grad in grads:
        optimizer.step(cut(grad, sizes), grad_scale=grad_scale)
    return optimizer


def digest_of(optimizer: na.Adam) -> str:
    """Return the SHA-256 over param, exp_avg, exp_avg_sq and max_exp_avg_sq, each from the first array to the last."""
    states = optimizer.state_dict()["state"]
    digest = hashlib.sha256()
    for param in optimizer.param_groups[0]["params"]:
        digest.update(param.tobytes())
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        for index in sorted(states):
            digest.update(states[index].get(key, np.empty(0)).tobytes())
    return digest.hexdigest()


def digests(sizes: Iterable[int], dtype: object) -> str:
    """Return one SHA-256 for each set of hyperparameters, in one line."""
    sizes = list(sizes)
    return " ".join(digest_of(train(sizes, dtype, dict(each))) for each in HYPERPARAMETERS.values())


def main(dtype: str, *arguments: str) -> None:
    """Print the digests."""
    *sizes, threads = arguments
    if int(threads):
        import numba

        numba.set_num_threads(int(threads))
    print(digests(map(int, sizes), dtype))  # noqa: T201 - the parent process reads it


if __name__ == "__main__":
    main(*sys.argv[1:])
