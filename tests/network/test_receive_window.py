"""The receive window of calls: its default follows the budget, and all windows together stay a part of it."""

import pytest

from numba_adam.errors import ConfigurationError
from numba_adam.server.config import ServerConfig

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("budget", "rpc_threads", "window"),
    [
        (16 * MIB, 64, 256 * KIB),  # the least
        (GIB, 64, GIB // 4 // (64 + 128)),
        (8 * GIB, 872, 2 * GIB // 1000),
        (12 * GIB, 64, 16 * MIB),
        (256 * GIB, 64, 64 * MIB),  # the most
    ],
)
def test_the_default_windows_of_all_calls_are_a_quarter_of_the_budget(budget, rpc_threads, window):
    config = ServerConfig(memory_budget_bytes=budget, rpc_threads=rpc_threads)
    assert config.window_bytes == window
    assert config.most_calls == rpc_threads + 128
    assert config.window_bytes * config.most_calls <= max(budget // 4, 256 * KIB * config.most_calls)


def test_a_window_can_be_set_to_more_and_never_to_less_than_the_smallest():
    assert ServerConfig(receive_window_bytes="64MiB").window_bytes == 64 * MIB
    assert ServerConfig(receive_window_bytes=1).window_bytes == 256 * KIB
    with pytest.raises(ConfigurationError, match="receive_window_bytes=-1: it must be at least 0"):
        ServerConfig(receive_window_bytes=-1)
