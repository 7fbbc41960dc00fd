"""docs/wire.md: its named tests exist, and its error table matches the code."""

from __future__ import annotations

import re
from pathlib import Path

from numba_adam import errors
from numba_adam.client.transport.retry import Backoff
from numba_adam.errors import ServiceError
from numba_adam.ps.errors import TABLE
from numba_adam.ps.v1.error_pb2 import Reason

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "wire.md"
TEXT = DOCUMENT.read_text()


def test_every_named_test_exists():
    named = re.findall(r"\]\((\.\./tests/[\w/]+\.py)#(\w+)\)", TEXT)
    assert len(named) > 40
    sources = {path: (DOCUMENT.parent / path).read_text() for path, _ in named}
    missing = [(path, name) for path, name in named if not re.search(rf"^def {name}\(", sources[path], re.MULTILINE)]
    assert missing == []


def test_the_error_table_matches_the_code():
    written = re.findall(r"^\| `(REASON_\w+)` \| `(\w+)` \| `(\w+)` \|", TEXT, re.MULTILINE)
    own = [row for row in TABLE if row.reason and row.error not in (errors.ConfigurationError, ServiceError)]
    assert written == [(Reason.Name(row.reason), row.code.name, row.error.__name__) for row in own]


def test_the_pauses_match_the_defaults():
    assert f"from {Backoff().first_seconds:g} to {Backoff().ceiling_seconds:g} seconds" in TEXT
