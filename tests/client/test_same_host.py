"""Pushes and pulls of a server on this machine, through shared memory. The oracle is the same work over the network."""

from __future__ import annotations

import os
import re
import stat
import threading

import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.errors import ConfigurationError, NonFiniteError, ServerUnavailableError, ServiceError
from numba_adam.ps.local import SLOT_BYTES, SLOTS, socket_path

LARGE = SLOT_BYTES * SLOTS // 4 + 1000  # float32 elements: more than what one connection has on its way at a time


@pytest.fixture
def near(server, connect):
    """A client that never uses the network for gradients and parameters."""
    return connect(server.address, "near", transport="same-host")


@pytest.fixture
def far(server, connect):
    """A client that always uses the network."""
    return connect(server.address, "far", transport="network")


def params_of(size):
    rng = np.random.default_rng(size)
    return {
        "w": rng.standard_normal(size, dtype=np.float32),
        "none": np.zeros((3, 0), np.float32),
        "b": rng.standard_normal((), dtype=np.float32).reshape(()),
        "v": rng.standard_normal((7, 3), dtype=np.float32),
    }


def same(left, right):
    return list(left) == list(right) and all(left[name].tobytes() == right[name].tobytes() for name in left)


@pytest.mark.parametrize("size", [1, 1000, LARGE])
@pytest.mark.parametrize("durability", ["memory", "process"])
def test_the_same_gradients_give_the_same_bits_on_both_ways(near, far, size, durability):
    params, ends = params_of(size), []
    for client, name in ((near, "near"), (far, "far")):
        model = client.create_model(name, params, lr=0.01, durability=durability)
        for seed in range(3):
            rng = np.random.default_rng(seed)
            grads = {key: rng.standard_normal(value.shape, dtype=np.float32) for key, value in params.items()}
            if seed == 1:
                grads["b"] = None
            assert model.push(grads).version == seed + 1
        ends.append(model.pull())
        out = {key: np.empty_like(value) for key, value in params.items()}
        assert same(model.pull(out=out), ends[-1])
        assert model.version == 3
    assert same(*ends)


def test_the_client_says_which_way_it_takes_and_why(near, far, server):
    params = params_of(4)
    assert near.create_model("m", params).transport.startswith("same host: ")
    assert far.open_model("m").transport == "network: transport='network' asks for it"
    with ParameterClient(server.address, transport="auto") as other:
        assert other.open_model("m").transport.startswith("same host: ")


def test_the_socket_may_be_the_address(server, connect, monkeypatch):
    path = socket_path(os.environ, int(server.address.rpartition(":")[2]))
    monkeypatch.setenv("NUMBA_ADAM_TRANSPORT", "network")  # the address says more
    model = connect(f"unix:{path}", "w").create_model("m", {"w": np.zeros(5, np.float32)})
    assert model.transport == f"same host: {path}"
    assert model.push({"w": np.ones(5, np.float32)}).version == 1
    assert (model.pull()["w"] < 0).all()


def test_a_socket_that_is_no_servers_is_refused_with_what_is_needed(server, connect):
    path = socket_path(os.environ, int(server.address.rpartition(":")[2]))
    for address in ("unix:", "unix:relative/50051-1-2", f"unix:{path.parent}", f"unix:{path.parent}/99999-1-a"):
        with pytest.raises(ConfigurationError, match=r"expected unix:PATH .* such as 'unix:/"):
            connect(address)
    with pytest.raises(ConfigurationError, match="of another network namespace, or of an earlier start"):
        connect(f"unix:{path}0")
    with pytest.raises(ConfigurationError, match="exclude each other"):
        connect(f"unix:{path}", transport="network")
    with pytest.raises(ConfigurationError, match="TLS"):
        connect(f"unix:{path}", tls=True)
    port = next(number for number in range(1, 1000) if not socket_path(os.environ, number).exists())
    absent = connect(f"unix:{socket_path(os.environ, port)}", timeout_seconds=0.5)
    with pytest.raises(ServiceError):
        absent.list_models()


def test_without_the_socket_the_client_uses_the_network_without_a_word(server, connect, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of another user"))
    model = connect(server.address, transport="auto").create_model("m", params_of(5))
    caplog.clear()
    assert model.push(params_of(5)).applied
    assert re.match(r"network: no server of this user listens on .*of another user", model.transport)
    assert not [record for record in caplog.records if record.name.startswith("numba_adam.client")]
    with pytest.raises(ServerUnavailableError, match="no server of this user listens"):
        connect(server.address, transport="same-host", timeout_seconds=0.1).open_model("m").push(params_of(5))


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "example.org:1"])
def test_an_address_of_another_machine_cannot_be_on_the_same_host(address):
    with pytest.raises(ConfigurationError, match="not a loopback address"):
        ParameterClient(address, transport="same-host")
    with pytest.raises(ConfigurationError, match="expected one of"):
        ParameterClient(address, transport="shared")


def test_the_socket_and_its_folder_are_for_this_user_alone(server):
    path = socket_path(os.environ, int(server.address.rpartition(":")[2]))
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.stop()
    assert not path.exists()


def test_gradients_in_shared_buffers_are_pushed_from_there(near, far):
    params = params_of(1000)
    model, other = near.create_model("near", params), far.create_model("far", params)
    buffers = model.gradient_buffers()
    assert {name: (array.shape, array.dtype) for name, array in buffers.items()} == {
        name: (array.shape, array.dtype) for name, array in params.items()
    }
    for number in range(3):
        for array in buffers.values():
            array[...] = number + 0.5
        assert model.push(buffers).version == other.push(buffers).version
    assert same(model.pull(), other.pull())
    parts = {**buffers, "none": None, "b": None}
    assert model.push(parts).version == other.push(parts).version == 4
    assert same(model.pull(), other.pull())


def test_the_view_is_read_only_and_shows_the_newest_version(near):
    model = near.create_model("m", params_of(1000))
    view = model.parameters_view()
    assert same(view, model.pull())
    model.push(params_of(1000))
    assert same(view, model.pull())
    with pytest.raises(ValueError, match="read-only"):
        view["w"][0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        view["w"].flags.writeable = True


def test_a_view_over_the_network_is_refused_with_the_reason(far):
    model = far.create_model("m", params_of(10))
    with pytest.raises(ConfigurationError, match="transport='network' asks for it"):
        model.parameters_view()
    buffers = model.gradient_buffers()
    assert model.push(buffers).applied  # plain arrays


def test_a_refused_gradient_changes_nothing_and_the_connection_goes_on(near):
    for size in (10, LARGE):
        params = params_of(size)
        model = near.create_model(f"m{size}", params)
        bad = {**params, "w": np.full(size, np.nan, np.float32)}
        with pytest.raises(NonFiniteError, match=r"'w' holds nan at element 0"):
            model.push(bad)
        assert same(model.pull(), params)
        assert model.push(params).version == 1


def test_what_is_written_during_a_push_is_not_applied_unchecked(near):
    """A worker's thread writes NaN and back while the server copies: whatever is applied was checked, so is finite."""
    model = near.create_model("m", {"w": np.zeros(300_000, np.float32)})
    grads, is_over = model.gradient_buffers(), threading.Event()

    def scribble():
        while not is_over.is_set():
            grads["w"][::1000] = np.nan
            grads["w"][::1000] = 1

    thread = threading.Thread(target=scribble)
    thread.start()
    applied = 0
    try:
        for _ in range(50):
            try:
                applied += model.push(grads).applied
            except NonFiniteError:
                continue
    finally:
        is_over.set()
        thread.join()
    found = model.pull()["w"]
    assert np.isfinite(found).all()
    assert model.version == applied


def test_pulls_beside_pushes_are_of_one_version(near, connect, server):
    """All elements of a version are equal, because all gradients are."""
    model = near.create_model("m", {"w": np.zeros(200_000, np.float32)}, lr=0.5)
    puller = connect(server.address, "puller", transport="same-host").open_model("m")
    is_over, failures = threading.Event(), []

    def pull():
        while not is_over.is_set():
            found = puller.pull()["w"]
            if found.min() != found.max():
                failures.append((found.min(), found.max()))

    thread = threading.Thread(target=pull)
    thread.start()
    ones = {"w": np.ones(200_000, np.float32)}
    for _ in range(100):
        model.push(ones)
    is_over.set()
    thread.join()
    assert not failures


def test_two_workers_of_one_user_each_have_their_session(near, connect, server):
    first = near.create_model("m", params_of(100))
    second = connect(server.address, "second", transport="same-host").open_model("m")
    versions = sorted(
        ack.version for _ in range(5) for ack in (first.push(params_of(100)), second.push(params_of(100)))
    )
    assert versions == list(range(1, 11))


def test_a_model_that_was_created_again_is_not_read_from_the_old_memory(near, connect, server):
    model = near.create_model("m", {"w": np.zeros(10, np.float32)})
    view = model.parameters_view()
    other = connect(server.address, "other", transport="same-host")
    other.delete_model("m")
    other.create_model("m", {"w": np.ones(10, np.float32)})
    assert model.pull()["w"].tolist() == [1] * 10
    assert view["w"].tolist() == [0] * 10


def test_shared_buffers_count_in_the_budget_and_are_given_back(server, near):
    pool = server._runtime.pool
    model = near.create_model("m", {"w": np.zeros(1_000_000, np.float32)}, durability="memory")
    model.push({"w": np.ones(1_000_000, np.float32)})
    before = pool.used_bytes
    grads = model.gradient_buffers()
    model.push(grads)
    assert pool.used_bytes == before + 4_000_000
    del grads
    model.push({"w": np.ones(1_000_000, np.float32)})
    assert pool.used_bytes == before


def test_a_server_that_starts_again_is_found_again(server_process, connect):
    model = connect(server_process.address, "w", transport="same-host").create_model("m", params_of(1000))
    model.push(params_of(1000))
    server_process.kill()
    server_process.start()
    assert model.push(params_of(1000)).version == 2
    assert model.transport.startswith("same host: ")


def test_a_closed_client_is_refused(near):
    model = near.create_model("m", params_of(10))
    model.push(params_of(10))
    near.close()
    with pytest.raises(ServiceError, match="closed"):
        model.push(params_of(10))
