"""A fixed sequence of updates in every format, and digests of the results. Also a script that prints them.

python format_updates.py THREADS large|small
"""

from __future__ import annotations

import hashlib
import sys

import ml_dtypes
import numpy as np

import numba_adam as na

SIZES = {
    "large": (70_001, 1, 0, 33_000, 17),  # on two threads and more, with borders inside arrays
    "small": (3_001, 1, 0, 2_048, 17),  # on the calling thread, so that only its kernels are compiled
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PROGRAMMES = {  # dtypes of parameters and gradients, what the optimizer is made with, what is given to each step
    "pairs": (BFLOAT16, BFLOAT16, {"state_dtype": "bfloat16"}, {}),
    "random": (BFLOAT16, BFLOAT16, {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 9}, {}),
    "tiles": (BFLOAT16, np.float16, {"state_dtype": "bfloat16", "amsgrad": True, "weight_decay": 0.1}, {}),
    "float16": (np.float16, np.float16, {"low_precision_copy": "bfloat16"}, {"loss_scale": 4.0, "max_grad_norm": 1.0}),
    "masters": (BFLOAT16, BFLOAT16, {"master_weights": True, "ema_decay": 0.9}, {"clip_value": 0.5}),
    "everything": (np.float32, np.float32, {"ema_decay": 0.9, "low_precision_copy": "float16"}, {"zero_grad": True}),
    "double": (np.float32, np.float32, {"state_dtype": "float64", "ema_decay": 0.9}, {}),
    "mixed": (np.float64, BFLOAT16, {"state_dtype": "float32"}, {"max_grad_norm": 1.0}),
    "blocks": (np.float32, np.float32, {"state_dtype": "8bit"}, {}),
    "8 bits": (BFLOAT16, BFLOAT16, {"state_dtype": "8bit", "rounding": "stochastic", "amsgrad": True}, {}),
}


def digest(name: str, sizes: tuple[int, ...]) -> str:
    """Return the SHA-256 of an optimizer's whole state after three steps."""
    param, grad, options, step = PROGRAMMES[name]
    rng = np.random.default_rng(3)

    def draw(dtype: object) -> list[np.ndarray]:
        return [(rng.normal(size=size) * np.exp2(rng.uniform(-8, 2, size))).astype(dtype) for size in sizes]

    params = draw(param)
    optimizer = na.Adam(params, lr=0.01, **options)
    for _ in range(3):
        optimizer.step(draw(grad), **step)
    states = optimizer.state_dict()["state"]
    arrays = [*params, *(array for state in states.values() for array in state.values())]
    arrays += [*(optimizer.low_precision if "low_precision_copy" in options else [])]
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()


def digests(which: str) -> list[str]:
    """Return a line for each sequence; small arrays only with the compute dtype float32."""
    names = [name for name in PROGRAMMES if which == "large" or name not in ("double", "mixed")]
    return [f"{name}: {digest(name, SIZES[which])}" for name in names]


def main(threads: str, which: str) -> None:
    """Print the digests."""
    import numba

    numba.set_num_threads(int(threads))
    print("\n".join(digests(which)))  # noqa: T201 - the parent process reads it


if __name__ == "__main__":
    main(*sys.argv[1:])
