"""A program may stop its server again: after `with`, in a handler of signals, or after a start that failed."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.errors import ConfigurationError
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

GRADS = {"w": np.ones(8, np.float32)}
LEVELS = ("memory", "process", "disk")


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    (tmp_path / "memory").mkdir()
    return ServerConfig(
        listen="127.0.0.1:0", data_dir=tmp_path / "data", memory_dir=tmp_path / "memory", snapshot_interval_seconds=0
    )


def serve(config: ServerConfig, level: str) -> Server:
    """Return a running server, with a model after one push."""
    server = Server(config)
    server.start()
    with ParameterClient(server.address, timeout_seconds=800) as client:
        client.create_model("model", GRADS, durability=level).push(GRADS)
    return server


@pytest.mark.parametrize("level", LEVELS)
def test_a_second_stop_changes_nothing_and_returns_the_same(config, level) -> None:
    server = serve(config, level)
    assert server.stop() is True
    before = {path: path.read_bytes() for path in config.data_dir.rglob("*") if path.is_file()}
    assert server.stop() is True
    assert {path: path.read_bytes() for path in config.data_dir.rglob("*") if path.is_file()} == before
    with Server(config) as again, ParameterClient(again.address, timeout_seconds=800) as client:
        assert client.open_model("model").version == 1


def test_a_stop_within_the_block_of_a_server_is_enough(config) -> None:
    with Server(config) as server:
        assert server.stop()


def test_stops_of_two_threads_return_the_same_once_the_server_has_stopped(config) -> None:
    server, found = serve(config, "process"), []

    def stop() -> None:
        found.append(server.stop())
        Server(config).stop()  # the data folder is free

    threads = [threading.Thread(target=stop)]
    threads[0].start()
    found.append(server.stop())
    threads[0].join()
    assert found == [True, True]


@pytest.mark.parametrize("level", LEVELS)
def test_a_stop_after_a_start_that_failed_returns_the_same_again(config, level) -> None:
    serve(config, level).stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(replace(config, listen=f"127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(ConfigurationError, match="is taken"):
            server.start()
    assert server.stop() == server.stop()


def test_a_server_that_never_started_can_be_stopped_twice(config) -> None:
    server = Server(config)
    assert server.stop()
    assert server.stop()
