"""Hyperparameters that a model's dtype cannot hold are refused when the model is described."""

import pytest

from numba_adam.errors import HyperparameterError
from numba_adam.ps.v1 import model_pb2
from numba_adam.server.model.spec import Spec
from numba_adam.server.transport.messages import spec_from_proto

NOT_FOR_FLOAT32 = {"lr": 1e300, "eps": 1e-46, "beta2": 1 - 1e-9, "weight_decay": 1e39}


def described(dtype: model_pb2.Dtype, **hyperparameters: float) -> Spec:
    return spec_from_proto(
        model_pb2.ModelSpec(
            name="model",
            dtype=dtype,
            tensors=[model_pb2.TensorSpec(name="w", shape=[3])],
            hyperparameters=model_pb2.Hyperparameters(**hyperparameters),
        )
    )


@pytest.mark.parametrize("name", NOT_FOR_FLOAT32)
def test_a_hyperparameter_beyond_the_models_dtype_is_refused_by_name(name):
    value = NOT_FOR_FLOAT32[name]
    with pytest.raises(HyperparameterError, match="betas" if name == "beta2" else name):
        described(model_pb2.Dtype.DTYPE_FLOAT32, **{name: value})
    assert described(model_pb2.Dtype.DTYPE_FLOAT64, **{name: value}).dtype == "float64"
