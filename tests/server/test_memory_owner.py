"""Memory of a killed server whose data folder is gone is named in the next server's log, and nothing is removed."""

import logging
import shutil

import numpy as np
import pytest

from numba_adam.ps.v1 import model_pb2
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

PROCESS = model_pb2.DURABILITY_PROCESS


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


@pytest.fixture
def killed(tmp_path, memory, processes, peers):
    """A data folder whose server was killed, with one model of which two pushes are in memory only."""
    process = processes(tmp_path / "data", memory_dir=str(memory))
    peer = peers(process.address)
    peer.create({"x": np.zeros(100_000, np.float32)}, durability=PROCESS)
    session = peer.session()
    for _ in range(2):
        session.push({"x": np.ones(100_000, np.float32)})
    process.kill()
    with Server(ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / "other", memory_dir=memory, threads=1)):
        pass  # now, so that it does not get the number of a file that a test deletes
    return tmp_path / "data"


def warnings_of(tmp_path, memory, caplog, folder="other"):
    """Start and stop a server on a data folder; return what it warned of, and the version of its model."""
    caplog.clear()
    config = ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path / folder, memory_dir=memory, threads=1)
    with caplog.at_level(logging.WARNING), Server(config) as server:
        model = server._runtime.registry.find("model")
        version = None if model is None else model.ledger.version
    return [record.getMessage() for record in caplog.records if "memory are left" in record.getMessage()], version


def test_memory_whose_data_folder_was_deleted_is_named_and_kept(tmp_path, memory, killed, caplog):
    shutil.rmtree(killed)
    (message,), _ = warnings_of(tmp_path, memory, caplog)
    (folder,) = (path for path in memory.glob("numba-adam-*/*") if path.is_dir())
    assert f"{folder}: 1 MB of memory" in message or f"{folder}: 2 MB of memory" in message
    assert f"data folder {killed} is not there" in message
    command = message.partition("free the memory: ")[2]
    assert command == f"rm -r {folder} {folder}.owner"
    assert (folder / "model" / "arena").exists()
    shutil.rmtree(folder)
    folder.with_name(folder.name + ".owner").unlink()
    assert warnings_of(tmp_path, memory, caplog) == ([], None)


def test_a_data_folder_that_was_moved_is_named_until_a_server_uses_it_again(tmp_path, memory, killed, caplog):
    killed.rename(tmp_path / "moved")
    (message,), _ = warnings_of(tmp_path, memory, caplog)
    assert "If it was moved, start a server on it" in message
    assert warnings_of(tmp_path, memory, caplog, "moved") == ([], 2)
    assert warnings_of(tmp_path, memory, caplog) == ([], None)


def test_memory_whose_data_folder_is_there_is_not_named(tmp_path, memory, killed, caplog):
    assert warnings_of(tmp_path, memory, caplog) == ([], None)
    assert warnings_of(tmp_path, memory, caplog, killed.name) == ([], 2)


def test_memory_of_a_running_server_is_not_named(tmp_path, memory, processes, peers, caplog):
    process = processes(tmp_path / "data", memory_dir=str(memory))
    peers(process.address).create({"x": np.zeros(10, np.float32)}, durability=PROCESS)
    (tmp_path / "data").rename(tmp_path / "moved")  # it goes on
    assert warnings_of(tmp_path, memory, caplog) == ([], None)
    process.kill()
    assert len(warnings_of(tmp_path, memory, caplog)[0]) == 1


def test_a_clean_stop_leaves_no_file(tmp_path, memory, killed, caplog):
    warnings_of(tmp_path, memory, caplog, killed.name)
    assert [path for path in memory.rglob("*") if path.is_file()] == []


def test_an_unfinished_file_says_nothing(tmp_path, memory, killed, caplog):
    shutil.rmtree(killed)
    (owner,) = memory.glob("numba-adam-*/*.owner")
    owner.write_bytes(b"")
    assert warnings_of(tmp_path, memory, caplog) == ([], None)
