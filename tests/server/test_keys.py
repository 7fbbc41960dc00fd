"""Keys: the key file is checked, and a small keyed snapshot is refused after any change by someone without the key."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash
from safetensors import safe_open

from numba_adam.cli import main
from numba_adam.errors import ConfigurationError, CorruptSnapshotError, SnapshotError
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.keys import NO_KEYS, Keys, read_keys
from numba_adam.server.storage.snapshot import Snapshot
from numba_adam.settings.hyperparameters import Hyperparameters

KEY, OTHER = bytes(range(32)), bytes(range(32, 64))
FIELDS = {"header_xxh3_64": 16, "data_xxh3_64": 16, "key_id": 16, "data_sha256": 64, "hmac_sha256": 64}
DOMAIN = b"numba-adam data folder 1\0"


def write(path: Path, keys: Keys, fill: float = 0.5) -> None:
    spec = Spec("model", "float32", (Tensor("w", (3,)),), Hyperparameters())
    snapshot = Snapshot({**spec.to_record(), "request_id": "r"}, PushLedger("0" * 32, 1).to_record())
    arrays = {name: np.full(3, fill, np.float32) for name in ("param", "exp_avg", "exp_avg_sq")}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        snapshots.write(descriptor, snapshot, arrays, keys)
    finally:
        os.close(descriptor)


def read(path: Path, keys: Keys) -> np.ndarray:
    arrays = {name: np.zeros(3, np.float32) for name in ("param", "exp_avg", "exp_avg_sq")}
    snapshots.read(path, lambda _: arrays, keys)
    return arrays["param"]


def place(raw: bytes, field: str) -> slice:
    """Return where a field of the metadata is in a snapshot."""
    begin = raw.index(f'"{field}":"'.encode()) + len(field) + 4
    return slice(begin, begin + FIELDS[field])


def filled(raw: bytes, field: str, value: str) -> bytes:
    where = place(raw, field)
    return raw[: where.start] + value.encode() + raw[where.stop :]


def finished(raw: bytes, key: bytes | None) -> bytes:
    """Return a changed snapshot with right hashes, and with the tag of a key, as docs/security.md describes it."""
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    header, data = raw[:size], raw[size:]
    header = filled(header, "data_xxh3_64", xxhash.xxh3_64_hexdigest(data))
    header = filled(header, "data_sha256", hashlib.sha256(data).hexdigest())
    header = filled(header, "header_xxh3_64", "0" * 16)
    if key is not None:
        blank = filled(header, "hmac_sha256", "0" * 64)
        header = filled(header, "hmac_sha256", hmac.new(key, DOMAIN + b"snapshot\0" + blank, "sha256").hexdigest())
    return filled(header, "header_xxh3_64", xxhash.xxh3_64_hexdigest(header)) + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "s", Keys((KEY,), "the key file"))
    return tmp_path / "s"


def test_a_keyed_snapshot_reads_back_and_the_safetensors_library_reads_it(path) -> None:
    assert read(path, Keys((KEY,))).tolist() == [0.5] * 3
    assert read(path, Keys((OTHER, KEY))).tolist() == [0.5] * 3  # after a rotation
    with safe_open(path, framework="np") as file:
        assert file.get_tensor("param/w").tolist() == [0.5] * 3
        assert file.metadata()["key_id"] == hashlib.sha256(DOMAIN + b"key id\0" + KEY).hexdigest()[:16]


def test_the_tag_is_that_of_the_description(path) -> None:
    raw = path.read_bytes()
    assert finished(raw, KEY) == raw
    assert finished(raw, OTHER) != raw


def test_every_flipped_bit_and_every_truncation_of_a_keyed_snapshot_is_refused(path) -> None:
    whole, keys = path.read_bytes(), Keys((KEY,))
    for position in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with pytest.raises(SnapshotError):
                read(path, keys)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(SnapshotError):
            read(path, keys)
    path.write_bytes(whole + b"\0")
    with pytest.raises(SnapshotError):
        read(path, keys)


def test_every_flipped_bit_is_refused_even_with_the_hashes_made_right(path) -> None:
    """Whoever can write the folder can make the hashes, and not the tag."""
    whole, keys = path.read_bytes(), Keys((KEY,))
    hashes = {
        position
        for field in ("header_xxh3_64", "data_xxh3_64", "data_sha256")
        for position in range(len(whole))[place(whole, field)]
    }
    for position in set(range(8, len(whole))) - hashes:
        changed = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        try:
            path.write_bytes(finished(changed, None))
        except ValueError:  # the name of a field is gone, so nothing can be put into it
            path.write_bytes(changed)
        with pytest.raises(SnapshotError) as caught:
            read(path, keys)
        assert "is wrong" in str(caught.value) or position < place(whole, "hmac_sha256").stop


@pytest.mark.parametrize(
    "kind", ["other parameters", "another key", "no tag", "a tag of nobody", "the other file's tag"]
)
def test_a_forged_snapshot_with_right_checksums_is_refused(path, tmp_path, kind) -> None:
    raw = path.read_bytes()
    data_at = 8 + struct.unpack("<Q", raw[:8])[0]
    evil = raw[:data_at] + np.full(3, 666, np.float32).tobytes() + raw[data_at + 12 :]
    if kind == "other parameters":
        path.write_bytes(finished(evil, None))
    elif kind == "another key":
        write(path, Keys((OTHER,)), fill=666)
    elif kind == "no tag":
        write(path, NO_KEYS, fill=666)
    elif kind == "a tag of nobody":
        path.write_bytes(finished(filled(evil, "key_id", "f" * 16), OTHER))
    else:
        write(tmp_path / "t", Keys((KEY,)), fill=1)
        tag = (tmp_path / "t").read_bytes()[place(raw, "hmac_sha256")].decode()
        path.write_bytes(finished(filled(evil, "hmac_sha256", tag), None))
    with pytest.raises(SnapshotError, match=r"no tag|tag is wrong|of the key"):
        read(path, Keys((KEY,), "the key file"))


def test_parameters_that_the_tag_does_not_name_are_refused_at_the_latest_by_their_sha_256(path) -> None:
    raw = path.read_bytes()
    data_at = 8 + struct.unpack("<Q", raw[:8])[0]
    evil = raw[:data_at] + bytes(12) + raw[data_at + 12 :]
    head = filled(evil[:data_at], "data_xxh3_64", xxhash.xxh3_64_hexdigest(evil[data_at:]))
    blank = filled(head, "header_xxh3_64", "0" * 16)
    key_holder = filled(blank, "hmac_sha256", "0" * 64)
    tag = hmac.new(KEY, DOMAIN + b"snapshot\0" + key_holder, "sha256").hexdigest()
    blank = filled(blank, "hmac_sha256", tag)
    path.write_bytes(filled(blank, "header_xxh3_64", xxhash.xxh3_64_hexdigest(blank)) + evil[data_at:])
    with pytest.raises(CorruptSnapshotError, match="SHA-256 differs"):
        read(path, Keys((KEY,)))


def test_a_snapshot_without_a_tag_is_read_where_no_key_is_set_and_where_the_line_admits_it(path, caplog) -> None:
    write(path, NO_KEYS)
    assert read(path, NO_KEYS).tolist() == [0.5] * 3
    assert caplog.messages == []
    assert read(path, Keys((KEY, b""), "the key file")).tolist() == [0.5] * 3
    assert "it has no tag, and is used because the key file has the line 'unkeyed'" in caplog.text


def test_a_keyed_snapshot_is_not_read_without_keys(path) -> None:
    with pytest.raises(SnapshotError, match="pass --snapshot-key-file"):
        read(path, NO_KEYS)


# The key file


def test_the_command_makes_a_file_for_its_user_only_and_puts_new_keys_first(tmp_path, capsys) -> None:
    path = tmp_path / "adam.keys"
    old = os.umask(0)
    try:
        assert main(["snapshot-key", str(path)]) == 0
    finally:
        os.umask(old)
    (first,) = path.read_text().split()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert path.stat().st_mode & 0o777 == 0o600
    said = capsys.readouterr().out
    assert read_keys(path, tmp_path / "data").key_id in said
    assert first not in said
    assert main(["snapshot-key", str(path)]) == 1
    assert "--rotate" in capsys.readouterr().err
    assert main(["snapshot-key", str(path), "--rotate"]) == 0
    second, *others = path.read_text().split()
    assert others == [first]
    assert second != first
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["snapshot-key", str(tmp_path / "first"), "--unkeyed"]) == 0
    assert (tmp_path / "first").read_text().split()[1:] == ["unkeyed"]
    assert [each.name for each in tmp_path.iterdir() if "." in each.name] == ["adam.keys"]


def test_a_file_that_others_may_read_is_refused_with_advice(tmp_path) -> None:
    path = tmp_path / "adam.keys"
    assert main(["snapshot-key", str(path)]) == 0
    for mode in (0o640, 0o604, 0o620, 0o602, 0o666) if os.geteuid() else (0o604, 0o620, 0o602, 0o666):
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match=re.escape(f"run: chmod 600 {path}")):
            read_keys(path, tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key"),
        ("# nothing\n\n", "no key"),
        ("00" * 31, "line 1 has 62 characters"),
        ("00" * 32 + "\n" + "zz" * 32, "line 2 has 64 characters"),
        ("UNKEYED", "line 1 has 7 characters"),
        ("ab" * 32 + "\n" + "AB" * 32, "twice"),
        ("\xe9" * 64, "not ASCII"),
        ("#" * 70000, "too many|no key"),
    ],
)
def test_a_file_that_has_no_keys_is_refused_without_showing_it(tmp_path, text, words) -> None:
    path = tmp_path / "adam.keys"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_keys(path, tmp_path / "data")
    assert "zz" not in str(caught.value)


def test_a_key_file_in_the_data_folder_is_refused(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in (tmp_path / "data" / "adam.keys", tmp_path / "link" / "adam.keys"):
        assert main(["snapshot-key", str(path)]) == 0
        with pytest.raises(ConfigurationError, match="it is in the data folder"):
            read_keys(path, tmp_path / "data")
        path.unlink()


def test_no_key_is_in_a_text_of_the_keys() -> None:
    keys = Keys((KEY, b""), "the key file")
    assert KEY.hex() not in f"{keys!r} {keys!s}"
    assert repr(keys) == f"<Keys {keys.key_id}, unkeyed>"
