"""Limits of requests: a request beyond them is refused before it is converted."""

import subprocess
import sys
from contextlib import ExitStack

import grpc
import numpy as np
import pytest

from numba_adam.errors import BudgetExceededError, TransferTooLargeError
from numba_adam.ps import framing
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.runtime.budget import SMALL_CHANGE_BYTES, SlotPool
from numba_adam.server.transport.requests import Requests


@pytest.fixture
def worker(peer, params):
    peer.create(params)
    return peer.session()


@pytest.fixture
def grads(params, grads_of):
    return grads_of(params, np.random.default_rng(1))


def test_a_model_has_at_most_65536_arrays(peer, refused):
    """They are refused before conversion, which would take minutes."""
    tensors = [model_pb2.TensorSpec(name=f"{number:x}", shape=[0]) for number in range((1 << 16) + 1)]
    spec = model_pb2.ModelSpec(name="m", dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors)
    header = pb.CreateModelHeader(spec=spec, request_id="r")
    refusal = refused(lambda: peer.stub.CreateModel(iter([pb.CreateModelRequest(header=header)]), timeout=800))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.message == "65537 arrays are named: a model has at most 65536"


@pytest.mark.parametrize("field", ["tensors", "absent"])
def test_a_push_with_too_many_arrays_changes_nothing(worker, grads, peer, refused, field):
    before = peer.pull()
    one = model_pb2.TensorSpec(name="x") if field == "tensors" else "x"
    refusal = refused(lambda: worker.push(grads, **{field: [one] * ((1 << 16) + 1)}))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "a model has at most 65536" in refusal.message
    assert not refusal.detail.sequence_recorded
    assert peer.pull().state == before.state
    assert worker.push(grads).version == 1


def test_an_array_of_more_than_32_dimensions_is_refused(worker, grads, refused):
    tensor = model_pb2.TensorSpec(name="weight", shape=[1] * 100_000)
    refusal = refused(lambda: worker.push(grads, tensors=[tensor]))
    assert refusal.message == "array 'weight' has 100000 dimensions: at most 32 are allowed"
    assert worker.push(grads).version == 1


def test_names_too_long_for_a_snapshot_are_refused(peer, refused):
    """JSON encodes each character as 12."""
    tensors = [model_pb2.TensorSpec(name=chr(0x10300 + number // 20) * 250 + f"{number}") for number in range(2200)]
    spec = model_pb2.ModelSpec(name="m", dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors)
    header = pb.CreateModelHeader(spec=spec, request_id="r")
    refusal = refused(lambda: peer.stub.CreateModel(iter([pb.CreateModelRequest(header=header)]), timeout=800))
    assert (refusal.code, "use shorter ones" in refusal.message) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    "call",
    [
        lambda stub, name: stub.GetModel(pb.GetModelRequest(model=name)),
        lambda stub, name: stub.DeleteModel(pb.DeleteModelRequest(model=name)),
        lambda stub, name: stub.OpenSession(pb.OpenSessionRequest(model=name)),
        lambda stub, name: stub.Snapshot(pb.SnapshotRequest(model=name)),
        lambda stub, name: list(stub.Pull(pb.PullRequest(model=name, checksum_kind=1))),
    ],
)
def test_an_oversized_request_is_refused_before_parsing(peer, refused, call):
    refusal = refused(lambda: call(peer.stub, "x" * 20_000))
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "this call allows at most 16384" in refusal.message


def test_a_kept_rejection_is_shortened_and_its_retry_gets_the_same(worker, refused, grads):
    """The server keeps only a part of each name; twenty names of 256 characters would be 5,000."""
    names = [f"{number:03}" + "n" * 253 for number in range(20)]
    first = refused(lambda: worker.push(grads, absent=names))
    assert (first.detail.reason, first.detail.sequence_recorded) == (Reason.REASON_PUSH_MISMATCH, True)
    assert len(first.message) <= 504
    assert refused(lambda: worker.push(grads, sequence=1, absent=names)).message == first.message


def header_of(arrays):
    tensors = [model_pb2.TensorSpec(name=f"layer.{number:06}", shape=[0]) for number in range(arrays)]
    return pb.PushRequest(header=pb.PushHeader(model="model", tensors=tensors)).SerializeToString()


def test_a_large_header_counts_until_its_call_ends():
    pool, raw = SlotPool(1 << 24), header_of(10_000)
    pool.keep("sessions", SMALL_CHANGE_BYTES, "sessions")
    with ExitStack() as held:
        header = Requests(pool).parse_part(framing.decode_push_request, raw, held)
        assert len(header.header.tensors) == 10_000
        assert pool.used_bytes == 48 * len(raw)
    assert pool.used_bytes == 0


def test_a_header_beyond_the_free_budget_is_not_parsed():
    """It may take forty times its own size."""

    def parse(_):
        raise AssertionError("it was parsed")

    raw = header_of(50_000)
    pool = SlotPool(2 * SMALL_CHANGE_BYTES)
    pool.admit_model("m", SMALL_CHANGE_BYTES, SMALL_CHANGE_BYTES // 2)
    with pytest.raises(BudgetExceededError, match=f"a header or trailer of {len(raw)} bytes"):
        Requests(pool).parse_part(parse, raw, ExitStack())
    assert pool.used_bytes == SMALL_CHANGE_BYTES
    with pytest.raises(TransferTooLargeError):
        Requests(SlotPool(1 << 20)).parse_part(parse, raw, ExitStack())


HEADER, CHUNK, TRAILER, TENSOR, ABSENT, UNKNOWN = b"\x0a", b"\x12", b"\x1a", b"\x42", b"\x4a", b"\x78\x01"


def part(key, content=b""):
    size, length = b"", len(content)
    while length >= 0x80:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    return key + size + bytes([length]) + content


def many(unit):
    return unit * (4_000_000 // len(unit))


PATTERNS = {
    "dimensions": lambda: part(HEADER, part(TENSOR, part(b"\x12", many(b"\x01")))),
    "dimensions, beyond a power of two": lambda: part(HEADER, part(TENSOR, part(b"\x12", b"\x01" * (2**21 + 1)))),
    "empty arrays": lambda: part(HEADER, many(part(TENSOR))),
    "empty arrays, beyond a power of two": lambda: part(HEADER, part(TENSOR) * (2**20 + 1)),
    "arrays of one dimension": lambda: part(HEADER, many(part(TENSOR, b"\x10\x01"))),
    "arrays of five dimensions": lambda: part(HEADER, many(part(TENSOR, part(b"\x12", bytes(5))))),
    "unknown fields in arrays": lambda: part(HEADER, part(TENSOR, UNKNOWN) * (2**19 + 1)),
    "empty names": lambda: part(HEADER, part(ABSENT) * (2**20 + 1)),
    "unknown fields": lambda: part(HEADER, many(UNKNOWN)),
    "headers that trailers replace": lambda: many(part(HEADER) + part(TRAILER)),
    "full headers that trailers replace": lambda: many(part(HEADER, part(TENSOR) + part(ABSENT)) + part(TRAILER)),
    "chunks that trailers replace": lambda: many(part(CHUNK, UNKNOWN) + part(TRAILER)),
    "one long name": lambda: part(HEADER, part(b"\x0a", many(b"m"))),
    "one name again and again": lambda: part(HEADER, many(part(b"\x0a", b"m"))),
}
MEASURED = """
import sys
from contextlib import ExitStack
from pathlib import Path
from numba_adam.ps import framing
from numba_adam.server.runtime.budget import SMALL_CHANGE_BYTES, SlotPool
from numba_adam.server.transport.requests import Requests

def resident(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(entry))

raw, held, pool = sys.stdin.buffer.read(), ExitStack(), SlotPool(1 << 30)
pool.keep("sessions", SMALL_CHANGE_BYTES, "sessions")
requests = Requests(pool)
requests.parse_part(framing.decode_push_request, raw[:0], held)
before = resident("VmRSS")
parsed = requests.parse_part(framing.decode_push_request, raw, held)
print(resident("VmHWM") - before, pool.used_bytes)
"""


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_message_takes_more_memory_than_is_counted(pattern):
    """Compares the peak memory of a separate process with the counted memory."""
    run = subprocess.run([sys.executable, "-c", MEASURED], input=PATTERNS[pattern](), capture_output=True, check=True)
    taken, counted = map(int, run.stdout.split())
    assert 0 < taken <= counted


def test_headers_of_more_than_a_kibibyte_count_in_every_call():
    """Sixteen kibibytes once became six hundred, uncounted, in each of hundreds of calls."""
    pool, raw = SlotPool(1 << 24), header_of(60)
    assert 1 << 10 < len(raw) < 1 << 11
    pool.keep("sessions", SMALL_CHANGE_BYTES, "sessions")
    with ExitStack() as held:
        for _ in range(3):
            Requests(pool).parse_part(framing.decode_push_request, raw, held)
        assert pool.used_bytes == 3 * 48 * len(raw)
    assert pool.used_bytes == 0


def test_chunks_do_not_count_as_headers():
    """They are viewed, not parsed, and their memory was admitted with the transfer."""
    pool = SlotPool(1 << 20)
    pool.keep("sessions", SMALL_CHANGE_BYTES + (1 << 20), "sessions", must=True)
    chunk = Requests(pool).parse_part(framing.decode_push_request, framing.encode_chunk(7, bytes(1 << 20)), ExitStack())
    assert (chunk.offset, chunk.data.nbytes) == (7, 1 << 20)


@pytest.mark.parametrize("damage", [b"\xff" * 20_000, b"\x0a\xff\xff\x7f" + b"\x42" * 20_000])
def test_a_large_undecodable_message_is_an_invalid_request_and_is_not_counted(damage, peer, refused):
    call = peer.channel.stream_unary("/numba_adam.ps.v1.ParameterService/Push", None, None)
    refusal = refused(lambda: call(iter([damage]), timeout=800))
    assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_REQUEST)
    assert peer.stub.GetServerStatus(pb.GetServerStatusRequest()).memory_used_bytes == 0
