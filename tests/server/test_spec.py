"""A model's spec: differences, exact sizes, and the protocol's numbers."""

import pytest

from numba_adam.errors import InvalidRequestError
from numba_adam.ps.v1 import error_pb2, model_pb2
from numba_adam.server.model.push_ledger import NON_FINITE, PUSH_MISMATCH
from numba_adam.server.model.spec import DTYPE_NUMBERS, NARROW_DTYPE_NUMBERS, Spec, differences
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.transport.messages import spec_from_proto, spec_to_proto
from numba_adam.settings.hyperparameters import Hyperparameters


def described(**changes: object) -> model_pb2.ModelSpec:
    tensors = [model_pb2.TensorSpec(name="w", shape=[2, 3]), model_pb2.TensorSpec(name="b", shape=[4])]
    return model_pb2.ModelSpec(**{"name": "m", "dtype": 1, "tensors": tensors, **changes})


def compared(have: model_pb2.ModelSpec, want: model_pb2.ModelSpec) -> list[str]:
    return differences(spec_from_proto(have), spec_from_proto(want))


def test_equal_specs_have_no_differences_and_defaults_count():
    explicit = described(hyperparameters=model_pb2.Hyperparameters(lr=0.001, eps_mode=1), mode=1, durability=1)
    assert compared(described(), explicit) == []


def test_every_difference_is_named():
    other = described(
        dtype=2,
        tensors=[model_pb2.TensorSpec(name="w", shape=[3, 2]), model_pb2.TensorSpec(name="v", shape=[4])],
        hyperparameters=model_pb2.Hyperparameters(beta1=0.5, amsgrad=True),
    )
    assert compared(described(), other) == [
        "array 'v': the model does not have it",
        "array 'b': the model has it, it was not given",
        "array 'w': the model has shape (2, 3), asked for (3, 2)",
        "dtype: the model has float32, asked for float64",
        "betas: the model has (0.9, 0.999), asked for (0.5, 0.999)",
        "amsgrad: the model has False, asked for True",
    ]
    swapped = described(tensors=list(reversed(described().tensors)))
    assert compared(described(), swapped) == ["order of the arrays: the model has ['w', 'b'], asked for ['b', 'w']"]


def test_sizes_of_any_magnitude_are_exact():
    tensors = (Tensor("a", (2, 3)), Tensor("b", ()), Tensor("c", (0, 7)))
    assert [tensor.size for tensor in tensors] == [6, 1, 0]
    assert Spec("m", "float64", tensors, Hyperparameters()).nbytes == 56
    huge = (Tensor("x", (2**63, 2**63)), Tensor("y", (2**63, 2**63)))
    assert Spec("m", "float32", huge, Hyperparameters()).nbytes == 2**129


def test_a_spec_survives_conversion_to_the_protocol_and_back():
    spec = spec_from_proto(described(hyperparameters=model_pb2.Hyperparameters(lr=0.5, amsgrad=True)))
    assert spec_from_proto(spec_to_proto(spec)) == spec
    assert Spec.from_record(spec.to_record()) == spec


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": 9}, r"mode=9: this server knows MODE_ASYNC \(1\)"),
        ({"durability": 9}, r"durability=9: this server knows DURABILITY_MEMORY \(1\)"),
    ],
)
def test_an_unknown_mode_or_durability_is_refused_by_name(changes, words):
    with pytest.raises(InvalidRequestError, match=words):
        spec_from_proto(described(**changes))


def test_numbers_in_snapshots_and_digests_match_the_protocol():
    known = {name: number for name, number in model_pb2.Dtype.items() if number}
    ours = DTYPE_NUMBERS | NARROW_DTYPE_NUMBERS
    assert {f"DTYPE_{name.upper()}": number for name, number in ours.items()} == known
    assert (PUSH_MISMATCH, NON_FINITE) == (error_pb2.REASON_PUSH_MISMATCH, error_pb2.REASON_NON_FINITE)
