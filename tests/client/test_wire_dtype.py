"""Gradients and parameters in 16-bit formats on the wire: half the bytes, and the numbers that both ends round to."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.client.narrow import Rounded, WideningDownload
from numba_adam.client.progress import silent
from numba_adam.errors import CorruptTransferError, DtypeError, NonFiniteError
from numba_adam.numerics.formats import Format
from numba_adam.ps.transfer import Chunk
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

NARROW = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
NUMBERS = {"bfloat16": model_pb2.DTYPE_BFLOAT16, "float16": model_pb2.DTYPE_FLOAT16}
FORMATS = {"bfloat16": Format.BFLOAT16, "float16": Format.FLOAT16}
ELEMENTS = 23  # of the fixture's arrays


def check_same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


def rounded(arrays, narrow):
    """Return the arrays with the nearest numbers of a 16-bit format, in their own dtype."""
    return {name: array.astype(NARROW[narrow]).astype(array.dtype) for name, array in arrays.items()}


@pytest.fixture
def recorded(server, make_recorder, connect):
    """A client whose messages are kept, and what keeps them."""
    recorder = make_recorder(server.address)
    return connect(recorder.address), recorder


def pulled(recorder, call="Pull"):
    """Return the header of the last answer to a pull."""
    kind = pb.PullResponse if call == "Pull" else pb.PushPullResponse
    _, answers = recorder.of(call)
    [header] = [answer.header for answer in map(kind.FromString, answers) if answer.HasField("header")]
    return header


def pushed(recorder, call="Push"):
    """Return the header of the last push."""
    sent, _ = recorder.of(call)
    first = (pb.PushRequest if call == "Push" else pb.PushPullRequest).FromString(sent[0])
    return first.whole.header if first.HasField("whole") else first.header


# --- what travels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", NARROW)
def test_parameters_for_narrow_arrays_travel_in_half_the_bytes(recorded, arrays, narrow):
    client, recorder = recorded
    model = client.create_model("m", arrays)
    expected = {name: array.astype(NARROW[narrow]) for name, array in arrays.items()}
    check_same(model.pull(dtype=narrow), expected)
    assert (pulled(recorder).dtype, pulled(recorder).total_bytes) == (NUMBERS[narrow], 2 * ELEMENTS)
    out = {name: np.zeros_like(array) for name, array in expected.items()}
    model.pull(out=out)
    check_same(out, expected)
    assert pulled(recorder).total_bytes == 2 * ELEMENTS
    zeros = {name: np.zeros_like(array) for name, array in arrays.items()}
    again = {name: np.ones_like(array) for name, array in expected.items()}
    model.push_pull(zeros, out=again)
    check_same(again, expected)
    assert pulled(recorder, "PushPull").total_bytes == 2 * ELEMENTS
    model.pull()
    assert (pulled(recorder).dtype, pulled(recorder).total_bytes) == (0, 4 * ELEMENTS)


def test_parameters_for_arrays_of_several_formats_travel_in_the_models_dtype(recorded, arrays):
    client, recorder = recorded
    model = client.create_model("m", arrays)
    out = {name: np.zeros(array.shape, NARROW["bfloat16"]) for name, array in arrays.items()}
    out["w"] = np.zeros((3, 5), np.float16)
    model.pull(out=out)
    check_same(out, {name: arrays[name].astype(array.dtype) for name, array in out.items()})
    assert pulled(recorder).total_bytes == 4 * ELEMENTS


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("narrow", NARROW)
def test_wire_dtype_halves_the_bytes_of_every_call_and_keeps_the_dtypes(
    recorded, client, arrays, gradients_of, narrow, wide
):
    arrays = {name: array.astype(wide) for name, array in arrays.items()}
    narrowing, recorder = recorded
    model, oracle = narrowing.create_model("m", arrays, lr=0.01), client.create_model("oracle", arrays, lr=0.01)
    assert model.wire_dtype is None
    model.wire_dtype = narrow
    assert model.wire_dtype == narrow
    check_same(model.pull(), rounded(arrays, narrow))
    assert pulled(recorder).total_bytes == 2 * ELEMENTS
    for seed in range(3):
        grads = gradients_of(arrays, seed)
        oracle.push(rounded(grads, narrow))
        if seed == 0:
            model.push(grads)
            assert (pushed(recorder).dtype, pushed(recorder).total_bytes) == (NUMBERS[narrow], 2 * ELEMENTS)
        elif seed == 1:
            model.push_async(grads).result()
        else:
            got = model.push_pull(grads)
            assert (pushed(recorder, "PushPull").pull_dtype, pushed(recorder, "PushPull").total_bytes) == (
                NUMBERS[narrow],
                2 * ELEMENTS,
            )
            check_same(got, rounded(oracle.pull(), narrow))
    out = {name: np.zeros_like(array) for name, array in arrays.items()}
    model.pull(out=out)
    check_same(out, rounded(oracle.pull(), narrow))
    model.wire_dtype = None
    check_same(model.pull(), oracle.pull())


def test_a_worker_keeps_the_wire_dtype_of_its_handle(recorded, arrays, gradients_of):
    client, recorder = recorded
    model = client.create_model("m", arrays)
    model.wire_dtype = "bfloat16"
    for seed, step in model.worker([0, 1]):
        assert step.params["w"].dtype == np.float32
        step.grads = gradients_of(arrays, seed)
    assert pulled(recorder, "PushPull").total_bytes == pushed(recorder, "PushPull").total_bytes == 2 * ELEMENTS


def test_narrow_arrays_travel_in_their_own_format_whatever_wire_dtype_says(recorded, arrays, gradients_of):
    client, recorder = recorded
    model = client.create_model("m", arrays)
    model.wire_dtype = "bfloat16"
    model.push({name: grad.astype(np.float16) for name, grad in gradients_of(arrays, 0).items()})
    assert pushed(recorder).dtype == NUMBERS["float16"]
    got = model.pull(dtype="float16")
    assert pulled(recorder).dtype == NUMBERS["float16"]
    model.wire_dtype = None
    check_same(got, {name: array.astype(np.float16) for name, array in model.pull().items()})


def test_a_large_model_travels_in_several_narrow_chunks(client):
    params = {"w": np.random.default_rng(0).standard_normal((1 << 20) + 77, dtype=np.float32), "b": np.ones(3, "f4")}
    model = client.create_model("m", params, lr=0.125)
    model.wire_dtype = "bfloat16"
    check_same(model.pull(), rounded(params, "bfloat16"))
    oracle = client.create_model("oracle", params, lr=0.125)
    grads = {name: np.sin(array) for name, array in params.items()}
    model.push(grads)
    oracle.push(rounded(grads, "bfloat16"))
    model.wire_dtype = None
    check_same(model.pull(), oracle.pull())


def test_a_retried_push_that_is_rounded_is_applied_once(server, make_wire, connect, arrays, gradients_of):
    wire = make_wire(server.address)
    model = connect(wire.address).create_model("m", arrays, lr=0.01)
    model.wire_dtype = "bfloat16"
    grads = gradients_of(arrays, 0)
    model.push(grads)
    wire.cut_at("down", wire.carried["down"] + 1)  # the answer to the next push is lost, or the push itself
    assert (model.push(grads).version, wire.cuts) == (2, 1)
    assert model.push(grads).version == 3


def test_what_is_too_large_for_the_wire_dtype_is_refused(client, arrays):
    model = client.create_model("m", arrays)
    model.wire_dtype = "float16"
    grads = {name: np.full_like(array, 7e4) for name, array in arrays.items()}
    with pytest.raises(NonFiniteError, match="gradient 'w' holds inf at element 0"):
        model.push(grads)
    model.wire_dtype = "bfloat16"
    assert model.push(grads).version == 1


@pytest.mark.parametrize("name", ["float32", "bf16", "", 16, np.float16])
def test_another_wire_dtype_is_refused(client, arrays, name):
    model = client.create_model("m", arrays)
    with pytest.raises(DtypeError, match="wire_dtype: expected 'bfloat16', 'float16' or None, got"):
        model.wire_dtype = name
    assert model.wire_dtype is None


# --- the conversions --------------------------------------------------------------------------------------------


@given(
    bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    narrow=st.sampled_from(sorted(NARROW)),
)
def test_slices_of_rounded_bytes_are_those_of_ml_dtypes(bits, cuts, narrow):
    values = np.array(bits, np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        expected = values.astype(NARROW[narrow])
        rounded_bytes = Rounded(values, FORMATS[narrow])
        assert rounded_bytes.nbytes == expected.nbytes
        places = [0, *sorted(2 * min(cut, values.size) for cut in cuts), expected.nbytes]
        got = bytearray(expected.nbytes)
        for begin, end in itertools.pairwise(places):
            rounded_bytes.write(begin, memoryview(got)[begin:end])
    found = np.frombuffer(got, NARROW[narrow])
    is_nan = np.isnan(values)
    np.testing.assert_array_equal(np.isnan(found), is_nan)
    np.testing.assert_array_equal(found[~is_nan].view(np.uint16), expected[~is_nan].view(np.uint16))


@given(
    sizes=st.lists(st.integers(1, 40), max_size=12),
    shapes=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    narrow=st.sampled_from(sorted(NARROW)),
    wide=st.sampled_from(["float32", "float64"]),
)
def test_chunks_may_divide_elements_and_arrays(sizes, shapes, narrow, wide):
    codes = np.linspace(-3, 5, sum(shapes)).astype(NARROW[narrow])
    payload = codes.tobytes()
    arrays = [np.full(shape, 7, wide) for shape in shapes]
    download = WideningDownload(arrays, FORMATS[narrow], len(payload), 1, silent)
    start = 0
    for size in [*sizes, len(payload)]:
        if part := payload[start : start + size]:
            download.take(Chunk(start, memoryview(part)))
        start += len(part)
    download.finish(xxhash.xxh3_64_intdigest(payload))
    np.testing.assert_array_equal(np.concatenate(arrays), codes.astype(wide))


def test_a_flipped_bit_is_noticed():
    codes = np.ones(8, np.uint16)
    download = WideningDownload([np.zeros(8, "f4")], Format.BFLOAT16, 16, 1, silent)
    download.take(Chunk(0, codes.view(np.uint8).data))
    with pytest.raises(CorruptTransferError, match="checksum"):
        download.finish(xxhash.xxh3_64_intdigest(codes.tobytes()) ^ 1)
