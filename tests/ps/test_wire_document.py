"""docs/wire.md: its named tests exist, and its error table matches the code."""

from __future__ import annotations

import re
from pathlib import Path

import grpc

from numba_adam import errors
from numba_adam.client.transport.retry import Backoff, is_retryable
from numba_adam.errors import ServiceError
from numba_adam.ps.errors import TABLE, from_rpc_error
from numba_adam.ps.v1.error_pb2 import Reason

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "wire.md"
TEXT = DOCUMENT.read_text()


class Failure(grpc.RpcError, grpc.Call):
    """A failed call without our ErrorDetail."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return "failed"

    def trailing_metadata(self) -> tuple[()]:
        return ()

    initial_metadata = is_active = time_remaining = cancel = add_callback = trailing_metadata


def test_every_named_test_exists():
    named = re.findall(r"\]\((\.\./tests/[\w/]+\.py)#(\w+)\)", TEXT)
    assert len(named) > 110
    sources = {path: (DOCUMENT.parent / path).read_text() for path, _ in named}
    missing = [(path, name) for path, name in named if not re.search(rf"^def {name}\(", sources[path], re.MULTILINE)]
    assert missing == []


def test_the_error_table_matches_the_code():
    written = re.findall(r"^\| `(REASON_\w+)` \| `(\w+)` \| `(\w+)` \|", TEXT, re.MULTILINE)
    own = [row for row in TABLE if row.reason and row.error not in (errors.ConfigurationError, ServiceError)]
    assert written == [(Reason.Name(row.reason), row.code.name, row.error.__name__) for row in own]


def test_every_section_of_the_rules_ends_with_its_tests():
    sections = re.split(r"^##+ ", TEXT[TEXT.index("\n## The rules\n") :], flags=re.MULTILINE)[1:]
    assert len(sections) >= 13
    ending = re.compile(r"<details><summary>Tests</summary>\n\n(- \[[^\]\n]+\]\(\.\./tests/\S+\)\n)+\n</details>\n*\Z")
    assert [section.splitlines()[0] for section in sections if not ending.search(section)] == []


def test_the_quoted_program_is_the_example():
    program = (DOCUMENT.parent.parent / "examples" / "node" / "worker.js").read_text()
    quoted = re.findall(r"^```js\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(quoted) >= 4
    assert [excerpt for excerpt in quoted if excerpt not in program] == []


def test_what_to_send_again_is_what_our_client_sends_again():
    (rows,) = re.findall(r"^\| what a call got \| what to do \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    by_reason, by_status, *others = rows.splitlines()
    assert set(re.findall(r"`REASON_(\w+)`", by_reason)) == {
        Reason.Name(row.reason).removeprefix("REASON_")
        for row in TABLE
        if row.reason and is_retryable(row.error("failed"))
        if row.reason != Reason.REASON_INTERNAL  # retried without a detail only
    }
    assert set(re.findall(r"`([A-Z_]+)`", by_status)) == {
        code.name for code in grpc.StatusCode if code.value[0] and is_retryable(from_rpc_error(Failure(code)))
    }
    assert len(others) >= 5


def test_the_pauses_match_the_defaults():
    assert f"from {Backoff().first_seconds:g} to {Backoff().ceiling_seconds:g} seconds" in TEXT
