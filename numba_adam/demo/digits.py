"""The 1,797 handwritten digits of scikit-learn, split into training and test images. May import NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SIDE = 8  # pixels
CLASSES = 10
TEST_EVERY = 5  # every fifth image is a test image


class Images(NamedTuple):
    """Images and their labels."""

    pixels: npt.NDArray[np.float32]
    """Shape (n, 64): 8 by 8 images in row-major order, 0 for white and 1 for black."""

    labels: npt.NDArray[np.int64]
    """Shape (n,): the digit, 0 to 9."""

    def shard(self, index: int, count: int) -> Images:
        """Return the shard of one of `count` workers."""
        return Images(self.pixels[index::count], self.labels[index::count])

    def batch(self, size: int, random: np.random.Generator) -> Images:
        """Return `size` random images. A third of them, chosen at random, is moved by up to one pixel per axis.

        The moves are data augmentation: a moved digit is still the same digit.
        """
        chosen = random.integers(0, len(self.labels), size)
        framed = np.pad(self.pixels[chosen].reshape(size, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(framed, (SIDE, SIDE), axis=(1, 2))
        moves = np.where(random.random(size) < 1 / 3, random.integers(0, 3, (2, size)), 1)  # 1 is the middle: no move
        moved = windows[np.arange(size), moves[0], moves[1]]
        return Images(moved.reshape(size, SIDE * SIDE), self.labels[chosen])


def load() -> tuple[Images, Images]:
    """Return training and test images."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.data / 16).astype(np.float32)
    labels = data.target.astype(np.int64)
    test = np.arange(len(labels)) % TEST_EVERY == 0
    return Images(pixels[~test], labels[~test]), Images(pixels[test], labels[test])
