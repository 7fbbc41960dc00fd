"""The snapshot file: it reads back, other software can read it, and all damage is detected."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from numba_adam.errors import CorruptSnapshotError, SnapshotError
from numba_adam.server.model.arena import Arena
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.snapshot import Snapshot
from numba_adam.settings.hyperparameters import Hyperparameters

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def example(*, amsgrad=True, dtype="float32", nonce="nonce-0"):
    """Return a small model's records and arena, always the same."""
    tensors = (Tensor("weight/λ", (2, 2)), Tensor("empty", (0, 3)), Tensor("scalar", ()))
    spec = Spec("golden", dtype, tensors, Hyperparameters(lr=0.1, betas=(0.8, 0.99), amsgrad=amsgrad))
    arena = Arena([tensor.size for tensor in tensors], dtype, amsgrad=amsgrad)
    for number, array in enumerate(arena.state_arrays().values()):
        array[:] = [number + index / 8 for index in range(5)]
    ledger = PushLedger("0123456789abcdef0123456789abcdef", 3)
    epoch = ledger.open_session("worker-0", nonce)
    ledger.open_session("worker-1")
    contents = (Content("00000000000000a1", "00000000000000b1"), Content("00000000000000a2", "00000000000000b2"))
    ledger.accept(PushKey(ledger.state_id, "worker-0", epoch, 1), 0, (True, True, False), contents[0])
    ledger.reject(PushKey(ledger.state_id, "worker-0", epoch, 2), 5, "gradient 'scalar' holds nan", contents[1])
    ledger.reject(PushKey(ledger.state_id, "worker-0", epoch, 3), 4, "gradient 'weight' is missing", Content("a3"))
    return Snapshot({**spec.to_record(), "request_id": "request-1"}, ledger.to_record()), arena


def write(path, snapshot, arena):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        return snapshots.write(descriptor, snapshot, arena.state_arrays())
    finally:
        os.close(descriptor)


def read(path):
    """Return the records and the arena of a snapshot."""
    arenas = []

    def arrays_for(snapshot):
        spec = Spec.from_record(snapshot.model)
        amsgrad = spec.hyperparameters.amsgrad
        arenas.append(Arena([tensor.size for tensor in spec.tensors], spec.numpy_dtype, amsgrad=amsgrad))
        return arenas[-1].state_arrays()

    return snapshots.read(path, arrays_for), arenas[0]


@pytest.fixture
def path(tmp_path):
    snapshot, arena = example()
    target = tmp_path / "00000001.snapshot"
    assert write(target, snapshot, arena) == target.stat().st_size
    return target


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_snapshot_reads_back_as_written(tmp_path, amsgrad, dtype):
    snapshot, arena = example(amsgrad=amsgrad, dtype=dtype)
    write(tmp_path / "s", snapshot, arena)
    found, found_arena = read(tmp_path / "s")
    assert found == snapshot
    assert PushLedger.from_record(found.ledger).to_record() == snapshot.ledger
    assert Spec.from_record(found.model).to_record() == {k: v for k, v in snapshot.model.items() if k != "request_id"}
    for name, array in arena.state_arrays().items():
        assert found_arena.state_arrays()[name].tobytes() == array.tobytes()


def test_the_safetensors_library_reads_it(path):
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == {
            f"{group}/{name}"
            for group in ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            for name in ("weight/λ", "empty", "scalar")
        }
        assert file.get_tensor("exp_avg/weight/λ").tolist() == [[1.0, 1.125], [1.25, 1.375]]
        assert file.get_tensor("param/scalar").tolist() == 0.5
        assert file.get_tensor("param/empty").shape == (0, 3)
        assert file.metadata()["format_version"] == "2"
        assert json.loads(file.metadata()["machine"])["version"] == 1


def test_every_flipped_bit_is_detected(path):
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                with pytest.raises(CorruptSnapshotError, match=r"00000001\.snapshot"):
                    read(path)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert read(path)


def test_every_truncation_is_detected(path):
    whole = path.read_bytes()
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        with pytest.raises(CorruptSnapshotError, match=r"00000001\.snapshot"):
            read(path)


def test_bytes_after_the_end_are_detected(path):
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CorruptSnapshotError, match="after its end"):
        read(path)


def test_a_later_format_is_refused_by_its_number(tmp_path, monkeypatch):
    snapshot, arena = example()
    monkeypatch.setattr(snapshots, "FORMAT", "3")
    write(tmp_path / "s", snapshot, arena)
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match="format version is '3', and this numba-adam reads '1' and '2'") as caught:
        read(tmp_path / "s")
    assert not isinstance(caught.value, CorruptSnapshotError)  # it is whole: nobody goes back to the one before it


def changed(record, path, value):
    """Return a copy of a record with one value replaced, or added."""
    copied = json.loads(json.dumps(record))
    *steps, last = path
    place = copied
    for step in steps:
        place = place[step]
    place[last] = value
    return copied


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["mode"], "swarm", "mode is 'swarm', and this numba-adam knows 'async' or 'sync' or 'ssp'"),
        (["mode"], None, "mode is None"),
        (["durability"], "tape", "durability is 'tape', and this numba-adam knows 'memory'"),
        (["dtype"], "bfloat16", "dtype is 'bfloat16', and this numba-adam knows 'float32' or 'float64'"),
        (["hyperparameters", "eps_mode"], "outside", "eps_mode is 'outside'"),
        (["hyperparameters", "ema_decay"], 0.9, "the hyperparameters has 'ema_decay', which this numba-adam"),
        (["tensors", 0, "strides"], [1, 2], "an array's record has 'strides'"),
        (["quorum"], 3, "the model's record has 'quorum'"),
    ],
)
def test_a_model_with_unknown_settings_is_refused_by_name(tmp_path, path, value, words):
    """Otherwise a server would train it with other settings than requested."""
    snapshot, arena = example()
    write(tmp_path / "s", snapshot._replace(model=changed(snapshot.model, path, value)), arena)
    with pytest.raises(SnapshotError, match=words) as caught:
        read(tmp_path / "s")
    assert not isinstance(caught.value, CorruptSnapshotError)


@pytest.mark.parametrize("key", ["name", "mode", "durability", "dtype", "hyperparameters"])
def test_a_model_with_an_incomplete_record_is_refused_by_name(key):
    record = example()[0].model
    with pytest.raises(SnapshotError, match=f"lacks '{key}'"):
        Spec.from_record({name: value for name, value in record.items() if name != key})


def test_unknown_metadata_are_refused_by_name(tmp_path, monkeypatch):
    snapshot, arena = example()
    dumps = snapshots._dumps

    def with_more(value):
        return dumps(
            value | {"__metadata__": value["__metadata__"] | {"journal": "7"}} if "__metadata__" in value else value
        )

    monkeypatch.setattr(snapshots, "_dumps", with_more)
    write(tmp_path / "s", snapshot, arena)
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match="its metadata has 'journal', which this numba-adam does not know"):
        read(tmp_path / "s")


def test_a_header_too_long_to_read_is_not_written(tmp_path, monkeypatch):
    """Thousands of arrays with long names: a server that acknowledged such a model could not start again."""
    snapshot, arena = example()
    monkeypatch.setattr(snapshots, "_LONGEST_HEADER_BYTES", 500)
    with pytest.raises(SnapshotError, match="a snapshot allows 500; use fewer arrays or shorter names"):
        write(tmp_path / "s", snapshot, arena)
    assert (tmp_path / "s").stat().st_size == 0


def test_large_arrays_are_written_and_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "_PIECE_BYTES", 4096)
    spec = Spec("model", "float64", (Tensor("x", (10_001,)),), Hyperparameters())
    arena = Arena([10_001], "float64")
    rng = np.random.default_rng(11)
    for array in arena.state_arrays().values():
        array[:] = rng.standard_normal(10_001)
    write(tmp_path / "s", Snapshot({**spec.to_record(), "request_id": "r"}, PushLedger("s", 1).to_record()), arena)
    assert read(tmp_path / "s")[1].exp_avg_sq.tobytes() == arena.exp_avg_sq.tobytes()


def test_zeros_take_no_space_and_negative_zeros_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "_PIECE_BYTES", 1 << 16)
    size = 1 << 20
    spec = Spec("model", "float32", (Tensor("x", (size,)),), Hyperparameters())
    arena = Arena([size], "float32")
    arena.param[5] = -0.0
    snapshot = Snapshot({**spec.to_record(), "request_id": "r"}, PushLedger("s", 1).to_record())
    written = write(tmp_path / "s", snapshot, arena)
    status = (tmp_path / "s").stat()
    assert status.st_size == written > 3 * 4 * size
    assert status.st_blocks * 512 < written / 10
    found = read(tmp_path / "s")[1]
    assert found.param.tobytes() == arena.param.tobytes()
    assert not found.exp_avg_sq.any()


def test_the_golden_file_of_format_1_is_still_read():
    snapshot, arena = read(GOLDEN / "snapshot-v1.safetensors")
    expected, expected_arena = example(nonce="")
    session = expected.ledger["sessions"][-1]
    session["answers"] = [answer[:3] for answer in session["answers"][:2]]  # without digests
    session["last_sequence"] = 2
    assert snapshot == expected
    assert PushLedger.from_record(snapshot.ledger).to_record() == expected.ledger
    for name, array in expected_arena.state_arrays().items():
        assert arena.state_arrays()[name].tobytes() == array.tobytes()


def test_the_golden_file_of_format_2_is_still_read():
    snapshot, arena = read(GOLDEN / "snapshot-v2.safetensors")
    expected, expected_arena = example()
    assert snapshot == expected
    for name, array in expected_arena.state_arrays().items():
        assert arena.state_arrays()[name].tobytes() == array.tobytes()


def test_format_2_is_still_written_byte_for_byte(path):
    assert path.read_bytes() == (GOLDEN / "snapshot-v2.safetensors").read_bytes()
