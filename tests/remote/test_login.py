"""Where a client finds its TLS settings: arguments, environment, and what `numba-adam login` has kept."""

from __future__ import annotations

import argparse
import io
import logging
import os
import stat
import subprocess
import sys
import tomllib

import pytest

from numba_adam.cli import main
from numba_adam.client import ParameterClient, Tls
from numba_adam.errors import ConfigurationError, TlsError
from numba_adam.server.config import add_arguments, load

LONG = 800.0
VARIABLES = ("NUMBA_ADAM_SERVER_CA", "NUMBA_ADAM_WORKER_CERTIFICATE", "NUMBA_ADAM_WORKER_KEY", "NUMBA_ADAM_SERVER_NAME")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A configuration folder of the test's own, and no variables."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "numba-adam" / "servers.toml"


@pytest.fixture
def server(authority, make_server):
    return make_server(authority.write("server"), client_ca=authority.file)


@pytest.fixture
def options(authority):
    """The options of a worker that the server knows."""
    worker = authority.worker()
    return [
        "--server-ca", str(authority.file), "--worker-certificate", str(worker.certificate),
        "--worker-key", str(worker.key),
    ]  # fmt: skip


def is_served(address, **settings):
    with ParameterClient(address, timeout_seconds=LONG, **settings) as client:
        return client.list_models() == []


def test_login_keeps_the_settings_for_clients_and_commands(server, options, home, capsys):
    with pytest.raises(TlsError):
        is_served(server.address)
    assert main(["login", server.address, *options]) == 0
    shown = capsys.readouterr().out
    assert f"connected  {server.address}" in shown
    assert str(home) in shown
    assert is_served(server.address)
    for words in (["status"], ["snapshot"], ["status", "--json"]):
        assert main([*words, "--server", server.address]) == 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700


def test_every_command_takes_the_options(server, options, capsys):
    for words in (["status"], ["snapshot"]):
        assert main([*words, "--server", server.address]) == 1
        assert "the server speaks TLS, and this client does not" in capsys.readouterr().err
        assert main([*words, "--server", server.address, *options]) == 0


def test_the_environment_says_how_to_connect(server, authority, monkeypatch):
    worker = authority.worker()
    for name, value in zip(VARIABLES, (authority.file, worker.certificate, worker.key), strict=False):
        monkeypatch.setenv(name, str(value))
    assert is_served(server.address)
    monkeypatch.setenv("NUMBA_ADAM_SERVER_NAME", "example.org")
    with pytest.raises(TlsError, match=r"not for 'example\.org'"):
        is_served(server.address)


def test_an_argument_overrides_the_environment_which_overrides_the_profile(
    server, authority, make_authority, options, monkeypatch
):
    other = make_authority("other")
    worker = authority.worker()
    right = Tls(server_ca=authority.file, worker_certificate=worker.certificate, worker_key=worker.key)
    assert main(["login", server.address, *options]) == 0
    monkeypatch.setenv("NUMBA_ADAM_SERVER_CA", str(other.file))
    with pytest.raises(TlsError, match="which is another CA"):
        is_served(server.address)
    assert is_served(server.address, tls=right)
    monkeypatch.setenv("NUMBA_ADAM_SERVER_CA", "")
    assert is_served(server.address)
    with pytest.raises(TlsError, match="this client does not"):
        is_served(server.address, tls=False)
    assert main(["status", "--server", server.address, "--no-tls"]) == 1


def test_the_profile_is_for_its_address_only(server, make_server, options):
    plain = make_server(folder="other data")
    assert main(["login", server.address, *options]) == 0
    assert is_served(plain.address)
    assert is_served(server.address)


def test_login_keeps_nothing_if_it_cannot_connect(server, make_authority, home, capsys):
    assert main(["login", server.address, "--server-ca", str(make_authority("other").file)]) == 1
    assert "which is another CA" in capsys.readouterr().err
    assert not home.exists()


def test_login_lists_and_forgets(authority, home, capsys):
    ca = ["--server-ca", str(authority.file), "--no-check"]
    assert main(["login", "b.example:2", *ca, "--server-name", "c"]) == main(["login", "A.example:1", *ca]) == 0
    capsys.readouterr()
    assert main(["login", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"a.example:1 server_ca={authority.file}",
        f"b.example:2 server_ca={authority.file} server_name=c",
    ]
    assert main(["login", "a.EXAMPLE:1", "--forget"]) == 0
    assert list(tomllib.loads(home.read_text())["servers"]) == ["b.example:2"]
    assert main(["login", "a.example:1", "--forget"]) == 1
    assert "there are no settings for this address" in capsys.readouterr().err


def test_paths_are_kept_absolute_and_in_any_spelling(authority, home, monkeypatch):
    strange = authority.folder / 'a "quoted"\\ näme\x7f\n.pem'
    strange.write_bytes(authority.file.read_bytes())
    monkeypatch.chdir(authority.folder)
    assert main(["login", "h:1", "--server-ca", strange.name, "--no-check"]) == 0
    assert tomllib.loads(home.read_text())["servers"]["h:1"] == {"server_ca": str(strange)}
    monkeypatch.chdir("/")
    ParameterClient("h:1").close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "HOST:PORT: it is missing"),
        (["h:1"], "--server-ca: it is missing"),
        (["h:1", "--server-ca", "missing.pem", "--no-check"], "it cannot be read"),
        (["h:1", "--worker-key", "k.pem"], "worker_certificate: a certificate needs its key"),
        (["h", "--server-ca", "ca.pem"], "address: expected HOST:PORT"),
    ],
)
def test_an_incomplete_login_is_refused(words, message, home, capsys):
    assert main(["login", *words]) == 1
    assert message in capsys.readouterr().err
    assert not home.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("?", "must be a readable TOML file"),
        ('servers = "x"', "expected tables"),
        ('other = "x"', "expected tables"),
        ('[servers."h:1"]\nserver_ca = 7', "must be texts in a table"),
        ('[servers."h:1"]\nca = "x"', "sets 'ca': the settings are server_ca, worker_certificate"),
    ],
)
def test_a_profile_that_cannot_be_understood_is_refused(content, message, home):
    home.parent.mkdir(parents=True)
    home.write_text(content)
    home.chmod(0o600)
    with pytest.raises(ConfigurationError, match=message) as caught:
        ParameterClient("h:1")
    assert str(home) in str(caught.value)
    ParameterClient("h:1", tls=False).close()  # an argument needs no profile


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_profile_that_others_may_write_to_is_refused(mode, authority, home):
    assert main(["login", "h:1", "--server-ca", str(authority.file), "--no-check"]) == 0
    home.chmod(mode)
    with pytest.raises(ConfigurationError, match="which decides whom clients trust"):
        ParameterClient("h:1")


def test_the_error_of_a_command_is_one_line_without_grpcs_log(server, authority, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", "import sys; from numba_adam.cli import main; sys.exit(main())", "status"]
    words = ["--server", server.address, "--server-ca", str(authority.file), "--server-name", "example.org"]
    run = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=800, env=environment)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"numba-adam: {server.address}: the server's certificate is valid for 127.0.0.1, localhost")


def test_a_server_does_not_warn_of_the_clients_variables(caplog):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with caplog.at_level(logging.WARNING):
        load(parser.parse_args([]), dict.fromkeys(VARIABLES, "x"))
    assert not caplog.records


def test_login_keeps_a_token_that_clients_and_commands_then_use(
    authority, make_server, make_token, home, capsys, monkeypatch
):
    token = make_token("alice", "--pull", "*")
    server = make_server(authority.write("server"), loopback_token="required")
    for path in home.parent.glob("loopback/*"):
        path.unlink()  # as on another machine, at the end of a tunnel
    ca = ["--server-ca", str(authority.file)]
    assert main(["login", server.address, *ca]) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(token + "\n"))
    assert main(["login", server.address, *ca, "--token"]) == 0
    assert is_served(server.address)
    assert main(["status", "--server", server.address]) == 0
    assert main(["login", server.address, *ca]) == 0  # renewed settings keep the token
    assert is_served(server.address)
    assert stat.S_IMODE(home.stat().st_mode) == 0o600
    assert main(["login", "--list"]) == 0
    shown = capsys.readouterr()
    assert "token=(kept)" in shown.out
    assert token not in shown.out + shown.err
    home.chmod(0o640)
    with pytest.raises(ConfigurationError, match="others may read this file, which has tokens"):
        ParameterClient(server.address)


def test_a_text_that_is_no_token_is_not_kept(authority, home, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("not a token\n"))
    assert main(["login", "h:1", "--server-ca", str(authority.file), "--token", "--no-check"]) == 1
    assert "not a token" not in capsys.readouterr().err
    assert not home.exists()
