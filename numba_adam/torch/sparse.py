"""Steps of sparse gradients, such as `torch.nn.Embedding(sparse=True)` has. Imports torch and `numba_adam.rows`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from numba_adam.errors import HyperparameterError, UnsupportedArrayError
from numba_adam.rows.functional import adam_update_rows
from numba_adam.settings.options import Options


def check(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor | None],
    places: Iterable[int],
    options: Options,
    clipping: Mapping[str, float | None],
) -> None:
    """Refuse sparse gradients that cannot be applied row by row.

    Raises:
        HyperparameterError: the optimizer has an option that needs whole gradients.
        UnsupportedArrayError: a gradient is sparse in more than its first dimension, or rows of its parameter cannot be
            updated.
    """
    said = {key: value for key, value in clipping.items() if value is not None}
    said |= {
        key: value
        for key, value in asdict(options).items()
        if key not in ("seed", "master_weights") and value not in (None, False, "nearest", "float32", "float64")
    }
    for place in places:
        grad = grads[place]
        if said:
            key, value = next(iter(said.items()))
            raise HyperparameterError(
                f"parameter {place} has a sparse gradient, and {key}={value!r} needs dense ones: leave {key} out, or "
                "use torch.nn.Embedding(sparse=False)"
            )
        if params[place].dtype not in (torch.float32, torch.float64) or not params[place].is_contiguous():
            raise UnsupportedArrayError(
                f"parameter {place} has a sparse gradient, dtype {params[place].dtype} and strides "
                f"{params[place].stride()}, expected a contiguous float32 or float64 table; use "
                "torch.nn.Embedding(sparse=False)"
            )
        if grad is not None and grad.sparse_dim() != 1:
            raise UnsupportedArrayError(
                f"the gradient of parameter {place} is sparse in {grad.sparse_dim()} dimensions, expected 1 (rows); "
                "make it dense: param.grad = param.grad.to_dense()"
            )


def step(
    param: torch.Tensor, grad: torch.Tensor, entry: dict[str, Any], settings: Mapping[str, Any], grad_scale: float
) -> None:
    """Update the rows that a gradient names, in place. The other rows and their moments stay as they are.

    Args:
        param: a table; its first index selects a row.
        grad: the sparse gradient. It may name a row several times.
        entry: the parameter's state. An empty one gets its arrays.
        settings: the hyperparameters.
        grad_scale: a factor for the gradient.

    Raises:
        ArrayError: the parameter or the gradient does not fit. Nothing was changed.
    """
    largest = {"max_exp_avg_sq"} if settings["amsgrad"] else set()
    for key in ("exp_avg", "exp_avg_sq", *largest):
        if key not in entry:
            entry[key] = torch.zeros_like(param, memory_format=torch.preserve_format)
    entry.setdefault("step", torch.zeros((), dtype=torch.float32))
    number = int(entry["step"].item()) + 1
    named = {key: value for key, value in settings.items() if key != "amsgrad"}
    adam_update_rows(
        param,
        grad._indices()[0],
        grad._values(),
        entry["exp_avg"],
        entry["exp_avg_sq"],
        number,
        mode="lazy",
        grad_scale=grad_scale,
        max_exp_avg_sq=entry["max_exp_avg_sq"] if largest else None,
        **named,
    )
    entry["step"].fill_(number)
