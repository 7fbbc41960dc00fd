"""Every state that a power failure may leave of a small run is recovered: nothing acknowledged is lost."""

import contextlib
import dataclasses
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from power_loss import ROOT, Op, Recorder, build, choices, image

import numba_adam as na
from numba_adam.errors import ServerUnavailableError
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.server.embedded import Server
from numba_adam.server.runtime.disk_keeper import DiskKeeper
from numba_adam.server.runtime.model import Model
from numba_adam.server.runtime.runtime import Runtime
from numba_adam.server.storage import data_folder, durable, record_layout, segment, segments
from numba_adam.server.storage.direct_file import DirectFile
from numba_adam.server.storage.segment import Writer
from numba_adam.server.storage.segments import Segments

DISK = model_pb2.DURABILITY_DISK
SIZE = 1300  # more than a block
PUSHES = 9


def gradient_of(number):
    return np.random.default_rng(number).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture(scope="module")
def states():
    """The bytes of the state after each number of pushes."""
    arrays = [np.random.default_rng(99).standard_normal(SIZE, dtype=np.float32), *np.zeros((2, SIZE), np.float32)]
    found = [b"".join(array.tobytes() for array in arrays)]
    for step in range(1, PUSHES + 1):
        na.adam_update(arrays[0], gradient_of(step), *arrays[1:], step, lr=0.01)
        found.append(b"".join(array.tobytes() for array in arrays))
    return found


@pytest.fixture
def recorded(config, peers, monkeypatch):
    """Makes the run, and returns its operations. Two servers: the first is killed with a push that nobody knows of."""

    def run(*patches):
        recorder = Recorder(config.data_dir)
        with monkeypatch.context() as patch:
            recorder.install(patch)
            for each in patches:
                each(patch)
            server = Server(config)
            server.start()
            peer = peers(server.address)
            peer.create(
                {"x": np.random.default_rng(99).standard_normal(SIZE, dtype=np.float32)}, lr=0.01, durability=DISK
            )
            recorder.mark("created")
            session = peer.session()
            recorder.mark("opened")

            def push(number):
                assert session.push({"x": gradient_of(number)}).version == number
                recorder.mark(f"version {number}")

            def change(number):
                settings = pb.SettingsChange(clip_value=1e6 + number)  # cuts nothing, so the bits stay
                changed = peer.stub.UpdateModel(
                    pb.UpdateModelRequest(
                        model="model",
                        state_id=session.state_id,
                        request_id=f"change {number}",
                        seen_change=number - 1,
                        change=settings,
                    )
                )
                assert changed.change == number
                recorder.mark(f"change {number}")

            for number in (1, 2, 3):
                push(number)
            change(1)
            peer.stub.Snapshot(pb.SnapshotRequest())
            recorder.mark("snapshot")
            push(4)
            peer.stub.Snapshot(pb.SnapshotRequest())
            push(5)
            change(2)
            model = server._runtime.registry.get("model")
            model.keeper.settle = never
            with contextlib.suppress(grpc.RpcError):
                session.push({"x": gradient_of(6)})
            kill(server)
            with Server(config) as server:
                session.peer = peers(server.address)
                assert session.peer.state().version == 6
                recorder.mark("version 6")
                session.sequence = 6
                push(7)
                session.peer.stub.Snapshot(pb.SnapshotRequest())
                push(8)
                push(9)
            recorder.mark("stopped")
        return recorder.ops

    return run


def never():
    raise ServerUnavailableError("the machine stops")


def kill(server):
    """End a server as SIGKILL would, as far as its data folder can tell."""
    server._grpc.stop(0).wait()
    os.close(server._runtime._data_folder._lock)
    server._runtime.save, server._runtime._data_folder.close = dict, lambda *_: True
    server.stop()


@pytest.fixture
def in_memory(tmp_path):
    """A folder for images; a disk would take a minute for their fsyncs."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


class Told:
    """What a client knows at a moment."""

    def __init__(self, ops):
        marks = [op.name for op in ops if op.kind == "mark"]
        self.is_created, self.is_opened = "created" in marks, "opened" in marks
        self.change = max([int(mark.split()[1]) for mark in marks if mark.startswith("change")], default=0)
        self.version = max([int(mark.split()[1]) for mark in marks if mark.startswith("version")], default=0)


def recovered(config, path, monkeypatch):
    """Return the model that a server finds in a folder; None if there is none."""
    with monkeypatch.context() as patch:
        patch.setattr(Segments, "_is_original", lambda *_: True)  # an image's files have other inodes
        runtime = Runtime(dataclasses.replace(config, data_dir=path))
    model = runtime.registry.find("model")
    found = None
    if model is not None:
        state = b"".join(array.tobytes() for array in model.arena.state_arrays().values())
        found = (model.ledger.to_record(), state)
    runtime.stop()
    return found


def check(found, told, states, state_id):
    """Assert that what was recovered is what a client was told, or what happened just after."""
    if found is None:
        assert not told.is_created
        return
    ledger, state = found
    version = ledger["version"]
    assert version >= told.version
    assert state == states[version]
    assert ledger["steps"] == [version]
    changes = ledger.get("changes", {"number": 0})
    assert changes["number"] >= told.change
    if changes["number"]:
        assert changes["settings"]["clip_value"] == 1e6 + changes["number"]
    if told.is_created:
        assert ledger["state_id"] == state_id
    if told.is_opened:
        (session,) = ledger["sessions"]
        assert session["last_sequence"] == version


def images(ops, rng, count) -> Iterator[tuple[list[Op], dict]]:
    """Yield the operations before each crash, and the images of it; the same image once for each thing told."""
    seen = set()
    for end in range(len(ops) + 1):
        for choice in choices(rng, count):
            found = image(ops[:end], choice)
            told = len([op for op in ops[:end] if op.kind == "mark"])
            key = hash((told, *found.items()))
            if key not in seen:
                seen.add(key)
                yield ops[:end], found


def wrong_images(config, ops, states, count, monkeypatch, folder, most=10**9, seed=1):
    """Return the number of images, and what was wrong with those that were not recovered rightly."""
    state_id = recovered_id(ops)
    number, wrong = 0, []
    for before, found in images(ops, random.Random(seed), count):
        number += 1
        build(found, folder / str(number))
        try:
            check(recovered(config, folder / str(number), monkeypatch), Told(before), states, state_id)
            shutil.rmtree(folder / str(number))
        except Exception as error:
            wrong.append((len(before), repr(error)))
            if len(wrong) >= most:
                break
    return number, wrong


def recovered_id(ops):
    """Return the model's state id, from its first snapshot."""
    raw = b"".join(op.data for op in ops if op.kind == "write")
    begin = raw.index(b'state_id\\":\\"') + len(b'state_id\\":\\"')
    return raw[begin : begin + 32].decode()


@pytest.fixture(params=["small", "large"])
def size_of_pushes(request, monkeypatch):
    """Small pushes are written before their update, and large ones while it runs."""
    if request.param == "large":
        monkeypatch.setattr(record_layout, "LARGE_BYTES", 4096)
    return request.param


@pytest.mark.usefixtures("size_of_pushes")
@pytest.mark.parametrize("count", [1, pytest.param(60, marks=pytest.mark.campaign)])
def test_every_state_that_a_power_failure_leaves_is_recovered(
    config, recorded, states, count, monkeypatch, in_memory, campaign
):
    ops = recorded()
    assert {op.kind for op in ops} >= {"link", "move", "unlink", "write", "truncate", "sync", "mark"}
    assert any(op.node == ROOT for op in ops if op.kind == "sync")
    number, wrong = wrong_images(config, ops, states, count, monkeypatch, in_memory, seed=campaign.seed(1))
    campaign.did(images=number)
    assert wrong == []
    assert number > 100


def without_fsync_of_the_journal(patch):
    patch.setattr(Writer, "sync", lambda *_: None)


def with_the_fsync_after_the_acknowledgement(patch):
    settle, note = DiskKeeper.settle, DiskKeeper.note

    def late(keeper, *arguments):
        settle(keeper)
        note(keeper, *arguments)

    patch.setattr(DiskKeeper, "note", late)
    patch.setattr(Model, "settle", lambda _: None)


def with_the_rotation_before_the_snapshots_fsync(patch):
    begin = DiskKeeper.begin_snapshot

    def early(keeper):
        begin(keeper)
        settle(keeper)
        keeper._segments.remove_before(keeper._writer.path)

    settle = DiskKeeper.settle
    patch.setattr(DiskKeeper, "begin_snapshot", early)


def without_fsync_of_folders(patch):
    for module in (data_folder, durable, segments):
        patch.setattr(module, "sync_folder", lambda _: None)


def without_fsync_of_snapshots(patch):
    sync = durable.sync

    def files_only(descriptor, path, **options):
        if path.suffix != ".writing":
            sync(descriptor, path, **options)

    patch.setattr(durable, "sync", files_only)


def without_fsync_of_what_was_recovered(patch):
    patch.setattr(segment, "sync", lambda _, path, data_only=False: data_only and durable.sync(_, path, data_only=True))


def with_a_snapshot_before_its_journal(patch):
    settle = Model.settle

    def not_in_snapshots(model):
        if "snapshot_writer" not in sys._getframe(1).f_code.co_filename:
            settle(model)

    patch.setattr(Model, "settle", not_in_snapshots)


def without_fsync_of_large_pushes(patch):
    patch.setattr(record_layout, "LARGE_BYTES", 4096)
    without_fsync_of_the_journal(patch)


def with_the_fsync_before_the_write_has_ended(patch):
    patch.setattr(record_layout, "LARGE_BYTES", 4096)

    def early(keeper, write, is_written):
        keeper._note_record(is_version=True)
        with contextlib.suppress(ServerUnavailableError):
            keeper.settle()
        write()
        is_written.set()

    patch.setattr(DiskKeeper, "_write_and_settle", early)


def with_the_end_of_a_push_after_its_fsync(patch):
    patch.setattr(record_layout, "LARGE_BYTES", 4096)
    whole = DirectFile.write

    def in_two(file, position, head, body, tail):
        assert whole(file, position, head, body, b"")
        os.fdatasync(file._direct)
        return whole(file, position + len(head) + len(body), b"", memoryview(b""), tail)

    def sync(writer):
        writer.synced = writer.size

    patch.setattr(DirectFile, "write", in_two)
    patch.setattr(Writer, "sync", sync)


def with_other_events_after_the_fsync_of_a_push(patch):
    patch.setattr(record_layout, "LARGE_BYTES", 4096)

    def sync(writer):
        if writer.size % 4096 == 0:
            durable.sync(writer._descriptor, writer.path, data_only=True)
        writer.synced = writer.size

    patch.setattr(Writer, "sync", sync)


@pytest.mark.parametrize(
    "broken",
    [
        without_fsync_of_the_journal,
        with_the_fsync_after_the_acknowledgement,
        with_the_rotation_before_the_snapshots_fsync,
        without_fsync_of_folders,
        without_fsync_of_snapshots,
        without_fsync_of_what_was_recovered,
        with_a_snapshot_before_its_journal,
        without_fsync_of_large_pushes,
        with_the_fsync_before_the_write_has_ended,
        with_the_end_of_a_push_after_its_fsync,
        with_other_events_after_the_fsync_of_a_push,
    ],
)
def test_a_broken_protocol_is_noticed(config, recorded, states, broken, monkeypatch, in_memory):
    _, wrong = wrong_images(config, recorded(broken), states, 4, monkeypatch, in_memory, most=1)
    assert wrong
