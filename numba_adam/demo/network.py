"""The classifier (64 pixels, 256 hidden units, 10 scores) and its gradient in NumPy. May import NumPy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from numba_adam.demo.digits import CLASSES, SIDE, Images

Floats = npt.NDArray[np.float32]
Params = dict[str, Floats]
HIDDEN = 256


def initial_params(seed: int) -> Params:
    """Return random weights (He et al. 2015, section 2.2) and zero biases."""
    random = np.random.default_rng(seed)

    def weights(rows: int, columns: int) -> Floats:
        return (random.standard_normal((rows, columns)) * math.sqrt(2 / rows)).astype(np.float32)

    return {
        "hidden.weight": weights(SIDE * SIDE, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "scores.weight": weights(HIDDEN, CLASSES),
        "scores.bias": np.zeros(CLASSES, np.float32),
    }


def forward(params: Params, pixels: Floats) -> tuple[Floats, Floats]:
    """Return the hidden units, shape (n, 256), and the scores, shape (n, 10)."""
    hidden = np.maximum(pixels @ params["hidden.weight"] + params["hidden.bias"], 0)
    return hidden, hidden @ params["scores.weight"] + params["scores.bias"]


def loss_and_gradients(params: Params, batch: Images) -> tuple[float, Params]:
    """Return the mean cross-entropy over the batch and its gradient for every parameter."""
    hidden, scores = forward(params, batch.pixels)
    scores -= scores.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    rows = np.arange(len(batch.labels))
    loss = -float(log_probabilities[rows, batch.labels].mean())

    by_scores = np.exp(log_probabilities)
    by_scores[rows, batch.labels] -= 1
    by_scores /= np.float32(len(rows))
    by_hidden = (by_scores @ params["scores.weight"].T) * (hidden > 0)
    return loss, {
        "hidden.weight": batch.pixels.T @ by_hidden,
        "hidden.bias": by_hidden.sum(axis=0),
        "scores.weight": hidden.T @ by_scores,
        "scores.bias": by_scores.sum(axis=0),
    }


def correct(params: Params, images: Images) -> int:
    """Return the number of images that the network classifies correctly."""
    _, scores = forward(params, images.pixels)
    return int((scores.argmax(axis=1) == images.labels).sum())
