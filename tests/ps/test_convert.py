"""Conversions to the protocol and back keep all values, and defaults count as their values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.errors import DtypeError, HyperparameterError, InvalidRequestError
from numba_adam.ps import convert
from numba_adam.ps.detail import StatePoint
from numba_adam.ps.modes import Durability, Mode
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
def test_hyperparameters_survive_conversion_and_back(settings):
    raw = convert.hyperparameters_to_proto(settings).SerializeToString()
    assert convert.hyperparameters_from_proto(model_pb2.Hyperparameters.FromString(raw)) == settings


def test_unset_fields_get_their_defaults():
    assert convert.hyperparameters_from_proto(model_pb2.Hyperparameters()) == Hyperparameters()
    given_zero = convert.hyperparameters_from_proto(model_pb2.Hyperparameters(lr=0, beta1=0, eps=0))
    assert (given_zero.lr, given_zero.betas, given_zero.eps) == (0.0, (0.0, 0.999), 0.0)


def test_values_out_of_range_are_refused():
    with pytest.raises(HyperparameterError, match="lr=-1"):
        convert.hyperparameters_from_proto(model_pb2.Hyperparameters(lr=-1))
    with pytest.raises(InvalidRequestError, match="eps_mode=7"):
        convert.hyperparameters_from_proto(model_pb2.Hyperparameters(eps_mode=7))


def test_dtypes_convert_in_both_directions():
    for dtype in (np.float32, np.float64):
        assert convert.dtype_from_proto(convert.dtype_to_proto(dtype)) == np.dtype(dtype)
    with pytest.raises(InvalidRequestError, match="dtype=0: it must be"):
        convert.dtype_from_proto(0)
    with pytest.raises(DtypeError, match="float16"):
        convert.dtype_to_proto(np.float16)


def test_names_and_shapes_of_arrays_are_described_in_order():
    specs = convert.tensor_specs({"b": np.zeros((2, 3)), "a": np.zeros(())})
    assert [(spec.name, tuple(spec.shape)) for spec in specs] == [("b", (2, 3)), ("a", ())]


def test_every_mode_and_durability_of_the_protocol_is_known():
    assert {number: model_pb2.Mode.Name(number) for number in convert.MODES} == {
        number: name for name, number in model_pb2.Mode.items() if number
    }
    assert {number: model_pb2.Durability.Name(number) for number in convert.DURABILITIES} == {
        number: name for name, number in model_pb2.Durability.items() if number
    }
    assert set(convert.MODES.values()) == set(Mode)
    assert set(convert.DURABILITIES.values()) == set(Durability)
    for number, mode in convert.MODES.items():
        assert model_pb2.Mode.Name(number) == f"MODE_{mode.value.upper()}"
    for durability in Durability:
        assert convert.DURABILITIES[convert.durability_to_proto(durability)] is durability
        assert model_pb2.Durability.Name(convert.durability_to_proto(durability)) == f"DURABILITY_{durability.upper()}"


def test_a_state_survives_conversion():
    state = StatePoint("ab" * 16, 7, first_version=3, snapshot_version=5, durability=Durability.MEMORY)
    message = convert.state_to_proto(state)
    assert message == model_pb2.StatePoint(
        state_id="ab" * 16, version=7, first_version=3, snapshot_version=5, durability=1
    )
    assert convert.state_to_proto(StatePoint("a", 1)).durability == model_pb2.DURABILITY_UNSPECIFIED
