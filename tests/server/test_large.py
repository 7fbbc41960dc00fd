"""One push and one pull of 1 GB, on real memory, through the service."""

import numpy as np
import pytest
import xxhash

import numba_adam as na
from numba_adam.ps.v1 import model_pb2, transfer_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

BLOCK = 1 << 18  # elements of one chunk of 1 MiB
BLOCKS = 954  # 1,000,341,504 bytes


def transfer(request, header, block):
    """Yield the messages of a transfer that repeats one block, without memory for all of it."""
    checksum = xxhash.xxh3_64()
    raw = block.tobytes()
    yield request(header=header)
    for number in range(BLOCKS):
        checksum.update(raw)
        yield request(chunk=transfer_pb2.TensorChunk(offset=number * len(raw), data=raw))
    yield request(trailer=transfer_pb2.TransferTrailer(checksum=checksum.intdigest()))


@pytest.mark.campaign
def test_a_push_of_1_gb_is_applied_and_pulled(tmp_path, processes, peers):
    process = processes(tmp_path / "data", memory_budget_bytes=6 << 30)
    peer = peers(process.address)
    tensors = [model_pb2.TensorSpec(name="x", shape=[BLOCKS, BLOCK])]
    total_bytes = BLOCKS * BLOCK * 4
    rng = np.random.default_rng(9)
    start, grad = (rng.standard_normal(BLOCK, dtype=np.float32) for _ in range(2))
    spec = model_pb2.ModelSpec(name="model", dtype=model_pb2.DTYPE_FLOAT32, tensors=tensors)
    header = pb.CreateModelHeader(spec=spec, request_id="r", total_bytes=total_bytes, checksum_kind=1)
    peer.stub.CreateModel(transfer(pb.CreateModelRequest, header, start), timeout=800)
    session = peer.session()
    header = session.header({}, tensors=tensors, total_bytes=total_bytes)
    assert peer.stub.Push(transfer(pb.PushRequest, header, grad), timeout=800).ack.version == 1

    na.adam_update(start, grad, np.zeros_like(start), np.zeros_like(start), 1)
    expected, position = start.tobytes(), 0
    for answer in peer.stub.Pull(pb.PullRequest(model="model", checksum_kind=1), timeout=800):
        if answer.WhichOneof("part") == "chunk":
            assert answer.chunk.offset == position
            assert answer.chunk.data == expected  # the server's chunks are blocks, too
            position += len(answer.chunk.data)
    assert position == total_bytes
    process.kill()  # a last snapshot of 3 GB would prove nothing
