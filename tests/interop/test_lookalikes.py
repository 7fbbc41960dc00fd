"""Gradients that lie as their tensors' parameters are borrowed all at once. The results are those of NumPy arrays."""

import numpy as np
import pytest

import numba_adam as na

try:
    import torch
except ImportError:
    torch = None
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]
OPTIONS = [
    {},
    {"master_weights": True},
    {"master_weights": True, "ema_decay": 0.5, "state_dtype": "bfloat16"},
    {"master_weights": True, "state_dtype": "8bit"},
    {"master_weights": True, "amsgrad": True},
    {"low_precision_copy": "bfloat16"},
    {"state_dtype": "8bit", "ema_decay": 0.9},
    {"rounding": "stochastic", "seed": 3},
]
DTYPES = [
    ("bfloat16",),
    ("float16",),
    ("float32",),
    ("float64",),
    ("bfloat16", "float16", "float32"),
    ("float64", "bfloat16"),
]
REFUSED = [  # options that these dtypes do not have
    ("float64", ("state_dtype", "low_precision_copy")),
    ("float16", ("rounding",)),
]
CASES = [
    (dtypes, options)
    for dtypes in DTYPES
    for options in OPTIONS
    if not any(dtype in dtypes and options.keys() & keys for dtype, keys in REFUSED)
]


def as_array(tensor):
    """Return a copy of a tensor as an array of its own; bfloat16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16).copy()
    return tensor.numpy().copy()


@pytest.mark.parametrize(("dtypes", "options"), CASES, ids=str)
@pytest.mark.parametrize("missing", [False, True], ids=["all gradients", "one gradient missing"])
def test_tensors_train_with_the_bits_of_arrays(dtypes, options, missing):
    random = torch.Generator().manual_seed(4)
    shapes = [(7,), (5, 3), (300,), ()]
    tensors = [
        torch.randn(shape, generator=random).to(getattr(torch, dtypes[place % len(dtypes)]))
        for place, shape in enumerate(shapes)
    ]
    arrays = [as_array(tensor) for tensor in tensors]
    sides = na.AdamW(tensors, lr=0.01, **options), na.AdamW(arrays, lr=0.01, **options)
    for number in range(3):
        grads = [torch.randn(each.shape, generator=random).to(each.dtype) for each in tensors]
        numpy_grads = [as_array(grad) for grad in grads]
        if missing and number == 1:
            grads[1] = numpy_grads[1] = None
        sides[0].step(grads, max_grad_norm=1.0)
        sides[1].step(numpy_grads, max_grad_norm=1.0)
        sides[0].step(grads)
        sides[1].step(numpy_grads)
    for tensor, array in zip(tensors, arrays, strict=True):
        np.testing.assert_array_equal(as_array(tensor), array)
    for index, entry in sides[1].state.items():
        for key, value in entry.items():
            np.testing.assert_array_equal(sides[0].state[index][key], value)
