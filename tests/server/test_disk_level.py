"""At the level `disk` an acknowledged push survives a power failure, and workers do not notice."""

import random
import re
import shutil
import threading

import grpc
import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

DISK = model_pb2.DURABILITY_DISK
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


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def serve(processes, folder):
    """Starts a server whose memory folder is empty, as after a power failure."""

    def start_server(path=folder, **options):
        memory = folder.parent / "memory"
        shutil.rmtree(memory, ignore_errors=True)
        memory.mkdir()
        return processes(path, memory_dir=str(memory), **options)

    return start_server


def test_a_push_is_there_after_a_power_failure_and_its_retry_gets_the_same_answer(serve, peers, start):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    session = peer.session()
    acks = [session.push({"x": gradient_of(0, number)}) for number in (1, 2, 3)]
    assert {ack.state.durability for ack in acks} == {DISK}
    assert [ack.state.version for ack in acks] == [1, 2, 3]
    before = peer.state()
    process.kill()
    peer = session.peer = peers(serve().address)
    assert peer.state() == before
    assert peer.pull().arrays["x"].tobytes() == replay(start, [(0, 1), (0, 2), (0, 3)]).tobytes()
    again = session.push({"x": gradient_of(0, 3)}, sequence=3)
    assert (again.duplicate, again.version) == (True, 3)
    assert session.push({"x": gradient_of(0, 4)}).version == 4


def test_a_long_replay_says_how_far_it_is(serve, peers, start):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    session = peer.session()
    for number in range(1, 6):
        session.push({"x": gradient_of(0, number)})
    process.kill()
    process = serve(first="from numba_adam.server.runtime import disk_recovery; disk_recovery._REPORT_SECONDS = 0.0")
    shares = [int(found) for found in re.findall(r"model model: .*: replaying, (\d+) % done", process.log.read_text())]
    assert shares == [0, 0, 20, 40, 60, 80]  # the session, and five gradients
    assert peers(process.address).state().version == 5


@pytest.mark.campaign
def test_power_failures_at_random_moments_lose_nothing_that_was_acknowledged(serve, peers, start, campaign):
    rng, workers = random.Random(campaign.seed(6)), 3
    options = {"snapshot_every_pushes": 7}
    process = serve(**options)
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    state_id = peer.state().state_id
    sessions = [peer.session(worker_id=f"worker-{worker}") for worker in range(workers)]
    versions = {}  # (worker, number) -> version
    for _ in range(25):
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
        process.kill()
        process = serve(**options)
        peer = peers(process.address)
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
    campaign.did(kills=25, pushes=len(order))


def test_rejections_sessions_and_arrays_without_a_gradient_survive(serve, peers, start, refused):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start, "y": start[:10]}, lr=0.01, durability=DISK)
    session = peer.session()
    bad = start.copy()
    bad[7] = np.nan
    first = refused(lambda: session.push({"x": bad, "y": None}))
    assert first.detail.sequence_recorded
    session.sequence = 1
    session.push({"x": gradient_of(0, 1), "y": None})
    session.push({"x": None, "y": gradient_of(0, 2, 10)})
    session.push({"x": None, "y": None})
    newer = peer.session(worker_id="other")
    expected = peer.pull().arrays
    process.kill()
    peer = session.peer = newer.peer = peers(serve().address)
    found = peer.pull().arrays
    assert {name: found[name].tobytes() for name in found} == {name: expected[name].tobytes() for name in expected}
    assert found["x"].tobytes() == replay(start, [(0, 1)]).tobytes()
    assert refused(lambda: session.push({"x": bad, "y": None}, sequence=1)).message == first.message
    assert newer.push({"x": gradient_of(1, 1), "y": None}).version == 4
    assert session.push({"x": gradient_of(0, 3), "y": gradient_of(0, 3, 10)}).version == 5


def test_snapshots_rotate_the_journal_and_the_last_two_are_enough(serve, peers, start, folder):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    session = peer.session()
    for number in range(1, 9):
        session.push({"x": gradient_of(0, number)})
        if number % 2 == 0:
            peer.stub.Snapshot(pb.SnapshotRequest())
    session.push({"x": gradient_of(0, 9)})
    before = peer.state()
    assert before.snapshot_version == 8
    process.kill()
    assert len(list(folder.glob("models/model/*.journal"))) == 2
    newest = max(folder.glob("models/model/*.snapshot"))
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    peer = peers(serve().address)
    assert (peer.state().version, peer.state().state_id) == (9, before.state_id)
    pushes = [(0, number) for number in range(1, 10)]
    assert peer.pull().arrays["x"].tobytes() == replay(start, pushes).tobytes()


def test_a_clean_stop_and_a_power_failure_after_it_go_unnoticed(serve, peers, start):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    session = peer.session()
    session.push({"x": gradient_of(0, 1)})
    before = peer.state().state_id
    assert process.stop() == 0
    process = serve()
    session.peer = peers(process.address)
    assert session.peer.state().state_id == before
    assert session.push({"x": gradient_of(0, 2)}).version == 2
    process.kill()
    session.peer = peers(serve().address)
    assert session.push({"x": gradient_of(0, 3)}).version == 3
    assert session.peer.state().state_id == before


def test_a_copy_of_the_data_folder_has_every_push_and_another_state_id(serve, peers, start, folder):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    peer.session().push({"x": gradient_of(0, 1)})
    before = peer.state()
    process.kill()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    ids = set()
    for _ in range(2):
        process = serve(copy)
        peer = peers(process.address)
        assert peer.state().version == peer.session(worker_id=f"w{len(ids)}").push({"x": None}).version - 1
        ids.add(peer.state().state_id)
        assert before.state_id not in ids
        process.kill()
    assert len(ids) == 1  # the copy has a history of its own, which goes on
    assert peers(serve().address).state() == before


def test_a_model_that_is_deleted_and_created_again_is_the_new_one(serve, peers, start):
    process = serve()
    peer = peers(process.address)
    for number in (1, 2):
        peer.create({"x": start}, lr=0.01, durability=DISK)
        peer.session().push({"x": gradient_of(0, number)})
        before = peer.state()
        if number == 1:
            peer.stub.DeleteModel(pb.DeleteModelRequest(model="model"))
    process.kill()
    peer = peers(serve().address)
    assert peer.state() == before
    assert peer.pull().arrays["x"].tobytes() == replay(start, [(0, 2)]).tobytes()
    peer.stub.DeleteModel(pb.DeleteModelRequest(model="model"))


def test_pushes_that_arrive_together_survive_with_their_own_gradients(serve, peers, start):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    sessions = [peers(process.address).session(worker_id=f"worker-{worker}") for worker in range(6)]
    versions, started = {}, threading.Barrier(6)

    def work(worker):
        started.wait(800)
        for number in range(1, 6):
            push = {"x": gradient_of(worker, number)}
            versions[worker, number] = sessions[worker].push(push, chunk_bytes=4096).version

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(800)
    process.kill()
    order = sorted(versions, key=versions.get)
    assert len(order) == 30
    assert peers(serve().address).pull().arrays["x"].tobytes() == replay(start, order).tobytes()


def test_damage_in_the_middle_stops_the_start_and_a_torn_end_is_cut_off(serve, peers, start, folder):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    session = peer.session()
    for number in (1, 2):
        session.push({"x": gradient_of(0, number)})
    process.kill()
    (journal,) = folder.glob("models/model/*.journal")
    raw = journal.read_bytes()
    with journal.open("r+b") as file:
        file.seek(len(raw) // 3)
        file.write(bytes([raw[len(raw) // 3] ^ 1]))
    with pytest.raises(AssertionError, match=r"00000001.journal' is damaged at offset [0-9]+: a gradient's checksum"):
        serve()
    with journal.open("r+b") as file:
        file.write(raw[:-100])
        file.truncate()
    process = serve()
    session.peer = peers(process.address)
    assert session.peer.state().version == 1
    assert "cut off" in process.log.read_text()
    assert session.push({"x": gradient_of(0, 2)}, sequence=2).version == 2
    assert session.peer.pull().arrays["x"].tobytes() == replay(start, [(0, 1), (0, 2)]).tobytes()


def test_a_missing_journal_or_run_record_is_a_rewind(serve, peers, start, folder):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    peer.session().push({"x": gradient_of(0, 1)})
    before = peer.state()
    process.kill()
    older = (folder / "run").read_bytes()
    process = serve()
    assert peers(process.address).state() == before
    process.kill()
    process = serve()
    process.kill()
    (folder / "run").write_bytes(older)
    process = serve()
    state = peers(process.address).state()
    assert (state.version, state.state_id == before.state_id) == (1, False)
    process.kill()
    for path in folder.glob("models/model/*.journal"):
        path.unlink()
    last = peers(serve().address).state()
    assert last.state_id not in (state.state_id, before.state_id)


def test_an_older_snapshot_without_its_journal_stops_the_start(serve, peers, start, folder):
    process = serve()
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=DISK)
    session = peer.session()
    for number in range(1, 5):
        session.push({"x": gradient_of(0, number)})
        peer.stub.Snapshot(pb.SnapshotRequest())
    process.kill()
    for path in sorted(folder.glob("models/model/*.snapshot"))[1:]:
        path.rename(path.with_suffix(".away"))
    with pytest.raises(AssertionError, match=r"journal' begins with version [34], and the newest intact snapshot has"):
        serve()
