"""The mode "sync" for users: our client waits for the rounds by itself."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import numba_adam as na

SIZE = 300


def gradient_of(worker, number):
    return np.random.default_rng([worker, number]).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def start():
    return np.random.default_rng(3).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def team(connect, server):
    """Makes clients, one for each worker."""
    return lambda count: [
        connect(server.address, worker_id=f"w{number}", timeout_seconds=800) for number in range(count)
    ]


@pytest.mark.parametrize("durability", ["memory", "process", "disk"])
@pytest.mark.parametrize("call", ["push", "push_pull", "push_async", "worker"])
def test_workers_in_rounds_have_the_bits_of_one_process(team, start, durability, call):
    clients = team(3)
    for client in clients:  # all run the same program
        client.create_model(
            "m", {"x": start}, lr=0.01, mode="sync", workers=3, round_timeout_seconds=800, durability=durability,
            exist_ok=True,
        )  # fmt: skip

    def work(worker):
        model = clients[worker].open_model("m")
        acks = []
        if call == "worker":
            for number, step in model.worker(range(4), worker_id=f"w{worker}"):
                step.grads = {"x": gradient_of(worker, number)}
                acks.append(step.ack)
            return 4
        model.pull()
        for number in range(4):
            grads = {"x": gradient_of(worker, number)}
            if call == "push_pull":
                model.push_pull(grads)
            else:
                ack = model.push(grads) if call == "push" else model.push_async(grads).result(800)
                acks.append(ack.outcome)
                model.pull(ack.version)
        assert set(acks) <= {"applied"}
        return model.version

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == [4, 4, 4]
    alone = start.copy()
    optimizer = na.Adam([alone], lr=0.01)
    for number in range(4):
        total = gradient_of(0, number)
        for worker in (1, 2):
            total = total + gradient_of(worker, number)
        optimizer.step([total / np.float32(3)])
    assert clients[0].open_model("m").pull()["x"].tobytes() == alone.tobytes()


def test_a_slow_worker_is_told_that_it_is_late_and_goes_on(team, start):
    fast, slow = team(2)
    model = fast.create_model("m", {"x": start}, mode="sync", workers=2, backup=1)
    late = slow.open_model("m")
    assert model.push({"x": gradient_of(0, 0)}).applied
    ack = late.push({"x": gradient_of(1, 0)})
    assert (ack.outcome, ack.applied, ack.version, ack.rewound_to) == ("late", False, 1, None)
    pulled = late.push_pull({"x": gradient_of(1, 1)})  # late again, for it was computed from the same version
    assert late.last_ack.outcome == "late"
    assert pulled["x"].tobytes() == model.pull()["x"].tobytes()
    ack = late.push({"x": gradient_of(1, 2)})
    assert (ack.outcome, ack.version) == ("applied", 2)


def test_everyone_in_an_aborted_round_is_told_and_goes_on(team, start):
    clients = team(3)
    clients[0].create_model("m", {"x": start}, mode="sync", workers=3, round_timeout_seconds=0.2)
    handles = [client.open_model("m") for client in clients]
    with ThreadPoolExecutor(3) as pool:
        acks = list(pool.map(lambda handle: handle.push({"x": gradient_of(0, 0)}), handles[:2]))
    assert [(ack.outcome, ack.applied, ack.version) for ack in acks] == [("aborted", False, 0)] * 2
    assert handles[0].pull()["x"].tobytes() == start.tobytes()


def test_a_push_may_be_given_up_while_it_waits_and_the_next_one_takes_its_place(connect, server, team, start):
    (other,) = team(1)
    other.create_model("m", {"x": start}, mode="sync", workers=2, round_timeout_seconds=800)
    impatient = connect(server.address, worker_id="a", timeout_seconds=0.5).open_model("m")
    with pytest.raises(TimeoutError):
        impatient.push({"x": gradient_of(9, 9)})
    (first,) = other.workers("m")
    patient = connect(server.address, worker_id="a", timeout_seconds=800)
    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(patient.open_model("m").push, {"x": gradient_of(0, 0)})
        while not any(each.round and each.epoch > first.epoch for each in other.workers("m")):
            assert not mine.done()  # else the other push could close the round with the gradient that was given up
        yours = pool.submit(other.open_model("m").push, {"x": gradient_of(0, 0)})
        assert mine.result(800).version == yours.result(800).version == 1
    alone = start.copy()
    na.Adam([alone]).step([gradient_of(0, 0)])  # the mean of two equal gradients
    np.testing.assert_array_equal(patient.open_model("m").pull()["x"], alone)


def test_a_round_of_the_model_is_in_its_description(team, start):
    (client,) = team(1)
    model = client.create_model("m", {"x": start}, mode="sync", workers=4, backup=1, round_timeout_seconds=30)
    assert (model.spec.mode, model.spec.rounds.workers, model.spec.rounds.backup) == ("sync", 4, 1)
    assert model.spec.rounds.timeout_seconds == 30.0
    with pytest.raises(na.errors.ModelExistsError, match="rounds: workers: the model has 4, asked for 5"):
        client.create_model("m", {"x": start}, mode="sync", workers=5, backup=1, exist_ok=True)
