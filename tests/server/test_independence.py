"""Models are independent: a delay of one does not delay the others.

A disk that takes nothing is a FIFO where the snapshot's file has to be: whoever writes into it waits, for real, until
somebody reads.
"""

import contextlib
import dataclasses
import logging
import os
import select
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numba
import numpy as np
import pytest
from safetensors import safe_open

from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server
from numba_adam.server.runtime import slices

DEADLINE = 60  # seconds: generous, and never waited for unless something is wrong
SIZE = 100_000  # elements: a snapshot of 1.2 MB, more than a FIFO takes
ROOM = 1 << 28
NO_ROOM = 5 * (1 << 20)  # for two such models and transfers, and not for a copy of a state beside them


class SlowDisk:
    """A FIFO in place of a model's next snapshot."""

    def __init__(self, folder, model, number):
        self._path = folder / "models" / model / f"{number:08d}.writing"
        os.mkfifo(self._path)
        self._reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)

    def wait_until_full(self):
        """Wait until the FIFO is full, so that the writer blocks."""
        pause = threading.Event()
        writer = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            while _takes_more(writer):
                pause.wait(0.001)
        finally:
            os.close(writer)

    def give_way(self):
        """Read until the writer closes. The snapshot fails, because a FIFO cannot be truncated."""
        os.set_blocking(self._reader, True)
        while os.read(self._reader, 1 << 16):
            pass
        os.close(self._reader)


def _takes_more(writer):
    """Return whether a byte could be written to a FIFO."""
    _, ready, _ = select.select([], [writer], [], 0)
    return bool(ready)


@contextlib.contextmanager
def disk_blocked(folder, model="a", number=2):
    """Block the writing of a model's snapshot until the context ends."""
    disk = SlowDisk(folder, model, number)
    try:
        yield disk
    finally:
        disk.give_way()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def models(peers):
    """Creates models of SIZE elements; returns a peer and a session for each."""

    def create(server, *names):
        peer = peers(server.address)
        for name in names:
            peer.create(ones(), name, lr=0.1)  # not zero: zeros are holes in a file, and take no writing
        return peer, [peer.session(name) for name in names]

    return create


def ones(size=SIZE):
    return {"x": np.ones(size, np.float32)}


def everything_works(peer, session, name):
    """Make every kind of call about a model."""
    version = peer.state(name).version
    assert session.push(ones()).version == version + 1
    assert peer.pull(name).state.version == version + 1
    ack, pulled = peer.push_pull(session, ones())
    assert (ack.version, pulled.state.version) == (version + 2, version + 2)
    assert peer.session(name, "another").push(ones()).version == version + 3
    (info,) = peer.stub.Snapshot(pb.SnapshotRequest(model=name), timeout=DEADLINE).snapshots
    assert info.state.version == version + 3
    peer.create(ones(10), "new")
    peer.stub.DeleteModel(pb.DeleteModelRequest(model="new"), timeout=DEADLINE)
    assert name in [model.spec.name for model in peer.stub.ListModels(pb.ListModelsRequest()).models]
    assert peer.stub.GetServerStatus(pb.GetServerStatusRequest(), timeout=DEADLINE).models


@pytest.mark.parametrize("budget", [ROOM, NO_ROOM], ids=["with room for a copy", "without"])
def test_a_snapshot_that_waits_for_the_disk_does_not_delay_other_models(config, models, threads, refused, budget):
    with Server(dataclasses.replace(config, memory_budget_bytes=budget)) as server:
        peer, (_, b) = models(server, "a", "b")
        with disk_blocked(config.data_dir) as disk:
            snapshot = threads.submit(refused, lambda: peer.stub.Snapshot(pb.SnapshotRequest(model="a")))
            disk.wait_until_full()
            everything_works(peer, b, "b")
            assert not snapshot.done()
        assert "model 'a': its snapshot could not be written" in snapshot.result(DEADLINE).message


def test_a_snapshot_that_waits_for_the_disk_does_not_delay_its_own_model(config, models, threads, refused):
    with Server(config) as server:
        peer, (a,) = models(server, "a")
        with disk_blocked(config.data_dir) as disk:
            snapshot = threads.submit(refused, lambda: peer.stub.Snapshot(pb.SnapshotRequest(model="a")))
            disk.wait_until_full()
            assert a.push(ones()).version == 1
            assert peer.pull("a").state.version == 1
            assert not snapshot.done()
        snapshot.result(DEADLINE)


def test_without_memory_for_a_copy_pushes_wait_and_none_is_lost(config, models, threads, refused):
    with Server(dataclasses.replace(config, memory_budget_bytes=NO_ROOM)) as server:
        peer, (a, _) = models(server, "a", "b")
        apply_queue = server._runtime.registry.get("a").apply_queue
        with disk_blocked(config.data_dir) as disk:
            snapshot = threads.submit(refused, lambda: peer.stub.Snapshot(pb.SnapshotRequest(model="a")))
            disk.wait_until_full()
            push = threads.submit(a.push, ones())
            pause = threading.Event()
            while apply_queue.waiting == 0:  # the test's timeout is its limit
                pause.wait(0.001)
            assert not push.done()
        snapshot.result(DEADLINE)
        assert push.result(DEADLINE).version == 1
        assert (peer.pull("a").arrays["x"] != 0).all()


def test_a_snapshot_during_pushes_has_one_version(config, models, threads):
    """All elements of a version are equal, so a mixture of versions would be detected."""
    with Server(config) as server:
        peer, (a,) = models(server, "a")
        over = threading.Event()

        def push():
            while not over.is_set():
                a.push(ones())

        pushing = threads.submit(push)
        versions = []
        for _ in range(5):
            versions.append(peer.stub.Snapshot(pb.SnapshotRequest(model="a")).snapshots[0].state.version)
            wanted = versions[-1] + 1
            while peer.state("a").version < wanted:
                pass
        over.set()
        pushing.result(DEADLINE)
        assert versions == sorted(set(versions))
        last = peer.stub.Snapshot(pb.SnapshotRequest(model="a")).snapshots[0].state.version
    for path in (config.data_dir / "models" / "a").glob("*.snapshot"):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                array = file.get_tensor(name)
                assert (array == array[0]).all(), (path.name, name)
    assert last >= versions[-1]


def test_snapshots_in_a_loop_do_not_delay_another_models_interval(config, models, threads):
    with Server(dataclasses.replace(config, snapshot_interval_seconds=0.05)) as server:
        peer, (_, b) = models(server, "a", "b")
        over = threading.Event()

        def loop():
            while not over.is_set():
                peer.stub.Snapshot(pb.SnapshotRequest(model="a"), timeout=DEADLINE)

        loops = [threads.submit(loop) for _ in range(3)]
        for version in (1, 2, 3):
            b.push(ones())
            while peer.state("b").snapshot_version < version:  # the test's timeout is its limit
                assert not any(each.done() for each in loops)
        over.set()
        for each in loops:
            each.result(DEADLINE)


@pytest.mark.parametrize("settings", [{"snapshot_interval_seconds": 0.05}, {"snapshot_every_pushes": 1}])
def test_a_waiting_background_snapshot_does_not_delay_other_models(config, models, settings, caplog):
    with Server(dataclasses.replace(config, **settings)) as server:
        peer, (a, b) = models(server, "a", "b")
        with disk_blocked(config.data_dir) as disk:
            a.push(ones())
            disk.wait_until_full()
            for version in (1, 2):
                b.push(ones())
                while peer.state("b").snapshot_version < version:  # the test's timeout is its limit
                    assert peer.state("a").snapshot_version == 0
        with caplog.at_level(logging.INFO):
            a.push(ones())
            while peer.state("a").snapshot_version < 2:
                assert peer.state("a").version == 2


def test_pushes_during_a_snapshot_by_count_are_counted(config, models):
    """No push follows, so the snapshot writer must check again."""
    with Server(dataclasses.replace(config, snapshot_every_pushes=1)) as server:
        peer, (a,) = models(server, "a")
        with disk_blocked(config.data_dir) as disk:
            a.push(ones())
            disk.wait_until_full()
            a.push(ones())
            assert a.push(ones()).version == 3
        while peer.state("a").snapshot_version < 3:  # the test's timeout is its limit
            assert peer.state("a").version == 3


def test_a_deletion_waits_for_the_models_snapshot_and_removes_all_files(config, models, threads, refused):
    with Server(config) as server:
        peer, _ = models(server, "a", "b")
        with disk_blocked(config.data_dir) as disk:
            snapshot = threads.submit(refused, lambda: peer.stub.Snapshot(pb.SnapshotRequest(model="a")))
            disk.wait_until_full()
            snapshot_queue = server._runtime.registry.get("a").snapshot_queue
            deletion = threads.submit(peer.stub.DeleteModel, pb.DeleteModelRequest(model="a"))
            pause = threading.Event()
            while snapshot_queue.waiting == 0:  # the test's timeout is its limit
                assert not deletion.done()
                pause.wait(0.001)
            assert (config.data_dir / "models" / "a").exists()
        snapshot.result(DEADLINE)
        deletion.result(DEADLINE)
        assert [path.name for path in (config.data_dir / "models").iterdir()] == ["b"]


def test_snapshots_of_one_model_are_written_one_at_a_time(config, models, threads, refused):
    with Server(config) as server:
        peer, _ = models(server, "a")
        snapshot_queue = server._runtime.registry.get("a").snapshot_queue
        with disk_blocked(config.data_dir) as disk:
            first = threads.submit(refused, lambda: peer.stub.Snapshot(pb.SnapshotRequest(model="a")))
            disk.wait_until_full()
            second = threads.submit(peer.stub.Snapshot, pb.SnapshotRequest(model="a"))
            pause = threading.Event()
            while snapshot_queue.waiting == 0:  # the test's timeout is its limit
                pause.wait(0.001)
            assert not second.done()
        first.result(DEADLINE)
        assert second.result(DEADLINE).snapshots[0].state.version == 0
    assert files(config, "a") == ["00000001.snapshot", "00000002.snapshot"]


def files(config, model):
    """Return the names of a model's snapshots."""
    return sorted(path.name for path in (config.data_dir / "models" / model).iterdir())


@contextlib.contextmanager
def held(queue, threads):
    """Occupy a call queue until the context ends."""
    begun, over = threading.Event(), threading.Event()

    def hold():
        begun.set()
        assert over.wait(DEADLINE)

    call = threads.submit(queue.call, hold)
    assert begun.wait(DEADLINE)
    try:
        yield
    finally:
        over.set()
        call.result(DEADLINE)


def test_a_snapshot_waits_for_the_current_update_and_releases_its_memory(config, models, threads):
    """With memory for a copy and without."""
    for budget in (ROOM, NO_ROOM):
        settings = dataclasses.replace(config, memory_budget_bytes=budget, data_dir=config.data_dir / str(budget))
        with Server(settings) as server:
            peer, _ = models(server, "a", "b")
            apply_queue, before = server._runtime.registry.get("a").apply_queue, server._runtime.pool.used_bytes
            with held(apply_queue, threads):
                snapshot = threads.submit(peer.stub.Snapshot, pb.SnapshotRequest(model="a"))
                while apply_queue.waiting == 0:  # the test's timeout is its limit
                    assert not snapshot.done()
            assert snapshot.result(DEADLINE).snapshots[0].state.version == 0
            assert server._runtime.pool.used_bytes == before


def test_a_background_snapshot_is_skipped_after_a_newer_one(config, models, threads):
    with Server(dataclasses.replace(config, snapshot_every_pushes=1)) as server:
        peer, (a,) = models(server, "a")
        runtime, snapshot_queue = server._runtime, server._runtime.registry.get("a").snapshot_queue
        pause = threading.Event()
        with held(snapshot_queue, threads):
            snapshot = threads.submit(peer.stub.Snapshot, pb.SnapshotRequest(model="a"))
            while snapshot_queue.waiting < 1:  # the test's timeout is its limit
                pause.wait(0.001)
            a.push(ones())
            while snapshot_queue.waiting < 2:  # the background's, for the push
                pause.wait(0.001)
        assert snapshot.result(DEADLINE).snapshots[0].state.version == 1
        while runtime.snapshots._queued:
            pause.wait(0.001)
        assert files(config, "a") == ["00000001.snapshot", "00000002.snapshot"]


def test_an_unchanged_model_gets_no_snapshot_at_its_interval(config, models):
    with Server(dataclasses.replace(config, snapshot_interval_seconds=0.05)) as server:
        peer, (_, b) = models(server, "a", "b")
        for version in (1, 2, 3):
            b.push(ones())
            while peer.state("b").snapshot_version < version:  # the test's timeout is its limit
                pass
        assert files(config, "a") == ["00000001.snapshot"]


def test_stop_waits_for_a_snapshot_in_progress(config, peers, threads, refused):
    """Otherwise the next server would start while this one still writes."""
    server = Server(config)
    server.start()
    peer = peers(server.address)
    peer.create(ones(), "a")
    snapshots = server._runtime.snapshots
    with disk_blocked(config.data_dir) as disk:
        snapshot = threads.submit(refused, lambda: peer.stub.Snapshot(pb.SnapshotRequest(model="a")))
        disk.wait_until_full()
        stop = threads.submit(snapshots.stop)
        while not snapshots._changed._waiters and not stop.done():  # the test's timeout is its limit
            pass
        assert not stop.done()
    stop.result(DEADLINE)
    assert "could not be written" in snapshot.result(DEADLINE).message
    server.stop()


def test_small_pushes_complete_during_a_large_update_of_another_model(config, models, threads, peers):
    """The launcher is blocked within a slice. Only large pushes wait for it."""
    with Server(config) as server:
        peer, (_, b) = models(server, "a", "b")
        large = slices.MOST_ELEMENTS + 1
        peer.create({"x": np.zeros(large, np.float32)}, "large", lr=0.1)
        peer.create({"x": np.zeros(1_000, np.float32)}, "small", lr=0.1)
        begun, over = threading.Event(), threading.Event()

        def slice_without_end():
            begun.set()
            assert over.wait(DEADLINE)
            yield

        launcher = server._runtime.launcher
        held = threads.submit(launcher.run, slice_without_end())
        assert begun.wait(DEADLINE)
        push = threads.submit(peer.session("large").push, ones(large))
        while launcher._jobs < 2:  # until the large push waits; the test's timeout is its limit
            assert not push.done()
        everything_works(peer, b, "b")
        small = peer.session("small")
        for version in (1, 2, 3):
            assert small.push(ones(1_000)).version == version
        assert not push.done()
        over.set()
        held.result(DEADLINE)
        assert push.result(DEADLINE).version == 1


@pytest.mark.parametrize("call", ["push", "pull", "push_pull"])
def test_large_updates_give_way_only_to_calls_about_small_models(config, peers, call):
    """Test slices record the threads that slices get; the test controls the clock."""
    with Server(config) as server:
        peer, launcher = peers(server.address), server._runtime.launcher
        found, seconds = [], 0.0
        launcher._clock = lambda: seconds
        calls = {
            "push": lambda name, grads: peer.session(name).push(grads),
            "pull": lambda name, _: peer.pull(name),
            "push_pull": lambda name, grads: peer.push_pull(peer.session(name), grads),
        }

        def slices_of_a_large_update():
            found.append(numba.get_num_threads())
            yield

        for name, size in (("large", slices.MOST_ELEMENTS + 1), ("small", 1_000)):
            peer.create({"x": np.zeros(size, np.float32)}, name, lr=0.1)
            calls[call](name, ones(size))
            launcher.run(slices_of_a_large_update())
        seconds = 1.0
        launcher.run(slices_of_a_large_update())
        assert found == [launcher.threads, launcher.fewer_threads, launcher.threads]


def test_the_number_of_threads_does_not_depend_on_the_number_of_models(config, peers):
    before = set(threading.enumerate())
    with Server(dataclasses.replace(config, snapshot_interval_seconds=0.05, snapshot_every_pushes=1)) as server:
        peer = peers(server.address)
        for number in range(100):
            peer.create(ones(10), f"m{number}")
            peer.session(f"m{number}").push(ones(10))
        ours = [thread.name for thread in threading.enumerate() if thread.name.startswith("numba-adam")]
        assert len([name for name in ours if "rpc" not in name]) < 40
        assert len(ours) < 40 + config.rpc_threads
        for number in range(100):
            peer.stub.DeleteModel(pb.DeleteModelRequest(model=f"m{number}"), timeout=DEADLINE)
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("numba-adam")]
    for thread in left:  # gRPC does not wait for the last of its calls to leave the thread
        thread.join(DEADLINE)
    assert not [thread.name for thread in left if thread.is_alive()]


def test_calls_that_wait_for_snapshots_leave_threads_for_pushes(config, models, threads, refused):
    """As many snapshot requests as calls are served, with a blocked disk."""
    with Server(dataclasses.replace(config, rpc_threads=8)) as server:
        peer, (_, b) = models(server, "a", "b")
        with disk_blocked(config.data_dir) as disk:
            request = pb.SnapshotRequest(model="a")
            first = threads.submit(refused, lambda: peer.stub.Snapshot(request))
            disk.wait_until_full()
            others = [peer.stub.Snapshot.future(request, timeout=DEADLINE) for _ in range(8)]
            while sum(other.done() for other in others) < 5:  # half of what is served may wait, the first included
                pass
            assert b.push(ones()).version == 1
            told = refused(lambda: peer.stub.Snapshot(request, timeout=DEADLINE))
            assert (told.detail.reason, told.detail.retry_after_milliseconds > 0) == (Reason.REASON_BUDGET, True)
            assert "too many calls wait already" in told.message
        first.result(DEADLINE)
        assert {other.code() for other in others} <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert peer.stub.Snapshot(request, timeout=DEADLINE).snapshots[0].model == "a"


def test_a_blocked_disk_of_one_model_does_not_delay_snapshots_of_others(config, models, threads, refused):
    """For a request for snapshots of all models."""
    with Server(config) as server:
        peer, sessions = models(server, "a", "b", "c")
        for session in sessions:
            session.push(ones())
        with disk_blocked(config.data_dir) as disk:
            everything = threads.submit(refused, lambda: peer.stub.Snapshot(pb.SnapshotRequest()))
            disk.wait_until_full()
            while [peer.state(name).snapshot_version for name in "bc"] != [1, 1]:  # the test's timeout is its limit
                assert not everything.done()
        assert "model 'a': its snapshot could not be written" in everything.result(DEADLINE).message
        assert peer.state("a").snapshot_version == 0


def test_a_blocked_disk_of_one_model_does_not_delay_saving_others_at_the_stop(config, models, threads):
    server = Server(config)
    server.start()
    _, sessions = models(server, "a", "b", "c")
    for session in sessions:
        session.push(ones())
    registry = server._runtime.registry
    with disk_blocked(config.data_dir) as disk:
        stop = threads.submit(server.stop)
        disk.wait_until_full()
        while [registry.get(name).snapshot_version for name in "bc"] != [1, 1]:  # the test's timeout is its limit
            assert not stop.done()
    assert stop.result(DEADLINE)  # the disk took the second try
    assert registry.get("a").snapshot_version == 1


def test_a_model_deleted_during_a_snapshot_of_all_is_omitted(config, models, threads):
    """It was in the list, and was deleted before its turn."""
    with Server(config) as server:
        peer, _ = models(server, "a", "b")
        snapshot_queue = server._runtime.registry.get("a").snapshot_queue
        pause = threading.Event()
        with held(snapshot_queue, threads):
            all_of_them = server._runtime.registry.all()
            deletion = threads.submit(peer.stub.DeleteModel, pb.DeleteModelRequest(model="a"))
            while snapshot_queue.waiting < 1:  # the test's timeout is its limit
                assert not deletion.done()
                pause.wait(0.001)
            everything = threads.submit(server._runtime.snapshots.snapshot_all, all_of_them)
            while snapshot_queue.waiting < 2:
                pause.wait(0.001)
        assert [model.spec.name for model, _ in everything.result(DEADLINE)] == ["b"]
        deletion.result(DEADLINE)
