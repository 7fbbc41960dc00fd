"""The workloads: shapes, parameters and gradients, and the check against zeros and subnormal numbers.

May import NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

SEED = 20141222  # the day Adam was put on arXiv
_MILLION = 1_000_000
_CACHE_LINE_BYTES = 64
_MOST_ZEROS = 1e-6  # as a share: about one float32 normal in 10 million is zero


@dataclass(frozen=True)
class Workload:
    """Arrays to update. Each caller gets new copies, so that no contestant warms the cache of another."""

    shapes: tuple[Shape, ...]

    @property
    def elements(self) -> int:
        """Number of parameters in all arrays."""
        return sum(math.prod(shape) for shape in self.shapes)

    def params(self) -> list[Array]:
        """Return the initial parameters: normal, standard deviation 1."""
        return self._normal(SEED, scale=1.0)

    def grads(self) -> list[Array]:
        """Return the gradients: normal, standard deviation 0.01, the same for every step."""
        return self._normal(SEED + 1, scale=0.01)

    def _normal(self, seed: int, scale: float) -> list[Array]:
        random = np.random.default_rng(seed)
        arrays = [random.standard_normal(shape, dtype=np.float32) for shape in self.shapes]
        for array in arrays:
            array *= np.float32(scale)
        return arrays


class Repeated(Workload):
    """A workload that repeats a million numbers. For arrays so large that random numbers take minutes."""

    def _normal(self, seed: int, scale: float) -> list[Array]:
        (numbers,) = Workload(((_MILLION,),))._normal(seed, scale)
        return [_repeated(numbers, shape) for shape in self.shapes]


def _repeated(numbers: Array, shape: Shape) -> Array:
    array = np.empty(math.prod(shape), dtype=numbers.dtype)
    for begin in range(0, array.size, numbers.size):
        piece = array[begin : begin + numbers.size]
        piece[:] = numbers[: piece.size]
    return array.reshape(shape)


def on_cache_lines(array: Array) -> Array:
    """Return a copy that is aligned to 64 bytes, as PyTorch's tensors are. NumPy aligns to 16."""
    room = np.empty(array.nbytes + _CACHE_LINE_BYTES, dtype=np.uint8)
    begin = -room.ctypes.data % _CACHE_LINE_BYTES
    copy = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def bfloat16_bits(array: Array) -> Array:
    """Return float32 numbers truncated to bfloat16, as bits (uint16). The rounding of a workload does not matter."""
    return np.right_shift(array.view(np.uint32), 16).astype(np.uint16)


def widened(array: Array) -> Array:
    """Return numbers of any format in float32. uint16 means the bits of bfloat16."""
    if array.dtype == np.uint16:
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    return array.astype(np.float32, copy=False)


def one_array(elements: int) -> Workload:
    """Return a workload of one flat array."""
    return Workload(((elements,),))


def equal_arrays(count: int, elements: int) -> Workload:
    """Return a workload of flat arrays of one size."""
    return Workload(((elements,),) * count)


def resnet50() -> Workload:
    """Return a workload of ResNet-50's parameters: 161 arrays, 25,557,032 elements."""
    return Workload(tuple(_resnet50_shapes()))


def _resnet50_shapes() -> Iterator[Shape]:
    """Yield the shapes in the order of the network (He et al. 2015, arXiv 1512.03385, table 1, the 50-layer column).

    Each convolution has no bias and is followed by a batch normalisation with weight and bias. A stage is a row of
    bottlenecks: 1x1 to `width` channels, 3x3, 1x1 to four times `width`; its first one also projects its input.
    """
    yield from _convolution(3, 64, kernel=7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from _convolution(channels, width, kernel=1)
            yield from _convolution(width, width, kernel=3)
            yield from _convolution(width, 4 * width, kernel=1)
            if block == 0:
                yield from _convolution(channels, 4 * width, kernel=1)
            channels = 4 * width
    yield from ((1000, channels), (1000,))


def _convolution(inputs: int, outputs: int, kernel: int) -> tuple[Shape, ...]:
    """Return the shapes of a convolution and of its batch normalisation."""
    return (outputs, inputs, kernel, kernel), (outputs,), (outputs,)


class UnusualError(Exception):
    """A contestant's arrays have numbers that change the speed of a CPU, such as subnormal numbers."""


def check_usual(arrays: Sequence[Array], label: str) -> None:
    """Check that arrays have numbers as in training.

    Raises:
        UnusualError: some are not finite or subnormal, or more than a few are zero.
    """
    tiny = np.finfo(np.float32).tiny
    for array in arrays:
        magnitude = np.abs(array)
        zeros = int(np.count_nonzero(magnitude == 0))
        subnormal = int(np.count_nonzero(magnitude < tiny)) - zeros
        not_finite = magnitude.size - int(np.count_nonzero(np.isfinite(magnitude)))
        if subnormal or not_finite or zeros > 1 + _MOST_ZEROS * magnitude.size:
            raise UnusualError(
                f"{label}: of {magnitude.size} numbers, {zeros} are zero, {subnormal} subnormal and {not_finite} not "
                "finite; a timing over these would not say how fast training is"
            )
