"""Settings: four sources, their precedence, and refused values."""

import argparse
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

from numba_adam.errors import ConfigurationError
from numba_adam.server.config import ServerConfig, add_arguments, load
from numba_adam.server.memory import usable_bytes


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


def test_flags_override_the_environment_the_file_and_the_defaults(parse, toml):
    environ = {"NUMBA_ADAM_LISTEN": "127.0.0.1:2", "NUMBA_ADAM_SNAPSHOTS_KEPT": "5"}
    found = load(parse(["--config", toml, "--listen", "127.0.0.1:3"]), environ)
    assert found.listen == "127.0.0.1:3"
    assert found.snapshots_kept == 5
    assert found.threads == 1
    assert found.stop_deadline_seconds == 5.0
    assert found.rpc_threads == ServerConfig().rpc_threads


def test_the_environment_can_name_the_file(parse, toml):
    assert load(parse([]), {"NUMBA_ADAM_CONFIG": toml}).snapshots_kept == 4


def test_without_settings_the_defaults_apply(parse):
    assert load(parse([]), {}) == ServerConfig()


def test_every_setting_can_come_from_everywhere(parse, tmp_path):
    """Each field in turn, with a value that is not its default."""
    values = {str: "[::1]:7", Path: "elsewhere", int: 3_000_003, float: 7.5}
    kinds = {"str": str, "str | None": str, "Path": Path, "Path | None": Path, "int": int, "float": float}
    chosen = {"loopback_token": "required", "health_token": "off", "log_format": "json", "log_level": "warning"}
    chosen["opentelemetry"] = "on"
    for item in fields(ServerConfig):
        value = chosen.get(item.name, values[kinds[item.type]])
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
def test_loopback_addresses_are_accepted(listen):
    assert ServerConfig(listen=listen).listen == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:50051", "[::]:50051", "192.168.1.4:1", "example.org:50051", "128.0.0.1:1"])
def test_other_addresses_are_refused_and_the_error_says_why(listen):
    with pytest.raises(
        ConfigurationError, match=r"needs TLS .* and tokens\. Make them with: numba-adam certificate ca"
    ) as caught:
        ServerConfig(listen=listen)
    assert listen in str(caught.value)


@pytest.mark.parametrize("listen", ["127.0.0.1", ":1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "[::1]:-1", ""])
def test_invalid_addresses_are_refused(listen):
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
        ({"rpc_threads": 1 << 31}, "rpc_threads=2147483648: it must be at most 1073741824"),
        ({"memory_budget_bytes": "16777216TiB"}, "it must be at most 4611686018427387904"),
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
def test_an_ipv6_address_without_brackets_is_refused_with_advice(listen):
    """Its last part may be a port or not; gRPC would report that the address is in use."""
    with pytest.raises(ConfigurationError, match="needs brackets"):
        ServerConfig(listen=listen)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_brackets_around_other_addresses_are_refused(name):
    """A name in brackets was once served at any of its addresses that was free."""
    with pytest.raises(ConfigurationError, match=re.escape(f"brackets are for IPv6 addresses; write {name}:6000")):
        ServerConfig(listen=f"[{name}]:6000")


def test_the_error_shows_where_brackets_belong():
    with pytest.raises(ConfigurationError, match=r"write \[::1\]:50077$"):
        ServerConfig(listen="::1:50077")


def test_a_tilde_in_a_file_or_variable_means_the_home_folder(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "server.toml").write_text("data_dir = '~/adam'")
    assert load(parse(["--config", "~/server.toml"]), {}).data_dir == tmp_path / "adam"
    assert load(parse([]), {"NUMBA_ADAM_CONFIG": "~/server.toml"}).data_dir == tmp_path / "adam"
    assert load(parse([]), {"NUMBA_ADAM_DATA_DIR": "~/other"}).data_dir == tmp_path / "other"
    assert load(parse(["--data-dir=~/third"]), {}).data_dir == tmp_path / "third"
    with pytest.raises(ConfigurationError, match=r"DATA_DIR='~nobody-has-this-name/x': .* no home folder"):
        load(parse([]), {"NUMBA_ADAM_DATA_DIR": "~nobody-has-this-name/x"})


def test_an_unknown_variable_is_reported_with_the_closest_setting(parse, caplog):
    environ = {
        "NUMBA_ADAM_DATADIR": "/somewhere",
        "NUMBA_ADAM_MEMORY_BUDGET": "8GiB",
        "NUMBA_ADAM_PORT_50051_TCP": "tcp://10.0.0.7:50051",
        "numba_adam_threads": "2",
        "NUMBA_ADAM_CONFIG": "",
        "NUMBA_NUM_THREADS": "2",
    }
    assert load(parse([]), environ) == ServerConfig()
    warnings = {record.args[0]: record.getMessage() for record in caplog.records}
    assert set(warnings) == set(list(environ)[:4])
    assert "did you mean NUMBA_ADAM_DATA_DIR?" in warnings["NUMBA_ADAM_DATADIR"]
    assert "did you mean NUMBA_ADAM_MEMORY_BUDGET_BYTES?" in warnings["NUMBA_ADAM_MEMORY_BUDGET"]
    assert "did you mean NUMBA_ADAM_THREADS?" in warnings["numba_adam_threads"]


def test_known_variables_cause_no_warning(parse, caplog):
    environ = {
        f"NUMBA_ADAM_{item.name.upper()}": str(getattr(ServerConfig(), item.name))
        for item in fields(ServerConfig)
        if item.default is not None
    }
    assert load(parse([]), environ) == ServerConfig()
    assert not caplog.records


# ---- sizes and memory ------------------------------------------------------------------------------------------------

SIZES = {
    "8GiB": 8 << 30,
    "512MiB": 512 << 20,
    "2097152": 2097152,
    "2500 kB": 2_500_000,
    "1.5gib": 3 << 29,
    "4TB": 4 * 10**12,
    "3000000B": 3_000_000,
    "0.5 TiB": 1 << 39,
}


@pytest.mark.parametrize("text", SIZES)
def test_sizes_may_have_units_from_every_source(parse, tmp_path, text):
    file = tmp_path / "server.toml"
    file.write_text(f"memory_budget_bytes = {text!r}")
    found = [
        load(parse(["--memory-budget-bytes", text]), {}),
        load(parse([]), {"NUMBA_ADAM_MEMORY_BUDGET_BYTES": text}),
        load(parse(["--config", str(file)]), {}),
        ServerConfig(memory_budget_bytes=text),
    ]
    assert {config.memory_budget_bytes for config in found} == {SIZES[text]}
    assert all(type(config.memory_budget_bytes) is int for config in found)


@pytest.mark.parametrize("text", ["8G", "8 Gi B", "GiB", "", "-1GiB", "1e9", "0.3B", "8GiB8", "1.GiB", "٨GiB", "nan"])
def test_an_invalid_size_is_refused_with_an_example(parse, tmp_path, text):
    with pytest.raises(ConfigurationError, match=r"--memory-budget-bytes=.*such as 8GiB"):
        load(parse([f"--memory-budget-bytes={text}"]), {})
    with pytest.raises(ConfigurationError, match=r"NUMBA_ADAM_LARGEST_MESSAGE_BYTES=.*such as 8GiB"):
        load(parse([]), {"NUMBA_ADAM_LARGEST_MESSAGE_BYTES": text})
    file = tmp_path / "server.toml"
    file.write_text(f"memory_budget_bytes = {text!r}")
    with pytest.raises(ConfigurationError, match=r"memory_budget_bytes=.*such as 8GiB"):
        load(parse(["--config", str(file)]), {})


def test_a_number_of_threads_has_no_unit(parse):
    with pytest.raises(ConfigurationError, match="--threads='2kB': it must be a whole number"):
        load(parse(["--threads", "2kB"]), {})


@pytest.fixture
def proc(tmp_path):
    """Make a /proc with a process's control groups, from lines of `cgroup`, mounts and limit files."""

    def make(groups, mounts, limits):
        process = tmp_path / "proc" / "self"
        process.mkdir(parents=True)
        (process / "cgroup").write_text("".join(f"{line}\n" for line in groups))
        lines = [
            f"3{number} 23 0:2{number} {root} {tmp_path}/{at} rw,relatime shared:7 - {kind} {kind} rw,{options}\n"
            for number, (root, at, kind, options) in enumerate(mounts)
        ]
        (process / "mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/root rw\n" + "".join(lines))
        for name, text in limits.items():
            path = tmp_path / name.replace("\\040", " ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path / "proc"

    return make


LIMIT = 300 << 20


@pytest.mark.parametrize(
    ("groups", "mounts", "limits"),
    [
        pytest.param(
            ["0::/app.slice/job"],
            [("/", "fs", "cgroup2", "nsdelegate")],
            {"fs/app.slice/job/memory.max": LIMIT, "fs/app.slice/memory.max": "max"},
            id="version 2",
        ),
        pytest.param(
            ["0::/app.slice/job"],
            [("/", "fs", "cgroup2", "nsdelegate")],
            {"fs/app.slice/job/memory.max": "max", "fs/app.slice/memory.max": LIMIT},
            id="version 2, of a group above",
        ),
        pytest.param(
            ["0::/job"],
            [("/", "fs", "cgroup2", "nsdelegate")],
            {"fs/job/memory.max": LIMIT * 2, "fs/job/memory.high": LIMIT},
            id="version 2, throttled before",
        ),
        pytest.param(
            ["0::/"],
            [("/", "fs", "cgroup2", "nsdelegate")],
            {"fs/memory.max": LIMIT},
            id="version 2, seen from within its container",
        ),
        pytest.param(
            ["5:cpu,cpuacct:/other", "4:memory:/docker/abc", "0::/"],
            [("/", "fs/cpu", "cgroup", "cpu"), ("/docker/abc", "fs/memory", "cgroup", "memory")],
            {"fs/memory/memory.limit_in_bytes": LIMIT, "fs/cpu/memory.limit_in_bytes": 1},
            id="version 1, seen from within its container",
        ),
        pytest.param(
            ["4:memory:/docker/abc"],
            [("/", "fs/mem\\040ory", "cgroup", "memory")],
            {
                "fs/mem\\040ory/docker/abc/memory.limit_in_bytes": 9223372036854771712,
                "fs/mem\\040ory/docker/memory.limit_in_bytes": LIMIT,
            },
            id="version 1, of a group above, at a path with a space",
        ),
        pytest.param(
            ["4:memory:/host/abc"],
            [("/elsewhere", "fs/memory", "cgroup", "memory")],
            {"fs/memory/memory.limit_in_bytes": LIMIT},
            id="version 1, a mount that shows other groups",
        ),
    ],
)
def test_the_usable_memory_is_the_control_groups_limit(proc, groups, mounts, limits):
    assert usable_bytes(proc(groups, mounts, limits)) == LIMIT


@pytest.mark.parametrize("limits", [{}, {"fs/memory.max": "max"}, {"fs/memory.max": 1 << 62}, {"fs/memory.max": "?"}])
def test_without_a_limit_the_usable_memory_is_the_machines(proc, tmp_path, limits):
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert usable_bytes(proc(["0::/"], [("/", "fs", "cgroup2", "x")], limits)) == machine
    assert usable_bytes(tmp_path / "no proc at all") == machine


def test_the_default_budget_is_half_of_the_usable_memory():
    assert ServerConfig().memory_budget_bytes == usable_bytes() // 2 > 1 << 28
