"""A worker of a model at the level `process` does not notice that its server was killed."""

import resource
import threading

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import ConfigurationError, ModelExistsError, TransferTooLargeError


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
    model = client.create_model("m", arrays, lr=0.01)  # nothing said: at the level `process`
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
def test_pushes_go_on_through_kills(server_process, connect, arrays, gradients_of, campaign):
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
    campaign.did(kills=5, pushes=400)


def test_an_unknown_level_is_refused_before_anything_is_sent(connect, arrays, server):
    client = connect(server.address)
    with pytest.raises(ConfigurationError, match="durability: expected 'memory' or 'process' or 'disk', got 'disc'"):
        client.create_model("m", arrays, durability="disc")
    assert client.list_models() == []


def test_without_room_in_the_memory_folder_the_level_is_refused_and_never_lowered(server_process, connect):
    client, large = connect(server_process.address), {"w": np.ones(1_000_000, np.float32)}
    resource.prlimit(server_process.process_id, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # no larger file
    with pytest.raises(TransferTooLargeError) as caught:
        client.create_model("m", large)
    for words in ("--memory-dir", "--shm-size", "64 MiB", "bytes are free", "durability='memory'"):
        assert words in str(caught.value)
    assert client.list_models() == []
    small = client.create_model("small", {"w": np.ones(4, np.float32)})
    assert small.push({"w": np.ones(4, np.float32)}).durability == "process"


def test_a_model_of_another_level_is_not_taken_for_the_one_asked_for(server, connect, arrays, gradients_of):
    client = connect(server.address)
    client.create_model("m", arrays, durability="memory").push(gradients_of(arrays, 1))
    with pytest.raises(
        ModelExistsError, match=r"the model has memory, asked for process .*durability='memory' takes it"
    ):
        client.create_model("m", arrays, exist_ok=True)
    model = client.create_model("m", arrays, durability="memory", exist_ok=True)
    assert model.push(gradients_of(arrays, 2)).version == 2
