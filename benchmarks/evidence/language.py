"""A small transformer that predicts the next byte of text that comes with Python. Needs PyTorch, for its gradients.

The text is that of `help()`'s topics. Of every ten pieces of it one is held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contestants.contestant import load
from benchmarks.evidence.problem import Losses
from benchmarks.workload import Array

CONTEXT = 64  # bytes that are seen
BATCH = 32
LAYERS = 2
WIDTH = 64
HEADS = 4
_PIECE = 4096  # bytes
_HELD_OUT_BATCHES = 8


class Text(NamedTuple):
    """The text as numbers from 0 on, and how many different ones there are."""

    training: Array
    held_out: Array
    symbols: int


@cache
def text() -> Text:
    """Return the text."""
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    symbols, numbers = np.unique(np.frombuffer(whole.encode(), np.uint8), return_inverse=True)
    is_held_out = np.arange(numbers.size) // _PIECE % 10 == 9
    return Text(numbers[~is_held_out], numbers[is_held_out], symbols.size)


def model(torch: Any, symbols: int) -> Any:
    """Return a transformer with layers normalised first, as in GPT-2."""
    nn = torch.nn
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    modules = {
        "symbols": nn.Embedding(symbols, WIDTH),
        "places": nn.Embedding(CONTEXT, WIDTH),
        "layers": nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False),
        "scores": nn.Linear(WIDTH, symbols),
    }
    for name in ("symbols", "places"):
        nn.init.normal_(modules[name].weight, std=0.02)
    return nn.ModuleDict(modules)


class Language:
    """One seed."""

    weight_decay = 0.01

    def __init__(self, seed: int) -> None:
        """Make a model of random weights.

        Raises:
            MissingError: PyTorch is not installed.
        """
        self._torch = torch = load("torch")
        torch.manual_seed(seed)
        self._seed, self._text = seed, text()
        self._model = model(torch, self._text.symbols)
        self._mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.params = [param.detach().numpy().copy() for param in self._model.parameters()]

    def gradients(self, params: Sequence[Array], step: int) -> list[Array]:
        """Return the gradient over the batch of a step."""
        self._place(params)
        self._model.zero_grad()
        self._loss(self._text.training, [self._seed, step]).backward()
        return [param.grad.numpy() for param in self._model.parameters()]

    def losses(self, params: Sequence[Array]) -> Losses:
        """Return the losses over some batches of what was trained on, and of what was held out."""
        self._place(params)
        parts = (self._text.training, self._text.held_out)
        with self._torch.no_grad():
            sums = [sum(float(self._loss(part, [n])) for n in range(_HELD_OUT_BATCHES)) for part in parts]
        return Losses(*(total / _HELD_OUT_BATCHES for total in sums))

    def _place(self, params: Sequence[Array]) -> None:
        """Let the model's parameters lie in these arrays."""
        for own, array in zip(self._model.parameters(), params, strict=True):
            own.data = self._torch.from_numpy(array)

    def _loss(self, numbers: Array, seed: list[int]) -> Any:
        torch = self._torch
        starts = np.random.default_rng(seed).integers(0, numbers.size - CONTEXT, (BATCH, 1))
        windows = torch.from_numpy(numbers[starts + np.arange(CONTEXT + 1)].astype(np.int64))
        modules = self._model
        values = modules["symbols"](windows[:, :-1]) + modules["places"].weight
        scores = modules["scores"](modules["layers"](values, mask=self._mask, is_causal=True))
        return torch.nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
