"""The data folder: kept snapshots, restored ones, and leftovers of crashes and disk errors."""

import logging
import os
import shutil

import numpy as np
import pytest

from numba_adam.errors import ConfigurationError, CorruptSnapshotError, InvalidRequestError, SnapshotError
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.data_folder import DataFolder
from numba_adam.server.storage.snapshot import Snapshot
from numba_adam.settings.hyperparameters import Hyperparameters


@pytest.fixture
def data_folders(tmp_path):
    """Opens data folders on one path, begins their runs, and closes the last."""
    opened = []

    def open_store(kept=3):
        opened.append(DataFolder(tmp_path / "data", kept))
        opened[-1].begin()
        return opened[-1]

    yield open_store
    for data_folder in opened:
        data_folder.close()


def put(data_folder, version, name="model"):
    """Write a snapshot of a model whose version and parameters are `version`."""
    spec = Spec(name, "float32", (Tensor("x", (4,)),), Hyperparameters())
    ledger = PushLedger("s", 1)
    epoch = ledger.open_session("w")
    for sequence in range(1, version + 1):
        ledger.accept(PushKey("s", "w", epoch, sequence), 0, (True,), Content("header", "payload"))
    arrays = {group: np.full(4, version, np.float32) for group in ("param", "exp_avg", "exp_avg_sq")}
    record = Snapshot({**spec.to_record(), "request_id": "r"}, ledger.to_record())
    return data_folder.write(name, lambda descriptor: snapshots.write(descriptor, record, arrays))


def get(data_folder, name="model"):
    """Return the restored version, and whether an older snapshot was used."""
    arrays = {group: np.zeros(4, np.float32) for group in ("param", "exp_avg", "exp_avg_sq")}
    found = data_folder.restore(name, lambda _: arrays)
    assert arrays["param"].tolist() == [found.snapshot.ledger["version"]] * 4
    return found.snapshot.ledger["version"], found.why_rewound == "a newer snapshot is damaged"


def files(tmp_path, name="model"):
    return sorted(path.name for path in (tmp_path / "data" / "models" / name).iterdir())


def damage(tmp_path, file, name="model"):
    path = tmp_path / "data" / "models" / name / file
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def test_the_newest_snapshot_is_restored_and_three_are_kept(data_folders, tmp_path):
    data_folder = data_folders()
    for version in range(1, 6):
        size = put(data_folder, version)
        assert get(data_folder) == (version, False)
    assert files(tmp_path) == ["00000003.snapshot", "00000004.snapshot", "00000005.snapshot"]
    assert (tmp_path / "data" / "models" / "model" / "00000005.snapshot").stat().st_size == size


def test_a_damaged_newest_snapshot_falls_back_with_a_log_line(data_folders, tmp_path, caplog):
    data_folder = data_folders()
    for version in (1, 2, 3):
        put(data_folder, version)
    damage(tmp_path, "00000003.snapshot")
    with caplog.at_level(logging.ERROR):
        assert get(data_folder) == (2, True)
    assert "00000003.snapshot" in caplog.text
    assert "trying the previous snapshot" in caplog.text
    assert files(tmp_path) == ["00000001.snapshot", "00000002.snapshot", "00000003.damaged"]
    put(data_folder, 7)
    assert get(data_folder) == (7, False)


def test_two_damaged_snapshots_fall_back_to_the_third(data_folders, tmp_path):
    data_folder = data_folders()
    for version in (1, 2, 3):
        put(data_folder, version)
    damage(tmp_path, "00000003.snapshot")
    damage(tmp_path, "00000002.snapshot")
    assert get(data_folder) == (1, True)


def test_an_unreadable_newest_snapshot_is_an_error_and_stays(data_folders, tmp_path):
    data_folder = data_folders()
    put(data_folder, 1)
    (tmp_path / "data" / "models" / "model" / "00000002.snapshot").mkdir()
    with pytest.raises(SnapshotError, match=r"00000002.snapshot' cannot be read .*; make it readable, or move it away"):
        get(data_folder)
    assert files(tmp_path) == ["00000001.snapshot", "00000002.snapshot"]


def test_if_all_snapshots_are_damaged_the_error_names_them_and_none_is_removed(data_folders, tmp_path):
    data_folder = data_folders()
    for version in (1, 2):
        put(data_folder, version)
        damage(tmp_path, f"0000000{version}.snapshot")
    with pytest.raises(CorruptSnapshotError, match="model 'model': no snapshot is intact") as caught:
        get(data_folder)
    assert "00000001" in str(caught.value)
    assert "00000002" in str(caught.value)
    assert files(tmp_path) == ["00000001.snapshot", "00000002.snapshot"]


def test_a_failed_write_keeps_the_earlier_snapshots(data_folders, tmp_path):
    data_folder = data_folders()
    put(data_folder, 1)

    def fail(descriptor):
        os.write(descriptor, b"half a snapsh")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        data_folder.write("model", fail)
    assert files(tmp_path) == ["00000001.snapshot"]
    assert get(data_folder) == (1, False)


def test_the_next_start_removes_files_that_a_crash_left(data_folders, tmp_path):
    data_folder = data_folders()
    put(data_folder, 1)
    (tmp_path / "data" / "models" / "model" / "00000002.writing").write_bytes(b"half")
    (tmp_path / "data" / "models" / "never-acknowledged").mkdir()
    (tmp_path / "data" / "models" / "never-acknowledged" / "00000001.writing").write_bytes(b"half")
    (tmp_path / "data" / "models" / ".deleted-1234").mkdir()
    (tmp_path / "data" / "models" / ".deleted-1234" / "00000001.snapshot").write_bytes(b"old")
    data_folder.close()
    assert data_folders().model_names() == ["model"]
    assert files(tmp_path) == ["00000001.snapshot"]


def test_a_second_server_on_the_folder_is_refused(data_folders, tmp_path):
    data_folders()
    with pytest.raises(ConfigurationError, match="another server uses it") as caught:
        DataFolder(tmp_path / "data", 3)
    assert str(tmp_path) in str(caught.value)


def test_deleting_a_model_removes_its_folder(data_folders, tmp_path):
    data_folder = data_folders()
    put(data_folder, 1)
    put(data_folder, 1, name="other")
    data_folder.delete("model")
    data_folder.delete("model")
    assert data_folder.model_names() == ["other"]
    assert sorted(os.listdir(tmp_path / "data" / "models")) == ["other"]


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "a\\b", ".hidden", "a\0b", "ü", "x" * 129, "a b"])
def test_no_model_name_escapes_the_folder(data_folders, tmp_path, name):
    data_folder = data_folders()
    with pytest.raises(InvalidRequestError, match="model name"):
        put(data_folder, 1, name=name)
    with pytest.raises(InvalidRequestError, match="model name"):
        data_folder.delete(name)
    assert sorted(os.listdir(tmp_path)) == ["data"]
    assert sorted(os.listdir(tmp_path / "data")) == ["lock", "models", "run"]


def test_an_unusable_folder_gives_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="must be a folder this user can write"):
        DataFolder(tmp_path / "file", 3)


def test_files_are_accessible_only_to_the_user(data_folders, tmp_path):
    put(data_folders(), 1)
    for path in [*(tmp_path / "data").rglob("*.snapshot"), tmp_path / "data" / "lock"]:
        assert path.stat().st_mode & 0o077 == 0


def test_a_folder_that_is_not_a_model_is_ignored_and_logged_once(data_folders, tmp_path, caplog):
    data_folder = data_folders()
    put(data_folder, 1)
    data_folder.close()
    models = tmp_path / "data" / "models"
    for folder in ("not a model", ".deleted-1234"):
        (models / folder).mkdir(mode=0o700)
        (models / folder / "00000001.writing").touch(mode=0o600)
    (models / "notes").touch(mode=0o600)
    assert data_folders().model_names() == ["model"]
    assert "'not a model': ignored, not the name of a model" in caplog.text
    assert ".deleted" not in caplog.text
    assert sorted(os.listdir(models)) == ["model", "not a model", "notes"]
    assert os.listdir(models / "not a model") == ["00000001.writing"]


def test_a_deletion_interrupted_by_a_crash_is_completed(data_folders, tmp_path):
    """The run record still has the model, and its folder is already renamed."""
    data_folder = data_folders()
    put(data_folder, 1)
    put(data_folder, 1, name="other")
    data_folder.close()
    models = tmp_path / "data" / "models"
    (models / "model").rename(models / f".deleted-{'0' * 16}-model")
    assert get(data_folders(), "other") == (1, False)
    assert os.listdir(models) == ["other"]


def test_a_known_model_with_an_empty_folder_is_reported_as_missing(data_folders, tmp_path):
    data_folder = data_folders()
    put(data_folder, 1)
    data_folder.close()
    (tmp_path / "data" / "models" / "model" / "00000001.snapshot").rename(tmp_path / "away")
    with pytest.raises(SnapshotError, match="no snapshot of 'model'"):
        data_folders()
    assert (tmp_path / "data" / "models" / "model").is_dir()


def test_the_newest_snapshot_is_known_until_it_is_removed_or_changed(data_folders, tmp_path, caplog):
    data_folder = data_folders()
    assert not data_folder.holds("model")
    put(data_folder, 1)
    put(data_folder, 2)
    assert data_folder.holds("model")
    folder = tmp_path / "data" / "models" / "model"
    newest = folder / "00000002.snapshot"
    whole = newest.read_bytes()
    newest.write_bytes((folder / "00000001.snapshot").read_bytes())
    assert not data_folder.holds("model")
    newest.unlink()
    assert not data_folder.holds("model")
    assert "its newest snapshot is gone" in caplog.text
    assert not data_folder.close(["model"])
    newest.write_bytes(whole)
    newest.chmod(0o600)
    data_folder = data_folders()
    assert get(data_folder) == (2, False)
    assert data_folder.holds("model")
    assert data_folder.close(["model"])
    assert data_folder.close(["model"])  # once more: there is nothing left to do


def test_a_folder_without_a_run_is_released_unchanged(data_folders, tmp_path):
    data_folder = data_folders()
    put(data_folder, 1)
    data_folder.close()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert DataFolder(tmp_path / "data", 3).close()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_nothing_is_written_after_the_folder_was_replaced(data_folders, tmp_path):
    data_folder = data_folders()
    put(data_folder, 1)
    (tmp_path / "data").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "data")
    for change in (lambda: put(data_folder, 2), lambda: data_folder.delete("model"), data_folder.close):
        with pytest.raises(OSError, match="is not the file that this server locked"):
            change()
    assert files(tmp_path) == ["00000001.snapshot"]
    assert sorted(os.listdir(tmp_path / "data")) == ["lock", "models", "run"]


@pytest.mark.parametrize(
    "name", ["models", "models/model", "models/model/00000001.snapshot", "lock", "run", "manifest"]
)
def test_a_path_that_others_may_write_to_is_refused_by_name(data_folders, tmp_path, name):
    data_folder = data_folders()
    put(data_folder, 1)
    data_folder.close()
    path = tmp_path / "data" / name
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(ConfigurationError, match=path.name):
        data_folders()
    path.chmod(path.stat().st_mode & ~0o020)
    assert get(data_folders()) == (1, False)


@pytest.mark.parametrize("name", ["run.writing", "running"])
def test_a_run_that_cannot_begin_gives_a_clear_error(data_folders, tmp_path, name):
    """A folder has the name of a file to write or remove."""
    data_folder = data_folders()
    data_folder.close()
    (tmp_path / "data" / name).mkdir()
    data_folder = DataFolder(tmp_path / "data", 3)
    with pytest.raises(ConfigurationError, match="must be a folder this user can write"):
        data_folder.begin()
    data_folder.close()
