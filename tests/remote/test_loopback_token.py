"""--loopback-token required: clients of the server's user find the token by themselves, and nobody else can."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys

import grpc
import numpy as np
import pytest
from calls import bearer, status_of

from numba_adam.cli import main
from numba_adam.client import ParameterClient, Tls
from numba_adam.errors import UnauthenticatedError
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

LONG = 800.0
WEIGHTS = np.ones(3, np.float32)
LIST = "/numba_adam.ps.v1.ParameterService/ListModels"
READY = "numba-adam: serving on "
OTHER_USER = 54321  # a number that belongs to nobody


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "configuration" / "numba-adam" / "loopback"


@pytest.fixture
def server(make_server):
    return make_server(loopback_token="required")


def client_of(address, **settings):
    return ParameterClient(address, timeout_seconds=LONG, **settings)


def path_of(folder, address):
    """Return the file of a server's token, as docs/remote.md describes it."""
    return folder / f"{os.uname().nodename}-{address.rpartition(':')[2]}.token"


def test_clients_and_commands_of_the_same_user_find_the_token(server, capsys):
    with client_of(server.address) as client:
        model = client.create_model("m", {"w": WEIGHTS})
        assert model.push({"w": WEIGHTS}).version == 1
        client.delete_model("m")
    for words in (["status"], ["snapshot"]):
        assert main([*words, "--server", server.address]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "form", ["localhost:{port}", "127.0.0.1:{port}", "dns:///localhost:{port}", "LOCALHOST:{port}"]
)
def test_every_spelling_of_loopback_finds_it(form, server):
    address = form.format(port=server.address.rpartition(":")[2])
    with client_of(address) as client:
        assert client.list_models() == []


def test_the_file_is_for_its_user_only(server, folder):
    path = path_of(folder, server.address)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    token = path.read_text().removesuffix("\n")
    assert re.fullmatch(r"nat_[A-Za-z0-9_-]{43}", token)
    assert status_of(server.address, LIST, bearer(token), b"") is grpc.StatusCode.OK
    assert status_of(server.address, LIST, (), b"") is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_mode_does_not_depend_on_the_umask(mask, make_server, folder):
    before = os.umask(mask)
    try:
        server = make_server(loopback_token="required")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(folder, server.address).stat().st_mode) == 0o600


def test_each_start_makes_another_token_and_an_end_removes_it(make_server, folder, tmp_path):
    seen = set()
    address = "127.0.0.1:0"
    for _ in range(3):
        with Server(ServerConfig(listen=address, data_dir=tmp_path / "data", loopback_token="required")) as server:
            address = server.address
            seen.add(path_of(folder, address).read_text())
        assert not path_of(folder, address).exists()
    assert len(seen) == 3


def test_without_the_setting_no_file_is_made(make_server, folder):
    make_server()
    assert not folder.exists()


def test_a_file_that_others_may_read_or_write_is_not_used(server, folder):
    path = path_of(folder, server.address)
    for mode in (0o640, 0o604, 0o620, 0o602):
        path.chmod(mode)
        with client_of(server.address) as client, pytest.raises(UnauthenticatedError, match="the call has no token"):
            client.list_models()
    path.chmod(0o600)
    with client_of(server.address) as client:
        assert client.list_models() == []


def test_a_link_or_a_pipe_in_its_place_is_not_used(server, folder, tmp_path):
    path = path_of(folder, server.address)
    path.rename(tmp_path / "moved")
    for make in (lambda: path.symlink_to(tmp_path / "moved"), lambda: os.mkfifo(path, 0o600)):
        make()
        with client_of(server.address) as client, pytest.raises(UnauthenticatedError):
            client.list_models()
        path.unlink()


def test_a_token_of_another_holder_is_preferred(server, make_token, monkeypatch):
    token = make_token("alice", "--pull", "none")
    monkeypatch.setenv("NUMBA_ADAM_TOKEN", token)
    with client_of(server.address) as client, pytest.raises(PermissionError, match="the token of 'alice'"):
        client.snapshot()
    monkeypatch.delenv("NUMBA_ADAM_TOKEN")
    with client_of(server.address, token=token) as client, pytest.raises(PermissionError, match="'alice'"):
        client.snapshot()


def test_it_is_for_the_port_of_its_server(server, make_server, folder):
    other = make_server(folder="other", loopback_token="required")
    first, second = (path_of(folder, each.address) for each in (server, other))
    assert status_of(other.address, LIST, bearer(first.read_text().strip()), b"") is grpc.StatusCode.UNAUTHENTICATED
    shutil.copyfile(second, first)
    with client_of(server.address) as client, pytest.raises(UnauthenticatedError, match="unknown"):
        client.list_models()


def test_it_works_together_with_tls_and_with_other_tokens(authority, make_server, make_token):
    token = make_token("alice", "--push", "m")
    server = make_server(authority.write("server"), loopback_token="required")
    tls = Tls(server_ca=authority.file)
    with client_of(server.address, tls=tls) as client, client_of(server.address, tls=tls, token=token) as alice:
        own = client.create_model("m", {"w": WEIGHTS})
        assert own.push({"w": WEIGHTS}).version == 1
        assert alice.open_model("m").push({"w": WEIGHTS}).version == 2


def test_without_a_place_for_the_file_the_server_says_so(make_server, make_token, tmp_path, caplog):
    (tmp_path / "configuration").write_text("a file where the folder should be")
    token = make_token("alice", "--pull", "*")
    with caplog.at_level(logging.WARNING):
        server = make_server(loopback_token="required")
    assert "cannot be written" in caplog.text
    assert "numba-adam token make" in caplog.text
    with client_of(server.address, token=token) as client:
        assert client.list_models() == []


class Process:
    """`numba-adam serve` as a process of its own."""

    def __init__(self, data, address="127.0.0.1:0", **environment):
        command = [sys.executable, "-m", "numba_adam", "serve", "--listen", address, "--data-dir", str(data)]
        command += ["--loopback-token", "required", "--memory-dir", str(data.parent)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
        )
        line = self.process.stdout.readline().strip()
        assert line.startswith(READY), line
        self.address = line.removeprefix(READY)

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(LONG)
        self.process.stdout.close()


@pytest.mark.parametrize("durability", ["memory", "process"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_open_client_follows_a_restarted_server(number, durability, tmp_path):
    """The restarted server has another token. The client finds it, and no push is lost or applied twice."""
    data = tmp_path / "data"
    server = Process(data)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: server.end(signal.SIGTERM))
        client = stack.enter_context(client_of(server.address, worker_id="w0"))
        model = client.create_model("m", {"w": WEIGHTS}, durability=durability)
        assert model.push({"w": WEIGHTS}).version == 1
        client.snapshot("m")
        server.end(number)
        server = Process(data, server.address)
        acknowledged = [model.push_async({"w": WEIGHTS}).result(LONG) for _ in range(3)]
        version = client.status().models[0].model.version
        assert acknowledged[-1].version == version == 1 + sum(ack.applied for ack in acknowledged) >= 3


def test_a_client_that_was_opened_before_the_server_started_finds_the_token(tmp_path, make_server):
    """The port is the one that the server takes later."""
    first = Process(tmp_path / "data")
    first.end(signal.SIGTERM)
    with client_of(first.address) as client:
        second = Process(tmp_path / "data", first.address)
        try:
            assert client.list_models() == []
        finally:
            second.end(signal.SIGTERM)


PROGRAM = """\
import os, sys
from numba_adam.client import ParameterClient
from numba_adam.errors import UnauthenticatedError
address, path = sys.argv[1:]
os.setgroups([]); os.setgid({user}); os.setuid({user})
os.environ["XDG_CONFIG_HOME"] = path.rsplit("/", 3)[0]
try:
    open(path).read()
except PermissionError:
    print("cannot read the token")
with ParameterClient(address, timeout_seconds=800) as client:
    try:
        client.list_models()
    except UnauthenticatedError as error:
        print(error)
print("done", flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_cannot_read_the_token_and_gets_no_answer(server, folder, tmp_path):
    path = path_of(folder, server.address)
    opened = [parent for parent in path.parents if parent.stat().st_uid == 0 and parent != folder]
    before = {parent: stat.S_IMODE(parent.stat().st_mode) for parent in opened}
    try:
        for parent in opened:  # even if every folder around it is open to all
            parent.chmod(before[parent] | 0o755)
        folder.chmod(0o755)
        words = [sys.executable, "-c", PROGRAM.format(user=OTHER_USER), server.address, str(path)]
        run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LONG)
    finally:
        for parent, mode in before.items():
            parent.chmod(mode)
    assert run.stdout.splitlines()[0] == "cannot read the token", run.stderr
    assert "the call has no token" in run.stdout
    assert run.stdout.endswith("done\n")
