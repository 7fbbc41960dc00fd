"""Ownership of the data folder: private to its user, and refused if others may write to it."""

import contextlib
import dataclasses
import os
import shutil
import stat
from pathlib import Path

import pytest

from numba_adam.errors import ConfigurationError
from numba_adam.kernel_cache import private_folder
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.embedded import Server
from numba_adam.server.storage.data_folder import DataFolder


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def tree(folder):
    """Return every path, with its mode and its content."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture
def folder(config, peers, params):
    """A data folder with a model, after a clean stop."""
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params)
        peer.create(params, "deleted")
        peer.stub.DeleteModel(pb.DeleteModelRequest(model="deleted"))
    return config.data_dir


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077, 0o277, 0o777], ids=oct)
def test_folders_have_mode_0700_and_files_0600_for_any_umask(config, tmp_path, peers, params, mask):
    settings = dataclasses.replace(config, data_dir=tmp_path / "above" / "data")
    with umask(mask), Server(settings) as server:
        peer = peers(server.address)
        peer.create(params)
        peer.create(params, "deleted")
        peer.stub.DeleteModel(pb.DeleteModelRequest(model="deleted"))
    with umask(mask), Server(settings) as server:
        assert [path.name for path in settings.data_dir.iterdir()]
    for path in (tmp_path / "above").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "above").stat().st_mode) == 0o700


PLACES = ["", "models", "models/model", "models/model/00000001.snapshot", "lock", "run", "manifest", "deletions"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [0o020, 0o002, 0o022], ids=oct)
def test_a_path_that_others_may_write_to_is_refused_unchanged(config, folder, place, mode):
    path = folder / place
    path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)
    before = tree(folder)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="chmod go-w") as caught:
            Server(config)
        assert repr(str(path)) in str(caught.value)
    assert tree(folder) == before


@pytest.mark.parametrize("place", PLACES)
def test_a_path_of_another_user_is_refused(config, folder, place):
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(folder / place, 12345, -1)
    with pytest.raises(ConfigurationError, match=r"belongs to user 12345.* chown"):
        Server(config)


def test_a_folder_that_others_may_read_is_accepted(config, folder):
    for place in ("", "models", "models/model"):
        (folder / place).chmod(0o755)
    with Server(config) as server:
        assert server.address


def test_a_parent_that_lets_others_rename_the_folder_is_refused(config, tmp_path):
    """The same rule as for the kernel cache."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigurationError, match="anyone may rename what lies in"):
        DataFolder(tmp_path / "open" / "data", 3)
    assert private_folder.why_unsafe(tmp_path / "open" / "data")
    (tmp_path / "open").chmod(0o1777)  # as /tmp is
    DataFolder(tmp_path / "open" / "data", 3).close()


@pytest.mark.parametrize("place", PLACES[1:])
def test_a_symbolic_link_in_the_folder_is_refused(config, folder, tmp_path, place):
    """Its target may belong to anyone, and removing a model would remove only the link."""
    path = folder / place
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        Server(config)
    assert str(path) in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("place", ["manifest", "models/model/00000009.snapshot"])
def test_a_pipe_in_the_folder_is_refused_without_waiting(config, folder, place):
    (folder / place).unlink(missing_ok=True)
    os.mkfifo(folder / place, 0o600)
    with pytest.raises(ConfigurationError, match="is not a file or folder") as caught:
        Server(config)
    assert str(folder / place) in str(caught.value)


def test_the_folder_may_be_a_symbolic_link_which_is_resolved_once(config, folder, tmp_path, peers, params):
    """A change of the link while the server runs has no effect."""
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    (tmp_path / "other").mkdir()
    with Server(config) as server:
        folder.unlink()
        folder.symlink_to(tmp_path / "other")
        peers(server.address).create(params, "second")
    assert sorted(path.name for path in (tmp_path / "disk" / "models").iterdir()) == ["model", "second"]
    assert not list((tmp_path / "other").iterdir())


def test_a_link_to_a_folder_that_others_may_write_to_is_refused(config, folder, tmp_path):
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    (tmp_path / "disk").chmod(0o777)
    with pytest.raises(ConfigurationError, match="others may write to"):
        Server(config)


def test_a_relative_folder_stays_the_same_after_a_change_of_directory(config, tmp_path, monkeypatch, peers, params):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Server(dataclasses.replace(config, data_dir=Path("here"))) as server:
        monkeypatch.chdir(tmp_path / "elsewhere")
        peer = peers(server.address)
        peer.create(params)
        peer.create(params, "deleted")
        peer.stub.DeleteModel(pb.DeleteModelRequest(model="deleted"))
    assert (tmp_path / "here" / "models" / "model").is_dir()
    assert (tmp_path / "here" / "deletions").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_with_the_name_of_a_temporary_file_is_not_followed(tmp_path):
    """It was created before the folder was private."""
    data_folder = DataFolder(tmp_path / "data", 3)
    data_folder.begin()
    (tmp_path / "data" / "models" / "m").mkdir(mode=0o700)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "data" / "models" / "m" / "00000001.writing").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        data_folder.write("m", lambda descriptor: os.write(descriptor, b"x"))
    data_folder.close()
    assert (tmp_path / "victim").read_text() == "precious"
    shutil.rmtree(tmp_path / "data")
