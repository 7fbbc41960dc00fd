"""Bounded staleness, leases and changes of the mode for users: our client waits, leaves and is told by itself."""

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from numba_adam.cli import main
from numba_adam.errors import ConfigurationError, HyperparameterError, SessionUnknownError

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
def test_no_worker_gets_ahead_and_one_that_is_done_holds_up_nobody(team, start, durability):
    clients = team(3)
    for client in clients:  # all run the same program
        client.create_model("m", {"x": start}, mode="ssp", staleness=2, durability=durability, exist_ok=True)
    for worker, client in enumerate(clients):  # all are there before the first one runs
        client.open_model("m").push({"x": gradient_of(worker, 0)})
    done, lock, spreads = [1, 1, 1], threading.Lock(), []

    def work(worker):
        model = clients[worker].open_model("m")
        batches = 5 * (worker + 1)  # the first one is done early
        for number in range(1, batches):
            model.pull()
            model.push({"x": gradient_of(worker, number)})
            with lock:
                done[worker] += 1
                still = [count for each, count in enumerate(done) if count < 5 * (each + 1)]
                spreads.append(max(still, default=0) - min(still, default=0))
        model.leave()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert done == [5, 10, 15]
    assert max(spreads) <= 3  # a client counts its answer later than the server
    assert clients[0].open_model("m").pull() is not None
    assert clients[0].open_model("m").version == 30


def test_a_loop_leaves_at_its_end_and_a_client_when_it_closes(connect, server, team, start):
    (watcher,) = team(1)
    watcher.create_model("m", {"x": start}, mode="ssp", staleness=1)
    with connect(server.address, worker_id="a") as client:
        model = client.open_model("m")
        for number, step in model.worker(range(1), worker_id="loop"):
            step.grads = {"x": gradient_of(1, number)}
        assert {each.worker_id: each.clock for each in watcher.workers("m")} == {"loop": None}
        for number, step in model.worker(range(3), worker_id="left"):
            step.grads = {"x": gradient_of(2, number)}
            if number == 1:
                break
        model.push({"x": gradient_of(3, 0)})
        assert {each.worker_id: each.clock for each in watcher.workers("m")} == {"a": 2, "left": 1, "loop": None}
    assert [each.clock for each in watcher.workers("m")] == [None, None, None]


def test_the_end_of_a_lease_and_an_eviction_let_a_waiting_worker_go_on(team, start):
    fast, slow = team(2)
    model = fast.create_model("m", {"x": start}, mode="ssp", staleness=1, lease_seconds=0.5)
    slow.open_model("m").push({"x": gradient_of(1, 0)})
    for number in range(4):
        assert model.push({"x": gradient_of(0, number)}).applied  # waits for the end of the lease
    slow.open_model("m").push({"x": gradient_of(1, 1)})
    fast.evict("m", "w1")
    assert [(each.worker_id, each.clock, each.pushes) for each in fast.workers("m")] == [("w0", 5, 4), ("w1", None, 2)]
    with pytest.raises(SessionUnknownError, match="numba-adam workers"):
        fast.evict("m", "nobody")
    slow.open_model("m").heartbeat()


def test_the_settings_of_staleness_come_back_and_change(team, start):
    (client,) = team(1)
    model = client.create_model("m", {"x": start}, staleness_power=0.5, largest_staleness=3, lease_seconds=60)
    info = client.open_model("m").spec
    assert (info.settings.staleness_power, info.settings.largest_staleness, info.lease_seconds) == (0.5, 3, 60)
    model.set(staleness_power=0, largest_staleness=math.inf, mode="ssp", staleness=4)
    (info,) = client.list_models()
    assert (info.settings.staleness_power, info.settings.largest_staleness) == (0, None)
    assert (info.mode, info.staleness, info.rounds) == ("ssp", 4, None)
    model.set(mode="sync", workers=1)
    (info,) = client.list_models()
    assert (info.mode, info.staleness, info.rounds.workers) == ("sync", None, 1)


def test_a_stale_push_is_late_for_our_client(team, start):
    first, second = team(2)
    model = first.create_model("m", {"x": start}, largest_staleness=1)
    stale = second.open_model("m")
    stale.pull()
    for number in range(2):
        model.push({"x": gradient_of(0, number)})
    ack = stale.push({"x": gradient_of(1, 0)})
    assert (ack.outcome, ack.applied, ack.version) == ("late", False, 2)
    stale.pull()
    assert stale.push({"x": gradient_of(1, 1)}).applied


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"mode": "ssp"}, HyperparameterError, "staleness"),
        ({"mode": "ssp", "staleness": 0}, HyperparameterError, "staleness: expected a whole number"),
        ({"mode": "ssp", "staleness": 1.5}, HyperparameterError, "staleness: expected a whole number"),
        ({"staleness": 1}, HyperparameterError, 'only mode="ssp"'),
        ({"mode": "ssp", "staleness": 1, "workers": 2}, ConfigurationError, 'only mode="sync"'),
        ({"mode": "tap"}, ConfigurationError, "'ssp'"),
        ({"lease_seconds": 0}, HyperparameterError, "lease_seconds"),
        ({"lease_seconds": math.inf}, HyperparameterError, "lease_seconds"),
        ({"largest_staleness": 0}, HyperparameterError, "largest_staleness"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_sent(team, start, arguments, error, what):
    (client,) = team(1)
    with pytest.raises(error, match=what):
        client.create_model("m", {"x": start}, **arguments)
    assert client.list_models() == []


def test_the_command_lists_and_evicts(server, team, start, capsys):
    (client,) = team(1)
    client.create_model("m", {"x": start}, mode="ssp", staleness=1).push({"x": gradient_of(0, 0)})
    assert main(["workers", "m", "--server", server.address]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["worker", "session", "pushes", "clock"]
    assert row.split()[:4] == ["w0", "1", "1", "1"]
    assert main(["workers", "m", "--server", server.address, "--evict", "w0", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["worker_id"], found["clock"]) == ("w0", None)
    assert main(["set", "m", "mode=sync", "workers=2", "largest_staleness=none", "--server", server.address]) == 0
    assert main(["status", "--server", server.address]) == 0
    assert "sync, 2 workers; round 2 has 0 gradients" in capsys.readouterr().out
