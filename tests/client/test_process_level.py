"""A worker of a model at the level `process` does not notice that its server was killed."""

import threading

import pytest

import numba_adam as na
from numba_adam.errors import ConfigurationError


def after(arrays, gradients_of, seeds):
    """Return the parameters after the gradients of some seeds."""
    params = {name: array.copy() for name, array in arrays.items()}
    optimizer = na.Adam(params, lr=0.01)
    for seed in seeds:
        optimizer.step(gradients_of(arrays, seed))
    return params


def assert_same(found, expected):
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_a_kill_is_no_rewind_and_loses_no_push(server_process, connect, arrays, gradients_of):
    client, rewinds = connect(server_process.address), []
    model = client.create_model("m", arrays, lr=0.01, durability="process")
    model.on_rewind(rewinds.append)
    state_id = model.state_id
    for seed in range(3):
        ack = model.push(gradients_of(arrays, seed))
    assert (ack.version, ack.durability, ack.snapshot_version) == (3, "process", 0)
    server_process.kill()
    server_process.start()
    ack = model.push(gradients_of(arrays, 3))
    assert (ack.version, ack.applied, model.state_id) == (4, True, state_id)
    assert_same(model.pull(), after(arrays, gradients_of, range(4)))
    assert rewinds == []


@pytest.mark.campaign
def test_pushes_go_on_through_kills(server_process, connect, arrays, gradients_of):
    client, rewinds, versions = connect(server_process.address), [], []
    model = client.create_model("m", arrays, lr=0.01, durability="process")
    model.on_rewind(rewinds.append)
    pushed = threading.Semaphore(0)

    def work():
        for seed in range(400):
            ack = model.push(gradients_of(arrays, seed))
            versions.append((ack.applied, ack.version))
            pushed.release()

    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(5):
        for _ in range(20):
            assert pushed.acquire(timeout=800)
        server_process.kill()
        server_process.start()
    worker.join(800)
    assert versions == [(True, number) for number in range(1, 401)]
    assert rewinds == []
    assert_same(model.pull(), after(arrays, gradients_of, range(400)))


def test_an_unknown_level_is_refused_before_anything_is_sent(connect, arrays, server):
    client = connect(server.address)
    with pytest.raises(ConfigurationError, match="durability: expected 'memory' or 'process', got 'disc'"):
        client.create_model("m", arrays, durability="disc")
    assert client.list_models() == []
