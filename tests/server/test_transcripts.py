"""Recorded requests of released clients: they must get the same answers forever.

Format 1 is the first release's; format 2 has what came after it: content under a number, openings and deletions that
say what they know, pages. The server is started on the golden snapshot of the same format, whose state id and sessions
the requests name. A server that asks for a token answers the same, once it gets one.
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
def golden_server(tmp_path, monkeypatch, number, loopback_token):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    folder = tmp_path / "data" / "models" / "golden"
    folder.mkdir(parents=True)
    (tmp_path / "data" / "lock").touch()  # so did the first release leave a folder after a clean stop
    (folder / "00000001.snapshot").write_bytes((GOLDEN / f"snapshot-v{number}.safetensors").read_bytes())
    config = ServerConfig(
        listen="127.0.0.1:0", data_dir=tmp_path / "data", snapshot_interval_seconds=0, loopback_token=loopback_token
    )
    with Server(config) as server:
        yield server


@pytest.fixture
def metadata(golden_server, tmp_path):
    """What every call sends: the token that the server has written for its own user, if it asks for one."""
    files = list((tmp_path / "configuration").glob("numba-adam/loopback/*.token"))
    return [("authorization", f"Bearer {path.read_text().strip()}") for path in files]


def ask(channel, exchange, metadata):
    """Send recorded messages; return the answers in hexadecimal, and the status."""
    requests = [bytes.fromhex(message) for message in exchange["requests"]]
    call = channel.stream_stream(f"/numba_adam.ps.v1.ParameterService/{exchange['call']}", None, None)(
        iter(requests), metadata=metadata
    )
    answers = []
    try:
        answers.extend(answer.hex() for answer in call)
    except grpc.RpcError as error:
        return answers, error.code().name
    return answers, "OK"


def assert_answered_as_it_was(server, number, metadata):
    with grpc.insecure_channel(server.address) as channel:
        for exchange in TRANSCRIPTS[number]["exchanges"]:
            assert ask(channel, exchange, metadata) == (exchange["answers"], exchange["status"]), exchange["what"]


@pytest.mark.parametrize("loopback_token", ["off", "required"])
@pytest.mark.parametrize("number", [1])
def test_every_exchange_of_format_1_gets_the_same_answer(golden_server, number, loopback_token, metadata):
    assert bool(metadata) == (loopback_token == "required")
    assert_answered_as_it_was(golden_server, number, metadata)


@pytest.mark.parametrize("loopback_token", ["off", "required"])
@pytest.mark.parametrize("number", [2])
def test_every_exchange_of_format_2_gets_the_same_answer(golden_server, number, loopback_token, metadata):
    assert bool(metadata) == (loopback_token == "required")
    assert_answered_as_it_was(golden_server, number, metadata)


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
