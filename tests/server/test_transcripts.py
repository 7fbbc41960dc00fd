"""Recorded requests of released clients: they must get the same answers forever.

Format 1 is the first release's; format 2 has what came after it: content under a number, openings and deletions that
say what they know, pages. The server is started on the golden snapshot of the same format, whose state id and sessions
the requests name.
"""

import json
from pathlib import Path

import grpc
import pytest

from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TRANSCRIPTS = {number: json.loads((GOLDEN / f"requests-v{number}.json").read_text()) for number in (1, 2)}


@pytest.fixture
def golden_server(tmp_path, number):
    folder = tmp_path / "data" / "models" / "golden"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "lock").touch()  # so did the first release leave a folder after a clean stop
    (folder / "00000001.snapshot").write_bytes((GOLDEN / f"snapshot-v{number}.safetensors").read_bytes())
    config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", snapshot_interval_seconds=0)
    with Server(config) as server:
        yield server


def ask(channel, exchange):
    """Send recorded messages; return the answers in hexadecimal, and the status."""
    requests = [bytes.fromhex(message) for message in exchange["requests"]]
    call = channel.stream_stream(f"/numba_adam.ps.v1.ParameterService/{exchange['call']}", None, None)(iter(requests))
    answers = []
    try:
        answers.extend(answer.hex() for answer in call)
    except grpc.RpcError as error:
        return answers, error.code().name
    return answers, "OK"


def assert_answered_as_it_was(server, number):
    with grpc.insecure_channel(server.address) as channel:
        for exchange in TRANSCRIPTS[number]["exchanges"]:
            assert ask(channel, exchange) == (exchange["answers"], exchange["status"]), exchange["what"]


@pytest.mark.parametrize("number", [1])
def test_every_exchange_of_format_1_gets_the_same_answer(golden_server, number):
    assert_answered_as_it_was(golden_server, number)


@pytest.mark.parametrize("number", [2])
def test_every_exchange_of_format_2_gets_the_same_answer(golden_server, number):
    assert_answered_as_it_was(golden_server, number)


def test_the_transcript_has_every_call():
    assert {exchange["call"] for exchange in TRANSCRIPTS[1]["exchanges"]} == {
        "CreateModel",
        "DeleteModel",
        "GetModel",
        "ListModels",
        "OpenSession",
        "Pull",
        "Push",
        "PushPull",
    }
