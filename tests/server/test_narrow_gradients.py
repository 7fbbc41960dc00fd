"""Gradients in bfloat16 and float16 are received, checked and widened exactly to the model's element type."""

from __future__ import annotations

import re

import grpc
import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.errors import CorruptTransferError, NonFiniteError
from numba_adam.ps.transfer import Chunk
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime.widening import WideningReceiver

NARROW = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
NUMBERS = {"bfloat16": model_pb2.DTYPE_BFLOAT16, "float16": model_pb2.DTYPE_FLOAT16}
EXPONENTS = {"bfloat16": 0x7F80, "float16": 0x7C00}  # all of these bits are set in NaN and infinity only
EVERY_CODE = np.arange(1 << 16, dtype=np.uint16)


def received(values, sizes, dtype, *, checksum=None, limit=np.inf):
    """Receive 16-bit values in chunks of these sizes and the rest; return what was written."""
    payload = values.view(np.uint16).tobytes()
    target = np.full(values.size * np.dtype(dtype).itemsize, 0xAA, np.uint8)
    tensors = (Tensor("first", (values.size - 1,)), Tensor("last", ()))
    receiver = WideningReceiver(target, np.dtype(dtype), tensors, 1, "gradient", limit, narrow_dtype=values.dtype.name)
    start = 0
    for size in [*sizes, len(payload)]:
        if part := payload[start : start + size]:
            receiver.take(Chunk(start, memoryview(part)))
        start += len(part)
    receiver.finish(xxhash.xxh3_64_intdigest(payload) if checksum is None else checksum)
    return target.view(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 4095, 32769, 1 << 17])
def test_every_finite_number_is_widened_exactly(narrow, dtype, chunk_bytes):
    """Subnormal numbers and both zeros among them; the oracle is ml_dtypes' and NumPy's conversion."""
    exponent = EXPONENTS[narrow]
    values = EVERY_CODE[EVERY_CODE & exponent != exponent].view(NARROW[narrow])
    if chunk_bytes < 4:
        values = values[::31]
    got = received(values, [chunk_bytes] * (2 * values.size // chunk_bytes), dtype)
    unsigned = np.dtype(f"u{got.itemsize}")
    np.testing.assert_array_equal(got.view(unsigned), values.astype(dtype).view(unsigned))


@given(
    sizes=st.lists(st.integers(1, 40), max_size=12), count=st.integers(1, 60), narrow=st.sampled_from(sorted(NARROW))
)
def test_chunks_may_divide_elements(sizes, count, narrow):
    values = np.linspace(-3, 5, count).astype(NARROW[narrow])
    np.testing.assert_array_equal(received(values, sizes, "float32"), values.astype(np.float32))


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("element", [0, 1, 16383, 16384, 39999])
def test_a_number_that_is_not_finite_is_named(narrow, value, element):
    values = np.ones(40000, NARROW[narrow])
    values[element] = value
    place = r"'last' holds .* element 0" if element == 39999 else f"'first' holds {value} at element {element}"
    for chunk_bytes in (7, 32768, 80000):
        with pytest.raises(NonFiniteError, match=rf"gradient {place}\b"):
            received(values, [chunk_bytes] * (80000 // chunk_bytes), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("narrow", "code"), [("bfloat16", 0x7F81), ("float16", 0x7C01), ("float16", 0xFFFF)])
def test_every_kind_of_nan_is_refused(narrow, code, dtype):
    """Signaling ones too, whose conversion is an exception to the CPU."""
    values = np.array([1, code, 1], np.uint16).view(NARROW[narrow])
    with pytest.raises(NonFiniteError, match="'first' holds nan at element 1"):
        received(values, [], dtype)


def test_the_limit_is_that_of_the_widened_values():
    values = np.array([1, 2.0**63, 2.0**65], NARROW["bfloat16"])
    with pytest.raises(NonFiniteError, match=r"'last' holds 3\.6\S+e\+19 at element 0: its square overflows float32"):
        received(values, [], "float32", limit=2.0**64)
    received(values, [], "float64", limit=2.0**512)


def test_a_flipped_bit_is_a_corrupt_transfer_even_if_it_makes_a_nan():
    values = np.array([1, np.nan, 2], NARROW["bfloat16"])
    sent = np.array([1, 3, 2], NARROW["bfloat16"]).view(np.uint16).tobytes()
    with pytest.raises(CorruptTransferError, match="checksum"):
        received(values, [3], "float32", checksum=xxhash.xxh3_64_intdigest(sent))


# --- over the wire ----------------------------------------------------------------------------------------------


@pytest.fixture
def grads(params, grads_of):
    return grads_of(params, np.random.default_rng(1))


@pytest.fixture
def worker(peer, params):
    """A session on a model called "model"."""
    peer.create(params)
    return peer.session()


@pytest.fixture
def digest(peer):
    """Return a function that reads the model's version and all its parameters."""

    def read():
        pulled = peer.pull()
        return pulled.state.version, [array.tobytes() for array in pulled.arrays.values()]

    return read


def narrowed(grads, narrow):
    """Return the gradients in a 16-bit format, and the same numbers in the model's."""
    rounded = {name: array.astype(NARROW[narrow]) for name, array in grads.items()}
    return (
        {name: array.view(np.uint16) for name, array in rounded.items()},
        {name: array.astype(grads[name].dtype) for name, array in rounded.items()},
    )


@pytest.mark.parametrize("narrow", NARROW)
def test_a_narrow_push_gives_the_bits_of_a_wide_one(peer, params, grads, narrow):
    peer.create(params, "wide")
    peer.create(params, "narrow")
    wide, narrow_session = peer.session("wide"), peer.session("narrow")
    codes, widened = narrowed(grads, narrow)
    for _ in range(3):
        wide.push(widened)
        narrow_session.push(codes, dtype=NUMBERS[narrow])
    left, right = peer.pull("wide"), peer.pull("narrow")
    assert (left.state.version, right.state.version) == (3, 3)
    for name, array in left.arrays.items():
        assert array.tobytes() == right.arrays[name].tobytes()


def test_a_narrow_push_repeated_gets_its_answer_and_other_content_is_refused(worker, grads, refused):
    codes, widened = narrowed(grads, "bfloat16")
    first = worker.push(codes, dtype=NUMBERS["bfloat16"])
    again = worker.push(codes, dtype=NUMBERS["bfloat16"], sequence=1)
    assert (first.version, again.version, first.duplicate, again.duplicate) == (1, 1, False, True)
    for other, number in ((widened, model_pb2.DTYPE_FLOAT32), (codes, NUMBERS["float16"])):
        refusal = refused(lambda other=other, number=number: worker.push(other, dtype=number, sequence=1))
        assert refusal.detail.reason == Reason.REASON_SEQUENCE_REUSED
    assert worker.push(widened, sequence=2).version == 2


def test_a_narrow_push_without_some_gradients_changes_the_others(peer, params, grads):
    peer.create(params)
    codes, _ = narrowed(grads, "float16")
    name = next(iter(codes))
    peer.session().push({**codes, name: None}, dtype=NUMBERS["float16"])
    pulled = peer.pull().arrays
    assert pulled[name].tobytes() == params[name].tobytes()
    assert any(pulled[other].tobytes() != params[other].tobytes() for other in codes if other != name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_bytes": 344}, r"total_bytes=344: these arrays have 172 bytes of bfloat16"),
        ({"total_bytes": 171}, r"total_bytes=171: these arrays have 172 bytes of bfloat16"),
        ({"dtype": 5}, "dtype=5: model 'model' has float32; convert the gradients"),
    ],
)
def test_an_unsuitable_narrow_push_is_rejected(worker, grads, refused, digest, changes, words):
    codes, _ = narrowed(grads, "bfloat16")
    before = digest()
    refusal = refused(lambda: worker.push(codes, **{"dtype": NUMBERS["bfloat16"], **changes}))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_PUSH_MISMATCH)
    assert re.search(words, refusal.message), refusal.message
    assert digest() == before
    assert worker.push(codes, dtype=NUMBERS["bfloat16"], sequence=2).version == 1


@pytest.mark.parametrize("narrow", NARROW)
def test_a_narrow_push_with_a_nan_is_rejected(worker, grads, refused, digest, narrow):
    codes, _ = narrowed(grads, narrow)
    codes["bias"] = codes["bias"].copy()
    codes["bias"][69] = np.array(np.nan, NARROW[narrow]).view(np.uint16)
    before = digest()
    refusal = refused(lambda: worker.push(codes, dtype=NUMBERS[narrow]))
    assert refusal.detail.reason == Reason.REASON_NON_FINITE
    assert "gradient 'bias' holds nan at element 69" in refusal.message
    assert digest() == before


@pytest.mark.parametrize("narrow", NARROW)
def test_a_model_of_a_narrow_dtype_is_refused(peer, refused, narrow):
    spec = model_pb2.ModelSpec(name="m", dtype=NUMBERS[narrow], tensors=[model_pb2.TensorSpec(name="w", shape=[2])])
    header = pb.CreateModelHeader(spec=spec, request_id="r", total_bytes=4, checksum_kind=1)
    refusal = refused(lambda: peer.stub.CreateModel(iter([pb.CreateModelRequest(header=header)])))
    assert refusal.detail.reason == Reason.REASON_INVALID_REQUEST
    assert f"dtype={NUMBERS[narrow]}: it must be DTYPE_FLOAT32 (1) or DTYPE_FLOAT64 (2)" in refusal.message
