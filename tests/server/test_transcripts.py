"""What clients of the first release send, kept byte for byte: it must be served, and answered the same, for ever.

The server is started on the golden snapshot, whose state id and sessions the requests name.
"""

import json
from pathlib import Path

import grpc
import pytest

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TRANSCRIPT = json.loads((GOLDEN / "requests-v1.json").read_text())


@pytest.fixture
def golden_server(tmp_path):
    folder = tmp_path / "data" / "models" / "golden"
    folder.mkdir(parents=True)
    (folder / "00000001.snapshot").write_bytes((GOLDEN / "snapshot-v1.safetensors").read_bytes())
    config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", snapshot_interval_seconds=0)
    with Server(config) as server:
        yield server


def ask(channel, exchange):
    """Send an exchange's messages as they stand; return what comes back, as hexadecimal digits, and the status."""
    requests = [bytes.fromhex(message) for message in exchange["requests"]]
    call = channel.stream_stream(f"/numba_adam.ps.v1.ParameterService/{exchange['call']}", None, None)(iter(requests))
    answers = []
    try:
        answers.extend(answer.hex() for answer in call)
    except grpc.RpcError as error:
        return answers, error.code().name
    return answers, "OK"


def test_every_exchange_of_format_1_is_answered_as_it_was(golden_server):
    with grpc.insecure_channel(golden_server.address) as channel:
        for exchange in TRANSCRIPT["exchanges"]:
            assert ask(channel, exchange) == (exchange["answers"], exchange["status"]), exchange["what"]


def test_the_transcript_has_every_call():
    assert {exchange["call"] for exchange in TRANSCRIPT["exchanges"]} == {
        "CreateModel",
        "DeleteModel",
        "GetModel",
        "ListModels",
        "OpenSession",
        "Pull",
        "Push",
        "PushPull",
    }
