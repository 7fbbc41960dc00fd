"""A sealed journal at the level `disk`: a record that was changed or moved, with right checksums, is never replayed."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from numba_adam.cli import main
from numba_adam.client import ParameterClient
from numba_adam.errors import SnapshotError
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server
from numba_adam.server.storage.keys import Keys
from numba_adam.server.storage.segments import Segments

GRADS = {"w": np.linspace(-1, 1, 40, dtype=np.float32)}
HEAD = struct.Struct("<8s5QQ")
SEAL_BYTES = 72
KEY = bytes(range(32))
Records = list[tuple[bytes, bytes]]


def records_of(raw: bytes) -> Records:
    """Return the event, with its seal, and the gradient of each record."""
    found, position = [], 8
    while position < len(raw):
        _, event_bytes, gradient_bytes, *_ = HEAD.unpack_from(raw, position)
        begin = position + HEAD.size
        middle = begin + event_bytes
        found.append((raw[begin:middle], raw[middle : middle + gradient_bytes]))
        position = -(-(middle + gradient_bytes) // 8) * 8
    return found


def journal_of(records: Records) -> bytes:
    """Return a journal with these records and right checksums, as anyone can make it."""
    raw = b"NBADSEG1"
    for event, gradient in records:
        sums = xxhash.xxh3_64_intdigest(event), xxhash.xxh3_64_intdigest(gradient)
        fields = struct.pack("<8s5Q", b"NBADREC1", len(event), len(gradient), 0, *sums)
        check = xxhash.xxh3_64_intdigest(fields + struct.pack("<Q", len(raw)))
        raw += fields + struct.pack("<Q", check) + event + gradient
        raw += bytes(-len(raw) % 8)
    return raw


class Crashed:
    """A data folder with keys after a crash: a model at the level `disk` with three pushes in its journal."""

    def __init__(self, folder: Path) -> None:
        (folder / "memory").mkdir(parents=True)
        assert main(["snapshot-key", str(folder / "adam.keys")]) == 0
        self.config = ServerConfig(
            listen="127.0.0.1:0",
            data_dir=folder / "data",
            memory_dir=folder / "memory",
            snapshot_key_file=folder / "adam.keys",
            snapshot_interval_seconds=0,
            snapshot_every_pushes=0,
        )
        with Server(self.config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
            for name in ("model", "other"):
                model = client.create_model(name, GRADS, durability="disk")
                for factor in (1, 2, 3):
                    model.push({"w": GRADS["w"] * np.float32(factor)})
            shutil.copytree(folder / "data", folder / "crashed")
        self.config = replace(self.config, data_dir=folder / "crashed")
        (self.path,) = (folder / "crashed/models/model").glob("*.journal")
        (self.other,) = (folder / "crashed/models/other").glob("*.journal")


@pytest.fixture
def crashed(tmp_path: Path) -> Crashed:
    return Crashed(tmp_path / "place")


def test_a_sealed_journal_is_replayed(crashed) -> None:
    raw = crashed.path.read_bytes()
    assert len(records_of(raw)) == 1 + 1 + 3  # the beginning, the session, the pushes
    assert all(event.startswith(b"NBADSEAL") for event, _ in records_of(raw))
    crashed.path.write_bytes(journal_of(records_of(raw)))  # other heads do not matter: they say nothing of the state
    with Server(crashed.config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
        assert client.open_model("model").version == 3


def evil_gradient(records: Records, _: Records) -> Records:
    return [*records[:-1], (records[-1][0], bytes(160))]


def evil_event(records: Records, _: Records) -> Records:
    seal, event = records[-1][0][:SEAL_BYTES], records[-1][0][SEAL_BYTES:]
    return [*records[:-1], (seal + event[:-1] + bytes([event[-1] ^ 1]), records[-1][1])]


def no_seal(records: Records, _: Records) -> Records:
    return [*records[:-1], (records[-1][0][SEAL_BYTES:], records[-1][1])]


def no_seals(records: Records, _: Records) -> Records:
    first = json.loads(records[0][0][SEAL_BYTES:])
    del first["key_id"], first["nonce"]
    plain = [(event[SEAL_BYTES:], gradient) for event, gradient in records[1:]]
    return [(json.dumps(first).encode(), b""), *plain]


def one_left_out(records: Records, _: Records) -> Records:
    return [*records[:-2], records[-1]]


def one_twice(records: Records, _: Records) -> Records:
    return [*records, records[-1]]


def two_swapped(records: Records, _: Records) -> Records:
    return [*records[:-2], records[-1], records[-2]]


def one_of_another_model(records: Records, others: Records) -> Records:
    return [*records[:-1], others[-1]]


def all_of_another_model(_: Records, others: Records) -> Records:
    return others


def another_beginning(records: Records, _: Records) -> Records:
    first = json.loads(records[0][0][SEAL_BYTES:])
    first["runs"] = ["0" * 32]
    return [(records[0][0][:SEAL_BYTES] + json.dumps(first, separators=(",", ":")).encode(), b""), *records[1:]]


def a_seal_of_nobody(records: Records, _: Records) -> Records:
    first = json.loads(records[0][0][SEAL_BYTES:])
    first["key_id"] = "f" * 16
    return [(records[0][0][:SEAL_BYTES] + json.dumps(first, separators=(",", ":")).encode(), b""), *records[1:]]


ATTACKS = (
    evil_gradient,
    evil_event,
    no_seal,
    no_seals,
    one_left_out,
    one_twice,
    two_swapped,
    one_of_another_model,
    another_beginning,
    a_seal_of_nobody,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.__name__ for attack in ATTACKS])
def test_a_journal_that_someone_without_the_key_changed_stops_the_start(
    crashed, attack: Callable[[Records, Records], Records], capsys
) -> None:
    records, others = records_of(crashed.path.read_bytes()), records_of(crashed.other.read_bytes())
    crashed.path.write_bytes(journal_of(attack(records, others)))
    with pytest.raises(SnapshotError, match=r"no seal|no tag|tag is wrong|of the key|without the key"):
        Server(crashed.config)
    folder, key_file = str(crashed.config.data_dir), str(crashed.config.snapshot_key_file)
    assert main(["verify", folder, "--snapshot-key-file", key_file]) == 1
    assert "1 of " in capsys.readouterr().out


def test_a_journal_of_another_model_is_not_replayed_and_reported_as_a_rewind(crashed, caplog) -> None:
    crashed.path.write_bytes(journal_of(all_of_another_model([], records_of(crashed.other.read_bytes()))))
    with Server(crashed.config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
        assert client.open_model("model").version == 0
    assert "model model: rewound to version 0: its journal does not begin with its newest snapshot" in caplog.text


def test_a_journal_is_cut_off_where_a_power_failure_could_have_cut_it_off(crashed) -> None:
    """What no key prevents: docs/security.md says so."""
    raw = crashed.path.read_bytes()
    last = raw.rindex(b"NBADREC1")
    crashed.path.write_bytes(raw[: last + 100])
    with Server(crashed.config) as server, ParameterClient(server.address, timeout_seconds=800) as client:
        assert client.open_model("model").version == 2


def test_every_flipped_bit_of_a_small_sealed_journal_is_noticed(tmp_path) -> None:
    """With right checksums; a flip of the padding is in no record."""
    (tmp_path / "model").mkdir()
    (tmp_path / "lock").touch()
    keys = Keys((KEY,), "the key file")
    segments = Segments(tmp_path / "model", tmp_path / "lock", keys)
    writer = segments.create()
    segments.begin(writer, ("run",), {"version": 0}, is_previous_synced=True)
    writer.append(b"event", np.arange(4, dtype=np.float32))
    writer.close()
    (path,) = segments.paths()
    records = records_of(path.read_bytes())
    for number, (event, gradient) in enumerate(records):
        for bit in range(8 * (len(event) + len(gradient))):
            both = bytearray(event + gradient)
            both[bit // 8] ^= 1 << bit % 8
            changed = (bytes(both[: len(event)]), bytes(both[len(event) :]))
            path.write_bytes(journal_of([*records[:number], changed, *records[number + 1 :]]))
            with pytest.raises(SnapshotError):  # noqa: PT012 - one walk through the journal
                _, found, reader = segments.read(path)
                with reader:
                    for record in found:
                        assert reader.gradient(record, np.empty(record.gradient_bytes, np.uint8))
