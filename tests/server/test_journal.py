"""The journal of a model at the level `process`: records, and the events in them."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.errors import CorruptSnapshotError
from numba_adam.server.model.events import Acceptance, Opening, Rejection, decode, encode, replay
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.storage.journal import Journal, read

texts = st.text(max_size=20)
numbers = st.integers(0, 2**63)
scales = st.floats(min_value=2.0**-1074, allow_infinity=False)
contents = st.builds(Content, texts, st.none() | texts)
keys = st.builds(PushKey, st.just("state"), texts, numbers, numbers)
events = st.one_of(
    st.builds(Opening, texts, texts),
    st.builds(Acceptance, keys, numbers, st.lists(st.booleans()).map(tuple), contents, numbers, scales),
    st.builds(Rejection, keys, numbers, texts, contents),
)


@given(events)
def test_an_event_is_read_as_it_was_written(event):
    assert decode(encode(event), "state") == event


@given(st.binary(max_size=60))
def test_other_bytes_are_no_event(raw):
    try:
        event = decode(raw, "state")
    except ValueError:
        return
    assert encode(event) == raw


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["open", "accept", "reject"]), st.booleans())))
def test_events_give_the_same_ledger_again(calls):
    ledger, noted = PushLedger("state", 2), []
    begun = PushLedger.from_record(json.loads(json.dumps(ledger.to_record())))
    for worker, kind, is_present in calls:
        worker_id = f"worker-{worker}"
        session = ledger.sessions.get(worker_id)
        if kind == "open" or session is None:
            event = Opening(worker_id, f"nonce-{len(noted)}")
            ledger.open_session(worker_id, event.nonce, ledger.last_epoch)
        else:
            key = PushKey("state", worker_id, session.epoch, session.last_sequence + 1)
            if kind == "accept":
                event = Acceptance(key, ledger.version, (is_present, True), Content("header", "payload"), 0)
                ledger.accept(key, event.base_version, event.present, event.content)
            else:
                event = Rejection(key, 5, "a message", Content("header", None))
                ledger.reject(key, event.reason, event.message, event.content)
        noted.append(event)
    for event in noted:
        replay(begun, decode(encode(event), "state"))
    assert begun.to_record() == ledger.to_record()


RECORDS = [b"first", b"", b"x" * 300, b"last"]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "journal", RECORDS[0])
    for record in RECORDS[1:]:
        journal.append(record)
    journal.close()
    return journal.path


def test_records_are_read_in_order(path):
    assert read(path) == RECORDS


def test_a_journal_that_ends_within_a_record_has_the_records_before_it(path):
    raw = path.read_bytes()
    seen = set()
    for size in range(8, len(raw)):
        path.write_bytes(raw[:size])
        found = read(path)
        assert found == RECORDS[: len(found)]
        seen.add(len(found))
    assert seen == {0, 1, 2, 3}


def test_every_flipped_bit_is_found(path):
    raw = path.read_bytes()
    for position in range(len(raw)):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CorruptSnapshotError, match=r"journal"):
                read(path)


def test_a_record_moved_within_the_file_is_found(path):
    raw = path.read_bytes()
    first = 8 + 20 + len(RECORDS[0])
    path.write_bytes(raw[:8] + raw[first:])
    with pytest.raises(CorruptSnapshotError, match=f"{path.name}.*offset 8"):
        read(path)


def test_a_record_that_was_not_written_leaves_no_trace(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal", b"first")
    write = os.write

    def half(descriptor, raw):
        monkeypatch.setattr(os, "write", full)
        return write(descriptor, bytes(raw)[:10])

    def full(descriptor, raw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        journal.append(b"second")
    monkeypatch.setattr(os, "write", write)
    journal.append(b"third")
    journal.close()
    assert read(journal.path) == [b"first", b"third"]


def test_a_new_journal_replaces_the_old_one_at_once(path):
    journal = Journal(path, b"anew")
    journal.close()
    assert read(path) == [b"anew"]
    assert [each.name for each in path.parent.iterdir()] == ["journal"]
