"""The audit log: who made which administrative call, when, from where, and what came of it."""

from __future__ import annotations

import itertools
import json
import logging
import stat
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.errors import AccessDeniedError, ModelExistsError, ModelNotFoundError
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server
from numba_adam.server.storage import audit_log

LONG = 800.0
WEIGHTS = np.ones(3, np.float32)


@pytest.fixture
def records(tmp_path):
    """Return a function that reads a log; the time of each record is now."""

    def read(name="audit.jsonl"):
        path = tmp_path / "data" / name
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for record in found:
            age = datetime.now(UTC) - datetime.fromisoformat(record.pop("when"))
            assert timedelta(0) <= age < timedelta(hours=1)
        return found

    return read


def test_every_administrative_call_is_noted_with_who_what_and_from_where(connect, admin, make_token, records):
    client = connect(make_token("alice", "--admin", "m"))
    client.create_model("m", {"w": WEIGHTS})
    client.snapshot("m")
    client.open_model("m").push({"w": WEIGHTS})  # not administrative
    client.open_model("m").set(lr=0.5)
    client.delete_model("m")
    found = [record for record in records() if not record["what"].startswith("token")]
    assert [(record["who"], record["what"], record["model"], record["outcome"]) for record in found] == [
        ("token alice", "CreateModel", "m", "OK"),
        ("token alice", "Snapshot", "m", "OK"),
        ("token alice", "UpdateModel", "m", "OK"),
        ("token alice", "DeleteModel", "m", "OK"),
    ]
    assert all(record["from"].startswith("ipv4:127.0.0.1:") for record in found)


def test_the_owner_and_anyone_are_told_apart(tmp_path, records):
    for setting, who in (("required", "owner"), ("off", "anyone")):
        config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "data", loopback_token=setting)
        with Server(config) as server, ParameterClient(server.address, timeout_seconds=LONG) as client:
            client.create_model(f"m-{setting}", {"w": WEIGHTS})
        assert records()[-1]["who"] == who


def test_a_call_that_fails_is_noted_with_its_status(connect, admin, records):
    client = connect(admin)
    client.create_model("m", {"w": WEIGHTS})
    with pytest.raises(ModelExistsError):
        client.create_model("m", {"w": WEIGHTS})
    with pytest.raises(ModelNotFoundError):
        client.snapshot("other")
    assert [record["outcome"] for record in records()[-2:]] == ["ALREADY_EXISTS", "NOT_FOUND"]


def test_what_a_token_does_not_allow_is_noted_apart(connect, admin, make_token, records):
    connect(admin).create_model("m", {"w": WEIGHTS})
    before = records()
    client = connect(make_token("alice", "--push", "m"))
    for call in (lambda: client.snapshot("m"), lambda: client.create_model("x", {"w": WEIGHTS})):
        with pytest.raises(AccessDeniedError):
            call()
    refused = records("audit-refused.jsonl")
    assert [(record["who"], record["what"], record["outcome"]) for record in refused] == [
        ("token alice", "Snapshot", "PERMISSION_DENIED"),
        ("token alice", "CreateModel", "PERMISSION_DENIED"),
    ]
    assert [record for record in records() if record["what"] != "token make"] == [
        record for record in before if record["what"] != "token make"
    ]


def test_changes_of_tokens_are_noted(make_token, revoke, tmp_path, records):
    make_token("alice", "--push", "m")
    assert main(["token", "limit", "alice", "--largest-push", "1", "--data-dir", str(tmp_path / "data")]) == 0
    assert revoke("alice") == 0
    assert revoke("nobody") == 1  # changes nothing
    assert [(record["what"], record["token"]) for record in records()] == [
        ("token make", "alice"),
        ("token limit", "alice"),
        ("token revoke", "alice"),
    ]


def test_the_log_is_for_its_user_only_and_has_no_token(connect, admin, tmp_path):
    connect(admin).create_model("m", {"w": WEIGHTS})
    path = tmp_path / "data" / "audit.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert admin not in path.read_text()


def test_names_cannot_forge_a_line(tmp_path):
    audit_log.note(
        tmp_path, "audit.jsonl", {"who": "token a", "model": 'm"}\n{"who": "token b"}\u2028', "what": "x" * 10_000}
    )
    (line,) = (tmp_path / "audit.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["who"], len(record["what"])) == ("token a", 500)
    assert line.isascii()


def test_it_is_rotated_and_the_newest_records_stay(tmp_path):
    for number in range(500):
        audit_log.note(tmp_path, "audit.jsonl", {"number": number}, largest_bytes=1000)
    files = [tmp_path / f"audit.jsonl{end}" for end in (".4", ".3", ".2", ".1", "")]
    assert not (tmp_path / "audit.jsonl.5").exists()
    assert all(path.stat().st_size <= 1000 for path in files)
    numbers = [json.loads(line)["number"] for path in files for line in path.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 500))
    assert len(numbers) > 4 * 8


def test_records_of_many_threads_stay_whole(tmp_path):
    def write(worker):
        for number in range(50):
            audit_log.note(tmp_path, "audit.jsonl", {"worker": worker, "number": number})

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert sorted((record["worker"], record["number"]) for record in found) == list(
        itertools.product(range(4), range(50))
    )


def test_a_log_that_cannot_be_written_is_reported_and_does_not_stop_the_call(connect, admin, tmp_path, caplog):
    (tmp_path / "data" / "audit.jsonl").unlink()
    (tmp_path / "data" / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.ERROR):
        connect(admin).create_model("m", {"w": WEIGHTS})
    assert "the audit log cannot be written" in caplog.text
    assert "CreateModel" in caplog.text
    assert not (tmp_path / "elsewhere").exists()
