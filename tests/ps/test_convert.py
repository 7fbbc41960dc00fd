"""Descriptions that go to the protocol and come back are the same, and defaults count as what they mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.errors import DtypeError, HyperparameterError, InvalidRequestError
from numba_adam.ps import convert
from numba_adam.ps.v1 import model_pb2
from numba_adam.settings.hyperparameters import Hyperparameters

RATES = st.floats(0, 1, exclude_max=True)
NUMBERS = st.floats(0, 1e300)
SETTINGS = st.builds(
    Hyperparameters,
    lr=NUMBERS,
    betas=st.tuples(RATES, RATES),
    eps=NUMBERS,
    weight_decay=NUMBERS,
    decoupled_weight_decay=st.booleans(),
    eps_mode=st.sampled_from(["hat", "algorithm1"]),
    maximize=st.booleans(),
    amsgrad=st.booleans(),
)


@given(SETTINGS)
def test_hyperparameters_survive_the_wire(settings):
    raw = convert.hyperparameters_to_proto(settings).SerializeToString()
    assert convert.hyperparameters_from_proto(model_pb2.Hyperparameters.FromString(raw)) == settings


def test_what_is_not_set_takes_its_default():
    assert convert.hyperparameters_from_proto(model_pb2.Hyperparameters()) == Hyperparameters()
    given_zero = convert.hyperparameters_from_proto(model_pb2.Hyperparameters(lr=0, beta1=0, eps=0))
    assert (given_zero.lr, given_zero.betas, given_zero.eps) == (0.0, (0.0, 0.999), 0.0)


def test_values_out_of_range_are_refused():
    with pytest.raises(HyperparameterError, match="lr=-1"):
        convert.hyperparameters_from_proto(model_pb2.Hyperparameters(lr=-1))
    with pytest.raises(InvalidRequestError, match="eps_mode=7"):
        convert.hyperparameters_from_proto(model_pb2.Hyperparameters(eps_mode=7))


def test_dtypes():
    for dtype in (np.float32, np.float64):
        assert convert.dtype_from_proto(convert.dtype_to_proto(dtype)) == np.dtype(dtype)
    with pytest.raises(InvalidRequestError, match="dtype=0: it must be"):
        convert.dtype_from_proto(0)
    with pytest.raises(DtypeError, match="float16"):
        convert.dtype_to_proto(np.float16)


def test_sizes_are_exact_however_large():
    specs = convert.tensor_specs({"a": np.zeros((2, 3)), "b": np.zeros(()), "c": np.zeros((0, 7))})
    assert [convert.element_count(spec) for spec in specs] == [6, 1, 0]
    assert convert.total_elements(specs) == 7
    assert convert.total_bytes(specs, model_pb2.Dtype.DTYPE_FLOAT64) == 56
    huge = model_pb2.TensorSpec(name="x", shape=[2**63, 2**63])
    assert convert.total_bytes([huge, huge], model_pb2.Dtype.DTYPE_FLOAT32) == 2**129


def spec(**changes: object) -> model_pb2.ModelSpec:
    tensors = [model_pb2.TensorSpec(name="w", shape=[2, 3]), model_pb2.TensorSpec(name="b", shape=[4])]
    return model_pb2.ModelSpec(**{"name": "m", "dtype": 1, "tensors": tensors, **changes})


def test_equal_specs_have_no_differences_and_defaults_count():
    explicit = spec(hyperparameters=model_pb2.Hyperparameters(lr=0.001, eps_mode=1), mode=1, durability=1)
    assert convert.spec_differences(spec(), explicit) == []


def test_every_difference_is_named():
    other = spec(
        dtype=2,
        tensors=[model_pb2.TensorSpec(name="w", shape=[3, 2]), model_pb2.TensorSpec(name="v", shape=[4])],
        hyperparameters=model_pb2.Hyperparameters(beta1=0.5, amsgrad=True),
    )
    assert convert.spec_differences(spec(), other) == [
        "array 'v': the model does not have it",
        "array 'b': the model has it, it was not given",
        "array 'w': the model has shape (2, 3), asked for (3, 2)",
        "dtype: the model has float32, asked for float64",
        "betas: the model has (0.9, 0.999), asked for (0.5, 0.999)",
        "amsgrad: the model has False, asked for True",
    ]
    swapped = spec(tensors=list(reversed(spec().tensors)))
    assert convert.spec_differences(spec(), swapped) == [
        "order of the arrays: the model has ['w', 'b'], asked for ['b', 'w']"
    ]
