"""The 1,797 handwritten digits that scikit-learn ships, cut into training and test images. May import NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SIDE = 8  # pixels
CLASSES = 10
TEST_EVERY = 5  # each fifth image is kept for the test and never trained on


class Images(NamedTuple):
    """Some of the images and what they show."""

    pixels: npt.NDArray[np.float32]
    """Shape (n, 64): the rows of an 8 by 8 image one after the other, 0 for white and 1 for black."""

    labels: npt.NDArray[np.int64]
    """Shape (n,): the digit, 0 to 9."""

    def shard(self, index: int, count: int) -> Images:
        """Return the part of the data that one of `count` workers sees."""
        return Images(self.pixels[index::count], self.labels[index::count])

    def batch(self, size: int, random: np.random.Generator) -> Images:
        """Return so many images chosen at random, one in three of them moved by a pixel.

        A digit remains the same digit when the pen started a little to the left; this teaches the network so.
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
