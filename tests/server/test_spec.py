"""A model's spec: differences, exact sizes, and the protocol's numbers."""

import pytest

from numba_adam.errors import DtypeError, HyperparameterError, InvalidRequestError, SnapshotError
from numba_adam.ps.v1 import error_pb2, model_pb2
from numba_adam.server.model.answers import NON_FINITE, PUSH_MISMATCH
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
        ({"mode": 9}, r"mode=9: this version knows async \(1\), sync \(2\), ssp \(3\)"),
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


OPTIONS = model_pb2.Options(state_dtype=model_pb2.STATE_DTYPE_EIGHT_BIT, seed=7, ema_decay=0.5)


def test_options_are_compared_one_by_one():
    other = model_pb2.Options(state_dtype=model_pb2.STATE_DTYPE_BFLOAT16, rounding=model_pb2.ROUNDING_STOCHASTIC)
    assert compared(described(options=OPTIONS), described(options=OPTIONS)) == []
    assert compared(described(options=OPTIONS), described(options=other)) == [
        "state_dtype: the model has 8bit, asked for bfloat16",
        "rounding: the model has 'nearest', asked for 'stochastic'",
        "seed: the model has 7, asked for 0",
        "ema_decay: the model has 0.5, asked for None",
    ]
    assert compared(described(), described(options=OPTIONS))[0] == "state_dtype: the model has float32, asked for 8bit"


def test_a_state_dtype_that_the_dtype_implies_is_no_difference():
    explicit = described(options=model_pb2.Options(state_dtype=model_pb2.STATE_DTYPE_FLOAT32))
    assert compared(described(), explicit) == []
    assert "options" not in spec_from_proto(explicit).to_record()


def test_options_survive_conversion_to_the_protocol_and_to_records():
    spec = spec_from_proto(described(options=OPTIONS))
    assert spec_from_proto(spec_to_proto(spec)) == spec == Spec.from_record(spec.to_record())
    assert (spec.options.state_dtype, spec.options.seed, spec.options.ema_decay) == ("8bit", 7, 0.5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (model_pb2.Options(state_dtype=99), InvalidRequestError, "state_dtype=99"),
        (model_pb2.Options(rounding=99), InvalidRequestError, "rounding=99"),
        (model_pb2.Options(seed=2**63), HyperparameterError, "seed"),
        (model_pb2.Options(ema_decay=1.0), HyperparameterError, "ema_decay"),
        (model_pb2.Options(ema_decay=float("nan")), HyperparameterError, "ema_decay"),
    ],
)
def test_options_that_are_not_known_or_out_of_range_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        spec_from_proto(described(options=options))


@pytest.mark.parametrize("narrow", [model_pb2.STATE_DTYPE_BFLOAT16, model_pb2.STATE_DTYPE_EIGHT_BIT])
def test_a_float64_model_refuses_narrow_state_as_the_library_does(narrow):
    with pytest.raises(DtypeError, match="float64 or float32"):
        spec_from_proto(described(dtype=2, options=model_pb2.Options(state_dtype=narrow)))


def test_a_record_with_options_of_a_newer_release_is_refused():
    record = spec_from_proto(described(options=OPTIONS)).to_record()
    for options in ({"state_dtype": "4bit"}, {"sparsity": 2}):
        with pytest.raises(SnapshotError, match="newer"):
            Spec.from_record({**record, "options": options})
