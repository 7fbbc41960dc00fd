"""Settings: one source, four places they may come from, and what is refused."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from numba_adam.errors import ConfigurationError
from numba_adam.server.config import ServerConfig, add_arguments, load


@pytest.fixture
def parse():
    """Return a function from flags to a namespace."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('listen = "127.0.0.1:1"\nsnapshots_kept = 4\nthreads = 1\nstop_deadline_seconds = 5\n')
    return str(path)


def test_flags_beat_environment_beats_file_beats_default(parse, toml):
    environ = {"NUMBA_ADAM_LISTEN": "127.0.0.1:2", "NUMBA_ADAM_SNAPSHOTS_KEPT": "5", "NUMBA_ADAM_OTHER": "x"}
    found = load(parse(["--config", toml, "--listen", "127.0.0.1:3"]), environ)
    assert found.listen == "127.0.0.1:3"
    assert found.snapshots_kept == 5
    assert found.threads == 1
    assert found.stop_deadline_seconds == 5.0
    assert found.rpc_threads == ServerConfig().rpc_threads


def test_the_file_may_be_named_by_the_environment(parse, toml):
    assert load(parse([]), {"NUMBA_ADAM_CONFIG": toml}).snapshots_kept == 4


def test_nothing_given_is_the_default(parse):
    assert load(parse([]), {}) == ServerConfig()


def test_every_setting_can_come_from_everywhere(parse, tmp_path):
    """Each field in turn, with a value that is not its default."""
    values = {str: "[::1]:7", Path: "elsewhere", int: 3_000_003, float: 7.5}
    kinds = {"str": str, "Path": Path, "int": int, "float": float}
    for item in fields(ServerConfig):
        value = values[kinds[item.type]]
        flag = f"--{item.name.replace('_', '-')}"
        file = tmp_path / "one.toml"
        file.write_text(f"{item.name} = {value!r}")
        by_flag = load(parse([flag, str(value)]), {})
        assert getattr(by_flag, item.name) == kinds[item.type](value)
        assert by_flag == load(parse([]), {f"NUMBA_ADAM_{item.name.upper()}": str(value)})
        assert by_flag == load(parse(["--config", str(file)]), {})


def test_the_help_explains_every_setting():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for item in fields(ServerConfig):
        assert f"--{item.name.replace('_', '-')}" in text
        assert item.metadata["help"] in text


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.9.1:50051", "[::1]:50051", "localhost:65535"])
def test_loopback_addresses_are_taken(listen):
    assert ServerConfig(listen=listen).listen == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.168.1.4:1", "example.org:50051", "128.0.0.1:1"])
def test_other_addresses_are_refused_and_the_message_says_what_is_missing(listen):
    with pytest.raises(ConfigurationError, match="TLS and a token") as caught:
        ServerConfig(listen=listen)
    assert listen in str(caught.value)


@pytest.mark.parametrize("listen", ["127.0.0.1", ":1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "[::1]:-1", ""])
def test_what_is_no_address_is_refused(listen):
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        ServerConfig(listen=listen)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"snapshots_kept": 1}, "snapshots_kept=1: it must be at least 2"),
        ({"snapshot_interval_seconds": -1.0}, "snapshot_interval_seconds=-1.0"),
        ({"snapshot_interval_seconds": float("nan")}, "snapshot_interval_seconds=nan"),
        ({"snapshot_interval_seconds": float("inf")}, "snapshot_interval_seconds=inf: it must be at most 1000000"),
        ({"snapshot_interval_seconds": 1e10}, "it must be at most 1000000"),
        ({"stall_seconds": 1e12}, "it must be at most 1000000"),
        ({"stop_deadline_seconds": 1e12}, "it must be at most 1000000"),
        ({"keepalive_seconds": 1e9}, "it must be at most 1000000"),
        ({"largest_message_bytes": 1 << 20}, "it must be at least 2097152"),
        ({"largest_message_bytes": 1 << 31}, "it must be at most 2147483647"),
        ({"data_dir": ""}, "data_dir='': it must be a path"),
        ({"memory_budget_bytes": 1000}, "memory_budget_bytes=1000: it must be at least 1048576"),
        ({"threads": 1.5}, "threads=1.5: it must be a whole number"),
        ({"threads": True}, "threads=True"),
        ({"data_dir": 7}, "data_dir=7: it must be a path"),
    ],
)
def test_values_out_of_range_are_refused(values, words):
    with pytest.raises(ConfigurationError, match=words):
        ServerConfig(**values)


def test_mistakes_in_flags_and_environment_are_named(parse):
    with pytest.raises(ConfigurationError, match="--threads='many': it must be a whole number"):
        load(parse(["--threads", "many"]), {})
    with pytest.raises(ConfigurationError, match="NUMBA_ADAM_THREADS='few'"):
        load(parse([]), {"NUMBA_ADAM_THREADS": "few"})
    with pytest.raises(ConfigurationError, match="NUMBA_ADAM_DATA_DIR='': it must be a path"):
        load(parse([]), {"NUMBA_ADAM_DATA_DIR": ""})


def test_mistakes_in_the_file_are_named(parse, tmp_path):
    file = tmp_path / "server.toml"
    file.write_text("treads = 3")
    with pytest.raises(ConfigurationError, match="sets 'treads': the settings are listen"):
        load(parse(["--config", str(file)]), {})
    file.write_text("listen = ")
    with pytest.raises(ConfigurationError, match="readable TOML"):
        load(parse(["--config", str(file)]), {})
    with pytest.raises(ConfigurationError, match="readable TOML"):
        load(parse(["--config", str(tmp_path / "none.toml")]), {})
    file.write_text("snapshots_kept = '3'")
    with pytest.raises(ConfigurationError, match="snapshots_kept='3': it must be a whole number"):
        load(parse(["--config", str(file)]), {})


@pytest.mark.parametrize("listen", ["::1:50077", "::1:0", "[::1:50077", "fe80::1:7"])
def test_an_ipv6_address_without_brackets_is_told_to_take_them(listen):
    """Whether its last part is a port, nobody can tell; gRPC says of it that the address is in use."""
    with pytest.raises(ConfigurationError, match="in brackets"):
        ServerConfig(listen=listen)


def test_the_brackets_to_write_are_shown():
    with pytest.raises(ConfigurationError, match=r"write \[::1\]:50077$"):
        ServerConfig(listen="::1:50077")


def test_a_tilde_is_the_home_folder_where_no_shell_expands_it(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "server.toml").write_text("data_dir = '~/adam'")
    assert load(parse(["--config", "~/server.toml"]), {}).data_dir == tmp_path / "adam"
    assert load(parse([]), {"NUMBA_ADAM_CONFIG": "~/server.toml"}).data_dir == tmp_path / "adam"
    assert load(parse([]), {"NUMBA_ADAM_DATA_DIR": "~/other"}).data_dir == tmp_path / "other"
    assert load(parse(["--data-dir=~/third"]), {}).data_dir == tmp_path / "third"
    with pytest.raises(ConfigurationError, match=r"DATA_DIR='~nobody-has-this-name/x': .* no home folder"):
        load(parse([]), {"NUMBA_ADAM_DATA_DIR": "~nobody-has-this-name/x"})


def test_no_budget_means_half_of_the_machines_memory():
    assert ServerConfig().memory_budget_bytes > 1 << 28
