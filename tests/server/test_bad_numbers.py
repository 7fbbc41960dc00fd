"""A push with a number that no update may take is refused, wherever the number is; nothing changes.

The places are the first and the last element, both sides of the borders of chunks, and others at random. The answer to
a retry is the same, and the next push is as if the bad one had never been.
"""

import random

import grpc
import numpy as np
import pytest

from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason

BFLOAT16 = model_pb2.DTYPE_BFLOAT16
BAD = {"float32": [np.nan, np.inf, -np.inf, 1e30, -1.9e19], "float64": [np.nan, np.inf, -np.inf, 1e200]}


def whole_state(server):
    model = server._runtime.registry.get("model")
    record = {**model.ledger.to_record(), "sessions": None}  # a refused push uses its number
    return record, [array.tobytes() for array in model.arena.state_arrays().values()]


def places(draw, size, chunk):
    """Return where the bad number goes: a border, an end, or anywhere."""
    borders = [each + side for each in range(chunk, size, chunk) for side in (-1, 0)]
    return draw.choice([0, size - 1, draw.randrange(size), *(draw.sample(borders, 1) if borders else [])])


@pytest.mark.parametrize("pushes", [12, pytest.param(100, marks=pytest.mark.campaign)])
@pytest.mark.parametrize("level", ["memory", "process", "disk"])
def test_a_bad_number_changes_nothing_wherever_it_is(server, peer, refused, level, pushes, campaign):
    draw = random.Random(campaign.seed(3))
    for turn in range(pushes):
        dtype = draw.choice(["float32", "float32", "float64"])
        sizes = [draw.choice([1, 7, 64, 4096, 5000, draw.randrange(1, 90_000)]) for _ in range(draw.randrange(1, 4))]
        params = {f"p{number}": np.ones(size, dtype) for number, size in enumerate(sizes)}
        peer.create(params, durability=model_pb2.Durability.Value(f"DURABILITY_{level.upper()}"))
        session, total = peer.session(), sum(sizes)
        flat = np.random.default_rng(turn).standard_normal(total).astype(dtype)
        chunk = draw.choice([256, 1000, 4096, 1 << 16, 1 << 20])  # elements
        bad = flat.copy()
        bad[places(draw, total, chunk)] = draw.choice(BAD[dtype])
        narrow = dtype == "float32" and draw.random() < 0.3

        def as_sent(values, sizes=sizes, params=params, narrow=narrow):
            if narrow:
                values = (values.view(np.uint32) >> 16).astype(np.uint16)  # every bad number stays one
            return dict(zip(params, np.split(values, np.cumsum(sizes)[:-1]), strict=True))

        changes = {"dtype": BFLOAT16} if narrow else {}
        chunk_bytes = chunk * (2 if narrow else flat.itemsize)
        session.push(as_sent(flat), chunk_bytes=chunk_bytes, **changes)
        before = whole_state(server)
        refusal = refused(lambda: session.push(as_sent(bad), chunk_bytes=chunk_bytes, **changes))  # noqa: B023
        assert (refusal.code, refusal.detail.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_NON_FINITE)
        assert refusal.detail.sequence_recorded
        assert whole_state(server) == before
        assert refused(lambda: session.push(as_sent(bad), **changes)) == refusal  # noqa: B023
        assert session.push(as_sent(flat), sequence=3, **changes).version == 2
        peer.stub.DeleteModel(pb.DeleteModelRequest(model="model"))
    campaign.did(refused=pushes)
