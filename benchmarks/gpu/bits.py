"""Random numbers, their bits, and how many differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.gpu.device import Array
from benchmarks.gpu.journal import Finding


def draw(rng: np.random.Generator, size: int, number: str) -> Array:
    """Return numbers whose magnitudes span many powers of two; bfloat16 as its bits."""
    least = -8 if number == "float16" else -20  # float16 has no smaller normal numbers
    values = rng.normal(size=size) * np.exp(rng.uniform(least, 5, size))
    return nearest_bfloat16(values) if number == "bfloat16" else values.astype(number)


def nearest_bfloat16(values: Array) -> Array:
    """Return numbers rounded to float32 and then to bfloat16, to even, as its bits."""
    raw = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((raw + 0x7FFF + ((raw >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def bits(array: Array) -> Array:
    """Return the bits. All NaNs become equal, because their payloads differ between processors."""
    clean = np.array(array)
    if clean.dtype.kind == "f":
        clean[np.isnan(clean)] = np.nan
    return clean.view(f"u{clean.itemsize}")


def compared(ours: Sequence[Array], theirs: Sequence[Array], *, others: Sequence[str] = ()) -> Finding:
    """Return whether every bit is the same.

    Args:
        ours: arrays from the GPU.
        theirs: the same from the CPU.
        others: what else differs, such as "the norm is 3, expected 4".
    """
    wrong, elements = 0, 0
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if (a.shape, a.itemsize) != (b.shape, b.itemsize):
            others = [*others, f"array {number} has shape {a.shape} and {a.dtype}, expected {b.shape} and {b.dtype}"]
            continue
        wrong += int(np.count_nonzero(bits(a) != bits(b)))
        elements += a.size
    said = f"{wrong:,} of {elements:,} elements DIFFER" if wrong else f"{elements:,} elements, every bit is the same"
    return Finding("; ".join([said, *others]), not wrong and not others, {"differing": wrong, "elements": elements})
