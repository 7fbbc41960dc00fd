"""Gradients in 16-bit formats, pulls into arrays of other dtypes, and any order of axes."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from numba_adam.client.formats import converted
from numba_adam.errors import DtypeError, InvalidRequestError, LayoutError, NonFiniteError
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NARROW = {"bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
NUMBERS = {
    "float32": model_pb2.DTYPE_FLOAT32,
    "bfloat16": model_pb2.DTYPE_BFLOAT16,
    "float16": model_pb2.DTYPE_FLOAT16,
}
ALL = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64), **NARROW}


def check_same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


@pytest.fixture
def recorded(server, make_recorder, connect):
    """A client whose messages are kept, and what keeps them."""
    recorder = make_recorder(server.address)
    return connect(recorder.address), recorder


def pushed(recorder) -> pb.PushHeader:
    sent, _ = recorder.of("Push")
    first = pb.PushRequest.FromString(sent[0])
    return first.whole.header if first.HasField("whole") else first.header


# --- pushes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("narrow", NARROW)
def test_narrow_gradients_give_the_bits_of_widened_ones(client, arrays, gradients_of, narrow, wide):
    params = {name: array.astype(wide) for name, array in arrays.items()}
    models = [client.create_model(name, params, lr=0.01) for name in ("narrow", "wide")]
    for seed in range(3):
        grads = {name: array.astype(NARROW[narrow]) for name, array in gradients_of(arrays, seed).items()}
        models[0].push(grads)
        models[1].push({name: array.astype(wide) for name, array in grads.items()})
    check_same(models[0].pull(), models[1].pull())


@pytest.mark.parametrize("narrow", NARROW)
def test_narrow_gradients_travel_in_half_the_bytes(recorded, arrays, gradients_of, narrow):
    client, recorder = recorded
    model = client.create_model("m", arrays)
    grads = gradients_of(arrays, 0)
    model.push(grads)
    header = pushed(recorder)
    assert (header.dtype, header.total_bytes) == (NUMBERS["float32"], 92)
    model.push({name: array.astype(NARROW[narrow]) for name, array in grads.items()})
    header = pushed(recorder)
    assert (header.dtype, header.total_bytes) == (NUMBERS[narrow], 46)
    model.push({**{name: array.astype(NARROW[narrow]) for name, array in grads.items()}, "w": None})
    assert (pushed(recorder).dtype, pushed(recorder).total_bytes) == (NUMBERS[narrow], 16)


def test_the_bits_of_bfloat16_are_taken_as_uint16(client, arrays, gradients_of):
    models = [client.create_model(name, arrays, lr=0.01) for name in ("bits", "values")]
    grads = {name: array.astype(BFLOAT16) for name, array in gradients_of(arrays, 0).items()}
    models[0].push({name: array.view(np.uint16) for name, array in grads.items()})
    models[1].push(grads)
    check_same(models[0].pull(), models[1].pull())


def test_gradients_of_several_formats_are_widened_by_the_client(recorded, arrays, gradients_of):
    client, recorder = recorded
    models = [client.create_model(name, arrays, lr=0.01) for name in ("mixed", "wide")]
    grads = gradients_of(arrays, 0)
    for formats in ({"w": BFLOAT16}, {"w": np.float16, "b": BFLOAT16}, {"w": np.float16, "empty": np.float16}):
        mixed = {name: array.astype(formats.get(name, np.float32)) for name, array in grads.items()}
        models[0].push(mixed)
        assert pushed(recorder).dtype == NUMBERS["float32"]
        models[1].push({name: array.astype(np.float32) for name, array in mixed.items()})
    check_same(models[0].pull(), models[1].pull())


@pytest.mark.parametrize("narrow", NARROW)
def test_a_narrow_gradient_with_a_nan_is_refused_and_the_next_push_works(client, arrays, gradients_of, narrow):
    model = client.create_model("m", arrays)
    grads = {name: array.astype(NARROW[narrow]) for name, array in gradients_of(arrays, 0).items()}
    bad = {**grads, "b": np.full(7, np.nan, NARROW[narrow])}
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="gradient 'b' holds nan at element 0"):
            model.push(bad)
    with pytest.raises(NonFiniteError, match="gradient 'b' holds nan at element 0"):
        model.push({**bad, "w": grads["w"].astype(np.float32)})  # widened here
    assert model.push(grads).version == 1


def test_a_retried_narrow_push_is_applied_once(server, make_wire, connect, arrays, gradients_of):
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", arrays, lr=0.01)
    grads = {name: array.astype(BFLOAT16) for name, array in gradients_of(arrays, 0).items()}
    model.push(grads)
    wire.cut_at("down", wire.carried["down"] + 1)  # the answer to the next push is lost, or the push itself
    assert (model.push(grads).version, wire.cuts) == (2, 1)
    assert model.push(grads).version == 3


def test_other_dtypes_are_refused_by_name(client, arrays, gradients_of):
    model, grads = client.create_model("m", arrays), gradients_of(arrays, 0)
    for dtype in (np.float64, np.int32, np.complex64, ml_dtypes.float8_e4m3fn):
        with pytest.raises((DtypeError, LayoutError), match=r"grads\['b'\].* got|grads\['b'\].* has dtype"):
            model.push({**grads, "b": grads["b"].astype(dtype)})
    assert model.push(grads).version == 1


# --- creation ---------------------------------------------------------------------------------------------------


def test_narrow_initial_values_make_a_float32_model(client):
    given = {"w": np.array([1.5, -2], np.float16), "b": np.array([0.25], BFLOAT16), "c": np.ones(2, np.float32)}
    model = client.create_model("m", given)
    assert model.spec.dtype == np.float32
    check_same(model.pull(), {name: array.astype(np.float32) for name, array in given.items()})
    beside = client.create_model("n", {"w": given["w"], "d": np.ones(2)})
    assert beside.spec.dtype == np.float64


# --- pulls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_dtype", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ALL)
def test_a_pull_gives_the_nearest_numbers_of_another_dtype(client, arrays, dtype, model_dtype):
    model = client.create_model("m", {name: array.astype(model_dtype) for name, array in arrays.items()})
    expected = {name: array.astype(ALL[dtype]) for name, array in model.pull().items()}
    out = {name: np.zeros_like(array) for name, array in expected.items()}
    assert model.pull(out=out)["w"] is out["w"]
    check_same(out, expected)
    for asked in (dtype, ALL[dtype], ALL[dtype].type):
        check_same(model.pull(dtype=asked), expected)
    again = {name: np.zeros_like(array) for name, array in expected.items()}
    zeros = {name: np.zeros(array.shape, model_dtype) for name, array in arrays.items()}
    model.push_pull(zeros, out=again)
    check_same(again, expected)


def test_outputs_may_have_several_dtypes_and_any_order_of_axes(client, arrays):
    model = client.create_model("m", arrays)
    out = {
        "w": np.zeros((5, 3), BFLOAT16).T,
        "empty": np.zeros((0, 4), np.float16),
        "b": np.zeros(7, np.float64),
        "scale": np.zeros((), np.uint16),
    }
    model.pull(out=out)
    np.testing.assert_array_equal(out["w"], arrays["w"].astype(BFLOAT16))
    np.testing.assert_array_equal(out["b"], arrays["b"])
    assert out["scale"].view(BFLOAT16) == 0.5


def test_arrays_with_any_order_of_axes_are_taken(client, gradients_of):
    given = {"w": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)), "s": np.array(2, np.float32)}
    model = client.create_model("m", given, lr=0.5)
    check_same(model.pull(), given)
    model.push({"w": np.asfortranarray(np.sign(given["w"] - 5.5)), "s": None})
    np.testing.assert_allclose(model.pull()["w"], given["w"] - 0.5 * np.sign(given["w"] - 5.5), rtol=1e-5)


def test_a_dtype_that_cannot_be_pulled_is_refused(client, arrays):
    model = client.create_model("m", arrays)
    for dtype in ("int8", np.int32, "bf16", 5):
        with pytest.raises(DtypeError, match="dtype: expected one of float32, float64, bfloat16, float16, got"):
            model.pull(dtype=dtype)
    with pytest.raises(InvalidRequestError, match="dtype='float16': the arrays of `out` have their own"):
        model.pull(out=dict(arrays), dtype="float16")
    with pytest.raises(DtypeError, match=r"out\['w'\] .* has dtype int32"):
        model.pull(out={**arrays, "w": np.zeros((3, 5), np.int32)})


# --- rounding ---------------------------------------------------------------------------------------------------


def number(code: int) -> Fraction:
    """Return the number with these bits. 0x7F80, infinity, stands for the number after the largest."""
    return Fraction(2) ** 128 if code == 0x7F80 else Fraction(float(np.uint32(code << 16).view(np.float32)))


def nearest_bfloat16(value: float) -> int:
    """Return the bits of the nearest bfloat16, ties to even, by comparing exact fractions."""
    sign = 0x8000 if np.signbit(value) else 0
    if np.isnan(value) or np.isinf(value):
        return sign | (0x7FC0 if np.isnan(value) else 0x7F80)
    exact = abs(Fraction(value))
    low, high = 0, 0x7F80  # codes of magnitudes are in the order of their numbers
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if number(middle) <= exact else (low, middle)
    below, above = exact - number(low), number(high) - exact
    return sign | (low if below < above or (below == above and low % 2 == 0) else high)


FLOATS = st.floats(width=64) | st.integers(0, (1 << 64) - 1).map(lambda bits: float(np.uint64(bits).view(np.float64)))


@given(values=st.lists(FLOATS, min_size=1, max_size=20))
@example(values=[1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 - 2.0**-40])
@example(values=[3.4e38, 3.39e38, 3.3961e38, -3.4e38, 1e300, float("inf"), float("nan"), 0.0, -0.0])
@example(values=[2.0**-133, 2.0**-134, 2.0**-134 + 2.0**-180, 3 * 2.0**-134, 5e-324])
def test_float64_is_rounded_once_to_bfloat16(values):
    got = converted({"x": np.array(values)}, BFLOAT16)["x"].view(np.uint16)
    expected = [nearest_bfloat16(value) for value in values]
    assert [0x7FC0 if code & 0x7FFF > 0x7F80 else int(code) for code in got] == [
        0x7FC0 if code & 0x7FFF > 0x7F80 else code for code in expected
    ]


@given(bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=50))
def test_float32_is_rounded_to_bfloat16_as_ml_dtypes_does(bits):
    values = np.array(bits, np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    got = converted({"x": values}, BFLOAT16)["x"]
    np.testing.assert_array_equal(got.view(np.uint16), values.astype(BFLOAT16).view(np.uint16))
