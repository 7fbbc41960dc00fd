"""Writing snapshots to disk: the order of calls, crashes at any point, and disk errors."""

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from numba_adam.errors import SnapshotError
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.embedded import Server
from numba_adam.server.storage.data_folder import DataFolder

FAILED = "the snapshot could not be written"  # in the log
CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "rename", "unlink", "rmdir")

# Runs an operation on a fresh copy of a data folder, again and again, and dies before its 1st, 2nd, 3rd ... call of the
# system that changes anything; prints what the next server finds each time, then what it finds when all was done.
CRASHES = """
import json, os, shutil, sys
from pathlib import Path
import numpy as np
from numba_adam.server.storage import snapshot as snapshots
from numba_adam.server.storage.snapshot import Snapshot
from numba_adam.server.storage.data_folder import DataFolder

folder, operation, calls = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
GROUPS = ("param", "exp_avg", "exp_avg_sq")

def put(data_folder, name, version):
    model = {"name": name, "tensors": [{"name": "x", "shape": [4]}]}
    record = Snapshot(model, {"version": version, "state_id": "s"})
    arrays = {group: np.full(4, version, np.float32) for group in GROUPS}
    data_folder.write(name, lambda descriptor: snapshots.write(descriptor, record, arrays))

def look(path):
    data_folder = DataFolder(path, 1)
    found = {}
    for name in data_folder.model_names():
        arrays = {group: np.zeros(4, np.float32) for group in GROUPS}
        restored = data_folder.restore(name, lambda _: arrays)
        assert arrays["param"].tolist() == [restored.snapshot.ledger["version"]] * 4
        found[name] = [restored.snapshot.ledger["version"], restored.why_rewound == ""]
    data_folder.begin()
    left = sorted(path.name for path in (path / "models").rglob("*"))
    data_folder.close(list(found))
    return found, left

def before(path):
    data_folder = DataFolder(path, 1)
    data_folder.begin()
    put(data_folder, "kept", 1)
    put(data_folder, "other", 1)
    if operation in ("begin", "close"):
        data_folder.close(["kept", "other"])
    if operation != "begin":
        data_folder = data_folder if operation != "close" else DataFolder(path, 1)
        if operation == "close":
            for name in data_folder.model_names():
                data_folder.restore(name, lambda _: {group: np.zeros(4, np.float32) for group in GROUPS})
            data_folder.begin()
        return data_folder
    return DataFolder(path, 1)

DO = {
    "create": lambda data_folder: put(data_folder, "new", 5),
    "delete": lambda data_folder: data_folder.delete("other"),
    "write": lambda data_folder: put(data_folder, "other", 2),
    "begin": lambda data_folder: data_folder.begin(),
    "close": lambda data_folder: data_folder.close(["kept", "other"]),
}

def crash(path, number):
    data_folder, left = before(path), [number]
    for name in calls:
        def counted(*args, real=getattr(os, name), **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return real(*args, **kwargs)
        setattr(os, name, counted)
    DO[operation](data_folder)
    os._exit(0)

number, status, found = 0, 1, []
while status:
    path = folder / str(number)
    child = os.fork()
    if not child:
        try:
            crash(path, number)
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    found.append(look(path))
    number += 1
print(json.dumps(found))
"""


def crashes(folder, operation):
    """Return what the next server finds after a crash before each call of an operation, and without a crash."""
    command = [sys.executable, "-c", CRASHES, str(folder), operation, ",".join(CALLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 5
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        (
            "create",
            {"kept": [1, False], "other": [1, False]},
            {"kept": [1, False], "new": [5, False], "other": [1, False]},
        ),
        ("delete", {"kept": [1, False], "other": [1, False]}, {"kept": [1, False]}),
        ("write", {"kept": [1, False], "other": [1, False]}, {"kept": [1, False], "other": [2, False]}),
        ("begin", {"kept": [1, True], "other": [1, True]}, {"kept": [1, False], "other": [1, False]}),
        ("close", {"kept": [1, False], "other": [1, False]}, {"kept": [1, True], "other": [1, True]}),
    ],
)
def test_a_crash_at_any_point_leaves_the_old_or_the_new_state(tmp_path, operation, before, after):
    """Even with one snapshot kept; and the next start removes all leftovers."""
    found = crashes(tmp_path, operation)
    states = [state for state, _ in found]
    change = states.index(after)
    assert states == [before] * change + [after] * (len(states) - change)
    assert change > 0
    for state, left in found:
        assert not [name for name in left if name.endswith(".writing") or name.startswith(".deleted")]
        assert {name for name in left if not name.endswith(".snapshot")} == set(state)


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Records every call that changes the data folder, with relative paths."""
    notes = []

    def relative(path):
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        return os.path.relpath(path, tmp_path / "data")

    def noted(name, real):
        def call(*args, **kwargs):
            if name in ("write", "pwrite", "ftruncate", "fsync"):
                note = ("write" if name != "fsync" else name, relative(args[0]))
            elif name == "rename":
                note = (name, relative(args[0]), relative(args[1]))
            else:
                note = (name, relative(args[0]))
            result = real(*args, **kwargs)
            if not notes or notes[-1] != note:
                notes.append(note)
            return result

        return call

    for name in CALLS[1:]:
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    return notes


def put(data_folder, name="model"):
    return data_folder.write(name, lambda descriptor: os.write(descriptor, b"12345678" * 100))


def test_a_snapshot_is_durable_before_the_oldest_is_removed(tmp_path, recorded):
    data_folder = DataFolder(tmp_path / "data", 2)
    data_folder.begin()
    put(data_folder)
    put(data_folder)
    recorded.clear()
    put(data_folder)
    data_folder.close()
    assert recorded[:5] == [
        ("write", "models/model/00000003.writing"),
        ("fsync", "models/model/00000003.writing"),
        ("rename", "models/model/00000003.writing", "models/model/00000003.snapshot"),
        ("fsync", "models/model"),
        ("unlink", "models/model/00000001.snapshot"),
    ]


def test_a_new_models_snapshot_is_durable_before_its_name(tmp_path, recorded):
    """A name without a snapshot would stop the next start."""
    data_folder = DataFolder(tmp_path / "data", 2)
    data_folder.begin()
    recorded.clear()
    put(data_folder)
    assert recorded == [
        ("mkdir", "models/model"),
        ("fsync", "models"),
        ("write", "models/model/00000001.writing"),
        ("fsync", "models/model/00000001.writing"),
        ("rename", "models/model/00000001.writing", "models/model/00000001.snapshot"),
        ("fsync", "models/model"),
        ("write", "run.writing"),
        ("fsync", "run.writing"),
        ("rename", "run.writing", "run"),
        ("fsync", "."),
    ]
    data_folder.close()


def test_the_run_record_is_written_first_and_the_manifest_last(tmp_path, recorded):
    data_folder = DataFolder(tmp_path / "data", 2)
    data_folder.begin()
    recorded.clear()
    data_folder.close()
    manifest = [
        ("write", "manifest.writing"),
        ("fsync", "manifest.writing"),
        ("rename", "manifest.writing", "manifest"),
        ("fsync", "."),
    ]
    assert recorded == manifest
    data_folder = DataFolder(tmp_path / "data", 2)
    assert recorded == manifest  # what only looks changes nothing
    data_folder.begin()
    assert recorded[4:] == [
        ("write", "run.writing"),
        ("fsync", "run.writing"),
        ("rename", "run.writing", "run"),
        ("fsync", "."),
        ("write", "lock"),
        ("fsync", "lock"),
        ("unlink", "manifest"),
        ("fsync", "."),
    ]
    data_folder.close()


def test_a_deletion_renames_the_folder_then_removes_the_name_then_the_files(tmp_path, recorded):
    data_folder = DataFolder(tmp_path / "data", 2)
    data_folder.begin()
    put(data_folder)
    recorded.clear()
    data_folder.delete("model")
    grave = recorded[0][2]
    assert re.fullmatch(r"models/\.deleted-[0-9a-f]{16}-model", grave)  # by which the next start knows it
    assert recorded[:6] == [
        ("rename", "models/model", grave),
        ("fsync", "models"),
        ("write", "run.writing"),
        ("fsync", "run.writing"),
        ("rename", "run.writing", "run"),
        ("fsync", "."),
    ]
    assert {kind for kind, *_ in recorded[6:]} == {"unlink", "rmdir"}
    data_folder.close()


def test_simultaneous_creations_and_deletions_are_all_recorded(tmp_path):
    data_folder = DataFolder(tmp_path / "data", 2)
    data_folder.begin()
    names = [f"model-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(data_folder, name), names))
        list(pool.map(data_folder.delete, names[::3]))
    data_folder.close()
    there = sorted(set(names) - set(names[::3]))
    data_folder = DataFolder(tmp_path / "data", 2)
    assert data_folder.model_names() == there
    for name in there:
        (tmp_path / "data" / "models" / name).rename(tmp_path / name)
    with pytest.raises(SnapshotError) as caught:
        data_folder.model_names()
    data_folder.close()
    assert [name for name in names if repr(name) in str(caught.value)] == sorted(there, key=names.index)


def test_with_one_snapshot_kept_a_failed_write_keeps_it(tmp_path):
    data_folder = DataFolder(tmp_path / "data", 1)
    data_folder.begin()
    put(data_folder)

    def fail(descriptor):
        os.write(descriptor, b"half")
        raise OSError(28, "No space left on device")

    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            data_folder.write("model", fail)
        assert [path.name for path in (tmp_path / "data" / "models" / "model").iterdir()] == ["00000001.snapshot"]
    put(data_folder)
    assert [path.name for path in (tmp_path / "data" / "models" / "model").iterdir()] == ["00000002.snapshot"]
    data_folder.close()


def test_changes_without_a_new_version_are_saved_too(config, peers, params, grads_of):
    """A session and a rejected push make no version, but a worker relies on them."""
    bad = grads_of(params, np.random.default_rng(0)) | {"bias": np.full(70, np.nan, np.float32)}
    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params)
        first = peer.session(worker_id="first")
        first.push(grads_of(params, np.random.default_rng(1)))
        peer.stub.Snapshot(pb.SnapshotRequest())
        with pytest.raises(grpc.RpcError) as rejection:
            first.push(bad)
    with Server(config) as server:
        peer = first.peer = peers(server.address)
        with pytest.raises(grpc.RpcError) as again:
            first.push(bad, sequence=2)
        assert again.value.details() == rejection.value.details()
        second = peer.session(worker_id="second")
    with Server(config) as server:
        second.peer = first.peer = peers(server.address)
        assert second.push(grads_of(params, np.random.default_rng(2))).version == 2
        assert first.push(grads_of(params, np.random.default_rng(3)), sequence=3).version == 3


def test_a_failing_disk_is_not_retried_at_every_push(tmp_path, processes, peers, params, grads_of):
    """After a failed try, the next one comes after the same number of pushes as after a success."""
    process = processes(tmp_path / "data", snapshot_every_pushes=4)
    peer = peers(process.address)
    peer.create(params)
    worker = peer.session()
    folder = tmp_path / "data" / "models" / "model"
    for number in range(2, 20):
        (folder / f"{number:08d}.writing").mkdir()  # in the way of every snapshot to come
    for push in range(1, 13):
        worker.push(grads_of(params, np.random.default_rng(push)))
        while process.log.read_text().count(FAILED) < push // 4:  # limit: the test's timeout
            assert process.is_running
    assert peer.state().snapshot_version == 0
    assert process.log.read_text().count(FAILED) == 3
    process.kill()


def test_a_snapshot_reports_its_own_version_after_a_later_push(config, peers, params, grads_of, monkeypatch):
    """On a slow disk, pushes are applied while the file is synced."""
    written, durable = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("00000002.writing"):
            written.set()
            assert durable.wait(800)
        fsync(descriptor)

    with Server(config) as server:
        peer = peers(server.address)
        peer.create(params)
        worker = peer.session()
        worker.push(grads_of(params, np.random.default_rng(1)))
        monkeypatch.setattr(os, "fsync", slow)
        asked = peer.stub.Snapshot.future(pb.SnapshotRequest())
        assert written.wait(800)
        ack = worker.push(grads_of(params, np.random.default_rng(2)))
        assert (ack.version, ack.state.snapshot_version) == (2, 0)
        durable.set()
        (info,) = asked.result(800).snapshots
        assert (info.state.version, info.state.snapshot_version) == (1, 1)
        assert info.size_bytes == (Path(config.data_dir) / "models" / "model" / "00000002.snapshot").stat().st_size
        state = peer.state()
        assert (state.version, state.snapshot_version) == (2, 1)
