"""At the level `process` an acknowledged push survives any end of the server's process, and workers do not notice."""

import dataclasses
import errno
import os
import random
import resource
import shutil
import socket
import threading

import grpc
import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.embedded import Server
from numba_adam.server.storage.journal import Journal

PROCESS = model_pb2.DURABILITY_PROCESS
SIZE = 60_000


def gradient_of(worker, number, size=SIZE):
    return np.random.default_rng([worker, number]).standard_normal(size, dtype=np.float32)


def replay(start, pushes):
    """Return the parameters after the pushes, in order."""
    param, exp_avg, exp_avg_sq = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step, push in enumerate(pushes, 1):
        na.adam_update(param, gradient_of(*push, start.size), exp_avg, exp_avg_sq, step, lr=0.01)
    return param


@pytest.fixture
def start():
    return np.random.default_rng(1).standard_normal(SIZE, dtype=np.float32)


def restarted(processes, peers, process, folder, **options):
    """Kill a server and start another one on its folder; return it and a peer."""
    process.kill()
    process = processes(folder, memory_dir=str(folder.parent / "memory"), **options)
    return process, peers(process.address)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "memory").mkdir()
    return tmp_path / "data"


def serve(processes, folder, **options):
    return processes(folder, memory_dir=str(folder.parent / "memory"), **options)


def test_a_push_is_there_after_a_kill_and_its_retry_gets_the_same_answer(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    session = peer.session()
    acks = [session.push({"x": gradient_of(0, number)}) for number in (1, 2, 3)]
    assert {ack.state.durability for ack in acks} == {PROCESS}
    before = peer.state()
    process, peer = restarted(processes, peers, process, folder)
    assert peer.state() == before
    pulled = peer.pull()
    assert pulled.arrays["x"].tobytes() == replay(start, [(0, 1), (0, 2), (0, 3)]).tobytes()
    session.peer = peer
    again = session.push({"x": gradient_of(0, 3)}, sequence=3)
    assert again.duplicate
    assert again.version == 3
    assert session.push({"x": gradient_of(0, 4)}).version == 4


@pytest.mark.campaign
def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(folder, processes, peers, start, campaign):
    rng, workers = random.Random(campaign.seed(5)), 3
    process = serve(processes, folder, snapshot_every_pushes=7)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    state_id = peer.state().state_id
    sessions = [peer.session(worker_id=f"worker-{worker}") for worker in range(workers)]
    versions = {}  # (worker, number) -> version
    for _ in range(34):
        enough, ends = threading.Semaphore(0), []

        def work(worker):
            session = sessions[worker]
            try:
                while True:
                    number = session.sequence + 1
                    ack = session.push({"x": gradient_of(worker, number)})
                    assert versions.setdefault((worker, number), ack.version) == ack.version
                    enough.release()  # noqa: B023
            except grpc.RpcError as error:
                ends.append(error.code())  # noqa: B023

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
        for thread in threads:
            thread.start()
        for _ in range(rng.randint(5, 40)):
            assert enough.acquire(timeout=800)
        process, peer = restarted(processes, peers, process, folder, snapshot_every_pushes=7)
        for thread in threads:
            thread.join(800)
            assert not thread.is_alive()
        assert ends == [grpc.StatusCode.UNAVAILABLE] * workers
        assert peer.state().state_id == state_id
        for session in sessions:
            session.peer = peer
    for worker, session in enumerate(sessions):  # the last push of each may have been applied without an answer
        number = session.sequence + 1
        versions[worker, number] = session.push({"x": gradient_of(worker, number)}).version
    order = sorted(versions, key=versions.get)
    assert [versions[push] for push in order] == list(range(1, len(order) + 1))
    assert peer.pull().arrays["x"].tobytes() == replay(start, order).tobytes()
    campaign.did(kills=34, pushes=len(order))


def test_a_clean_stop_leaves_nothing_in_the_memory_folder_and_the_model_continues(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    session = peer.session()
    session.push({"x": gradient_of(0, 1)})
    before = peer.state().state_id
    assert list((folder.parent / "memory").glob("*/*/model/journal"))
    assert process.stop() == 0
    assert not list((folder.parent / "memory").glob("*/*"))
    peer = peers(serve(processes, folder).address)
    assert peer.state().state_id == before
    session.peer = peer
    assert session.push({"x": gradient_of(0, 2)}).version == 2


def test_a_deleted_model_leaves_nothing_in_the_memory_folder(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    peer.session().push({"x": gradient_of(0, 1)})
    peer.stub.DeleteModel(pb.DeleteModelRequest(model="model"))
    assert not list((folder.parent / "memory").glob("*/*/*"))
    process, peer = restarted(processes, peers, process, folder)
    assert not peer.stub.ListModels(pb.ListModelsRequest()).models


def test_pushes_that_arrive_together_survive_with_their_own_gradients(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    sessions = [peers(process.address).session(worker_id=f"worker-{worker}") for worker in range(6)]
    versions, started = {}, threading.Barrier(6)

    def work(worker):
        started.wait(800)
        for number in range(1, 6):
            versions[worker, number] = (
                sessions[worker].push({"x": gradient_of(worker, number)}, chunk_bytes=4096).version
            )

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(800)
    process, peer = restarted(processes, peers, process, folder)
    order = sorted(versions, key=versions.get)
    assert len(order) == 30
    assert peer.pull().arrays["x"].tobytes() == replay(start, order).tobytes()


def test_rejections_and_sessions_survive(folder, processes, peers, start, refused):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    session = peer.session()
    bad = start.copy()
    bad[7] = np.nan
    first = refused(lambda: session.push({"x": bad}))
    assert first.detail.sequence_recorded
    newer = peer.session(worker_id="other")
    process, peer = restarted(processes, peers, process, folder)
    session.peer = newer.peer = peer
    assert refused(lambda: session.push({"x": bad}, sequence=1)) == first
    assert newer.push({"x": gradient_of(1, 1)}).version == 1
    assert session.push({"x": gradient_of(0, 2)}, sequence=2).version == 2


def test_arrays_without_a_gradient_keep_their_step_counts(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start, "y": start[:10]}, lr=0.01, durability=PROCESS)
    session = peer.session()
    session.push({"x": gradient_of(0, 1), "y": None})
    session.push({"x": None, "y": gradient_of(0, 2, 10)})
    session.push({"x": gradient_of(0, 3), "y": gradient_of(0, 3, 10)})
    expected = peer.pull().arrays
    process, peer = restarted(processes, peers, process, folder)
    found = peer.pull().arrays
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert found["x"].tobytes() == replay(start, [(0, 1), (0, 3)]).tobytes()


def test_a_copy_of_the_data_folder_goes_back_to_its_snapshot_and_says_so(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    peer.session().push({"x": gradient_of(0, 1)})
    before = peer.state()
    process.kill()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    state = peers(serve(processes, copy).address).state()
    assert state.state_id != before.state_id
    assert state.version == 0
    assert peers(serve(processes, folder).address).state() == before


def test_an_older_run_of_the_data_folder_is_not_continued(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    process.kill()
    older = (folder / "run").read_bytes()
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.session().push({"x": gradient_of(0, 1)})
    before = peer.state()
    process.kill()
    process = serve(processes, folder)
    process.kill()
    (folder / "run").write_bytes(older)
    state = peers(serve(processes, folder).address).state()
    assert state.state_id != before.state_id
    assert state.version == 0


def test_without_a_file_system_in_memory_the_data_folder_is_used(folder, processes, peers):
    (folder.parent / "memory").rmdir()
    process = processes(folder, memory_dir="/dev/full-of-nothing")  # does not exist: the data folder is used
    peer = peers(process.address)
    peer.create({"x": np.zeros(10, np.float32)}, durability=PROCESS)
    assert list(folder.glob("memory/*/model/journal"))


def test_a_damaged_journal_stops_the_start_and_is_named(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    session = peer.session()
    for number in (1, 2):
        session.push({"x": gradient_of(0, number)})
    process.kill()
    (journal,) = (folder.parent / "memory").glob("*/*/model/journal")
    raw = bytearray(journal.read_bytes())
    raw[-1] ^= 1
    journal.write_bytes(raw)
    with pytest.raises(AssertionError, match=r"model/journal' is damaged at offset [0-9]+"):
        serve(processes, folder)
    raw[-1] ^= 1
    journal.write_bytes(raw)
    assert peers(serve(processes, folder).address).state().version == 2


def test_a_memory_folder_that_others_may_write_to_is_refused(folder, processes, peers, refused, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    (folder.parent / "memory" / f"numba-adam-{os.geteuid()}").mkdir()
    (folder.parent / "memory" / f"numba-adam-{os.geteuid()}").chmod(0o775)
    refusal = refused(lambda: peer.create({"x": start}, durability=PROCESS))
    assert "memory_dir" in refusal.message
    assert "others may write to" in refusal.message
    peer.create({"x": start})  # at the level memory


def test_a_model_that_the_memory_folder_has_no_room_for_is_refused_with_advice(
    config, peers, refused, start, monkeypatch
):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    memory = config.data_dir.parent / "memory"
    memory.mkdir()
    with Server(dataclasses.replace(config, memory_dir=memory)) as server:
        peer = peers(server.address)
        refusal = refused(lambda: peer.create({"x": start}, durability=PROCESS))
        assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "--memory-dir" in refusal.message
        used = server._runtime.pool.used_bytes
        assert used == 0
        peer.create({"x": start})


def test_a_system_that_cannot_reserve_memory_refuses_the_level(folder, processes, peers, refused, start):
    peer = peers(serve(processes, folder, first="import os; del os.posix_fallocate").address)
    refusal = refused(lambda: peer.create({"x": start}, durability=PROCESS))
    assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "posix_fallocate" in refusal.message
    assert "durability='memory'" in refusal.message
    assert peer.create({"x": start}).model.state.durability == model_pb2.DURABILITY_MEMORY


def test_a_restart_without_room_says_which_setting_to_change(folder, processes, peers, start):
    process = serve(processes, folder)
    peers(process.address).create({"x": start}, durability=PROCESS)
    assert process.stop() == 0
    little_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    with pytest.raises(AssertionError, match=r"memory_dir: model 'model'.*--memory-dir"):
        serve(processes, folder, first=little_room)
    assert peers(serve(processes, folder).address).state().version == 0


def test_a_gradient_waits_for_room_that_another_one_uses(folder, processes, peers, refused, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, durability=PROCESS)
    slow, quick = peer.session(worker_id="slow"), peer.session(worker_id="quick")
    has_begun, may_end = threading.Event(), threading.Event()

    def held():
        for number, message in enumerate(slow.messages({"x": gradient_of(0, 1)}, chunk_bytes=SIZE)):
            yield message
            if number == 1:
                has_begun.set()
                assert may_end.wait(800)

    acks = []
    thread = threading.Thread(target=lambda: acks.append(peer.stub.Push(held(), timeout=800)))
    thread.start()
    assert has_begun.wait(800)
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SIZE, unlimited[1]))
    refusal = refused(lambda: quick.push({"x": gradient_of(1, 1)}))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
    assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.detail.reason == Reason.REASON_BUDGET  # which clients retry
    may_end.set()
    thread.join(800)
    assert quick.push({"x": gradient_of(1, 1)}).version == 2


def test_pushes_wait_for_room_in_the_journal_and_nothing_is_changed(config, peers, refused, start, monkeypatch):
    memory = config.data_dir.parent / "memory"
    memory.mkdir()
    with Server(dataclasses.replace(config, memory_dir=memory)) as server:
        peer = peers(server.address)
        peer.create({"x": start}, lr=0.01, durability=PROCESS)
        session = peer.session()
        session.push({"x": gradient_of(0, 1)})

        def full(journal, record):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", full)
            refusal = refused(lambda: session.push({"x": gradient_of(0, 2)}))
            assert refusal.code == grpc.StatusCode.UNAVAILABLE
            assert "No space left" in refusal.message
            assert peer.state().version == 1
        assert session.push({"x": gradient_of(0, 2)}).version == 2
        assert peer.pull().arrays["x"].tobytes() == replay(start, [(0, 1), (0, 2)]).tobytes()


def test_a_start_that_fails_keeps_what_a_killed_server_left(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    peer.session().push({"x": gradient_of(0, 1)})
    before = peer.state()
    process.kill()
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(AssertionError, match=r"another program may have it"),
    ):
        serve(processes, folder, listen=f"127.0.0.1:{other.getsockname()[1]}")
    assert peers(serve(processes, folder).address).state() == before


def test_a_budget_that_is_too_small_keeps_what_a_killed_server_left(folder, processes, peers, start):
    process = serve(processes, folder)
    peer = peers(process.address)
    peer.create({"x": np.zeros(600_000, np.float32)}, lr=0.01, durability=PROCESS)
    peer.session().push({"x": gradient_of(0, 1, 600_000)})
    before = peer.state()
    process.kill()
    with pytest.raises(AssertionError, match="memory_budget_bytes=1048576"):
        serve(processes, folder, memory_budget_bytes=1 << 20)
    assert peers(serve(processes, folder).address).state() == before


def test_a_model_that_could_not_be_saved_at_the_stop_is_continued(folder, processes, peers, start):
    fail = (
        "import numba_adam.server.storage.data_folder as data_folder\n"
        "class Fails:\n"
        "    calls = 0\n"
        "write = data_folder.DataFolder.write\n"
        "def once(self, name, capture):\n"
        "    Fails.calls += 1\n"
        "    if Fails.calls > 1: raise OSError(28, 'No space left on device')\n"
        "    return write(self, name, capture)\n"
        "data_folder.DataFolder.write = once\n"
    )
    process = serve(processes, folder, first=fail)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=PROCESS)
    session = peer.session()
    session.push({"x": gradient_of(0, 1)})
    before = peer.state()
    assert process.stop() == 1
    peer = session.peer = peers(serve(processes, folder).address)
    assert peer.state() == before
    assert session.push({"x": gradient_of(0, 2)}).version == 2
