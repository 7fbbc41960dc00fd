"""The recorded messages of the first release, from the client's side.

What servers answered then is understood, and what we send now is laid out as what was sent then.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from numba_adam.client.ack import ack_of
from numba_adam.client.info import model_info
from numba_adam.client.model_arrays import model_arrays_of
from numba_adam.client.progress import silent
from numba_adam.client.pull import PLAIN, Wanted, read_parameters
from numba_adam.client.transfer import Upload
from numba_adam.numerics.formats import Format
from numba_adam.ps import framing
from numba_adam.ps.v1 import parameter_service_pb2 as pb

EXCHANGES = json.loads((Path(__file__).parents[1] / "golden" / "requests-v1.json").read_text())["exchanges"]


def exchanges(call: str, status: str = "OK") -> list[dict]:
    found = [exchange for exchange in EXCHANGES if (exchange["call"], exchange["status"]) == (call, status)]
    assert found
    return found


def messages(exchange: dict, side: str) -> list[bytes]:
    return [bytes.fromhex(message) for message in exchange[side]]


@pytest.fixture
def layout():
    [exchange] = exchanges("GetModel")
    [raw] = messages(exchange, "answers")
    info = model_info(pb.GetModelResponse.FromString(raw).model)
    assert info.version > 0
    return model_arrays_of(info)


@pytest.mark.parametrize("exchange", exchanges("Pull"), ids=lambda exchange: exchange["what"])
def test_a_pull_of_the_first_release_is_read(exchange, layout):
    answers = map(framing.decode_pull_response, messages(exchange, "answers"))
    pulled = read_parameters(answers, layout, PLAIN, silent)
    assert {name: array.shape for name, array in pulled.parameters.items()} == dict(layout.shapes)
    assert all(np.isfinite(array).all() for array in pulled.parameters.values())
    assert len(pulled.state.state_id) == 32


@pytest.mark.parametrize("exchange", exchanges("Pull"), ids=lambda exchange: exchange["what"])
def test_a_pull_of_the_first_release_is_read_where_16_bits_were_asked_for(exchange, layout):
    """Servers of that release do not know the field, and send the model's dtype."""
    answers = [framing.decode_pull_response(message) for message in messages(exchange, "answers")]
    wanted = Wanted(narrow=Format.BFLOAT16, keeps_narrow=True)
    got = read_parameters(iter(answers), layout, wanted, silent).parameters
    for name, expected in read_parameters(iter(answers), layout, PLAIN, silent).parameters.items():
        np.testing.assert_array_equal(got[name], expected, strict=True)


@pytest.mark.parametrize("exchange", exchanges("PushPull"), ids=lambda exchange: exchange["what"])
def test_a_push_pull_answer_of_the_first_release_is_read(exchange, layout):
    first, *rest = map(framing.decode_push_pull_response, messages(exchange, "answers"))
    ack = ack_of(first.ack)
    pulled = read_parameters(iter(rest), layout, PLAIN, silent)
    assert ack.version == pulled.state.version
    assert ack.durability == "memory"


@pytest.mark.parametrize("exchange", exchanges("Push"), ids=lambda exchange: exchange["what"])
def test_a_push_has_the_bytes_of_the_first_release(exchange):
    header, *rest = messages(exchange, "requests")
    parts = list(map(framing.decode_push_request, rest))
    chunks = [part for part in parts if isinstance(part, framing.Chunk)]
    payload = np.frombuffer(b"".join(chunk.data for chunk in chunks), np.uint8)
    sent = pb.PushRequest.FromString(header).header
    assert payload.nbytes == sent.total_bytes
    assert [framing.encode_chunk(chunk.offset, chunk.data) for chunk in chunks] == rest[: len(chunks)]
    if len(chunks) == 1:
        assert list(Upload(header, [payload], sent.checksum_kind, silent).messages()) == [header, *rest]
