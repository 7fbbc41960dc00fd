"""`numba-adam serve` starts its server again after a crash, and otherwise ends as the server does."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from numba_adam.client import Backoff, ParameterClient

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child of a killed process")
READY = "numba-adam: serving on "
GRADS = {"w": np.ones(1000, np.float32)}
LONG_PAUSES = (
    "-c",
    "import sys, numba_adam.server.supervision.supervisor as supervisor\n"
    "supervisor._FIRST_PAUSE_SECONDS = supervisor._LONGEST_PAUSE_SECONDS = 1e6\n"
    "from numba_adam.cli import main\n"
    "sys.exit(main(sys.argv[1:]))",
)
FAILING_DISK = (
    "-c",
    "import os, sys\n"
    "real = os.fdatasync\n"
    "def fdatasync(descriptor):\n"
    "    if os.path.exists('broken'):\n"
    "        raise OSError(5, os.strerror(5))\n"
    "    real(descriptor)\n"
    "os.fdatasync = fdatasync\n"
    "from numba_adam.cli import main\n"
    "sys.exit(main(sys.argv[1:]))",
)


class Supervised:
    """`numba-adam serve`, and the processes that it starts."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        listen: str = "127.0.0.1:0",
        before: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "numba_adam"),
        **settings: object,
    ) -> None:
        (folder / "memory").mkdir(exist_ok=True)
        self.log = folder / "server.log"
        command = [*before, sys.executable, *program, "serve", "--listen", listen]
        command += [
            "--data-dir",
            str(folder / "data"),
            "--memory-dir",
            str(folder / "memory"),
            "--snapshot-interval-seconds",
            "0",
            *options,
        ]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, **settings
            )

    def address(self) -> str:
        """Return the address, once it serves."""
        ready, _, _ = select.select([self.process.stdout], [], [], 800)
        line = self.process.stdout.readline() if ready else ""
        assert line.startswith(READY), self.log.read_text()
        return line.removeprefix(READY).strip()

    def child(self) -> int:
        """Return the id of the serving process."""
        return child_of(self.process.pid)

    def wait_for(self, words: str, count: int = 1) -> None:
        """Wait until the log has some words a number of times."""
        patience = select.poll()  # the log is a file, which no event tells of
        for _ in range(80_000):
            if len(re.findall(words, self.log.read_text())) >= count:
                return
            patience.poll(10)
        raise AssertionError(f"{words!r} does not come: {self.log.read_text()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(800)
        self.process.stdout.close()


def child_of(pid: int) -> int:
    """Return the only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def is_left_with_one_child(pid: int) -> bool:
    """Wait until a process has one child, dead or alive."""
    patience = select.poll()
    for _ in range(80_000):
        if len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) == 1:
            return True
        patience.poll(10)
    return False


def ends(process: int) -> bool:
    """Wait for the end of a process that is not a child of this one."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(800_000))
    finally:
        os.close(descriptor)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(*options: str, **settings: object) -> Supervised:
        started.append(Supervised(tmp_path, *options, **settings))
        return started[-1]

    yield start
    for each in started:
        each.end()


def client_of(address: str) -> ParameterClient:
    return ParameterClient(
        address, "w", timeout_seconds=800.0, backoff=Backoff(first_seconds=0.01, ceiling_seconds=0.05)
    )


def test_a_kill_of_the_serving_process_costs_no_push_and_keeps_the_port(supervised) -> None:
    server = supervised()
    with client_of(server.address()) as client:
        rewinds: list[int] = []
        model = client.create_model("m", {"w": np.zeros(1000, np.float32)})
        model.on_rewind(rewinds.append)
        assert model.push(GRADS).version == 1
        first = server.child()
        os.kill(first, signal.SIGKILL)
        ack = model.push(GRADS)
        assert (ack.version, ack.applied, rewinds) == (2, True, [])
        assert server.child() != first
    server.process.terminate()
    assert server.process.wait(800) == 0
    assert "died of SIGKILL" in server.log.read_text()
    assert "starting it again now (restart 1 of at most 10)" in server.log.read_text()


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGTERM, "supervisor"),
        (signal.SIGINT, "group"),
        pytest.param(signal.SIGHUP, "group", marks=pytest.mark.campaign),
        pytest.param(signal.SIGTERM, "child", marks=pytest.mark.campaign),
        pytest.param(signal.SIGINT, "supervisor", marks=pytest.mark.campaign),
        pytest.param(signal.SIGHUP, "supervisor", marks=pytest.mark.campaign),
    ],
)
def test_a_stop_signal_saves_and_ends_with_0(supervised, number, whom) -> None:
    server = supervised(start_new_session=True)
    with client_of(server.address()) as client:
        client.create_model("m", GRADS, durability="memory").push(GRADS)
        child = server.child()
        if whom == "group":  # Ctrl-C in a terminal
            os.killpg(server.process.pid, number)
        else:
            os.kill(child if whom == "child" else server.process.pid, number)
        assert server.process.wait(800) == 0
    assert ends(child)
    assert server.log.read_text().count("snapshot of version 1") == 1
    assert "starting it again" not in server.log.read_text()


@pytest.mark.campaign
def test_under_nohup_sighup_is_ignored_by_both(supervised) -> None:
    server = supervised(start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    with client_of(server.address()) as client:
        os.killpg(server.process.pid, signal.SIGHUP)
        assert client.create_model("m", GRADS).push(GRADS).version == 1
    server.process.terminate()
    assert server.process.wait(800) == 0


def test_the_serving_process_dies_with_a_killed_supervisor_and_a_new_one_continues(supervised) -> None:
    server = supervised()
    address = server.address()
    with client_of(address) as client:
        model = client.create_model("m", {"w": np.zeros(1000, np.float32)})
        assert model.push(GRADS).version == 1
        child = server.child()
        server.process.kill()
        server.process.wait(800)
        again = supervised(listen=address)  # at once: the old process may still have the folder and the port
        assert again.address() == address
        assert ends(child)
        assert model.push(GRADS).version == 2


@pytest.mark.campaign
def test_kills_of_both_at_once_and_during_starts_lose_no_push(supervised) -> None:
    address = "127.0.0.1:0"
    for version in range(1, 4):
        server = supervised(listen=address)
        address = server.address()
        with client_of(address) as client:
            model = client.create_model("m", {"w": np.zeros(1000, np.float32)}, exist_ok=True)
            assert model.push(GRADS).version == version
        child = server.child()
        os.kill(child, signal.SIGKILL)
        server.process.kill()
        server.process.wait(800)
        starting = supervised(listen=address)
        while not Path(f"/proc/{starting.process.pid}/task/{starting.process.pid}/children").read_text().split():
            assert starting.process.poll() is None
        starting.process.kill()  # while its child starts, or recovers
        starting.process.wait(800)


@pytest.mark.campaign
@pytest.mark.parametrize("options", [("--most-restarts", "0"), ("--most-restarts", "2")])
def test_a_loop_of_crashes_ends_after_the_limit_and_says_why(supervised, options) -> None:
    most = int(options[1])
    server = supervised(*options)
    server.address()
    for crash in range(most + 1):
        os.kill(server.child(), signal.SIGSEGV)
        if crash < most:
            server.wait_for(f"restart {crash + 1} of at most {most}")
            server.wait_for(r"serving on 127", crash + 2)
    assert server.process.wait(800) == 1
    shown = server.log.read_text()
    assert (
        "the serving process died of SIGSEGV (a fault in a compiled library; PYTHONFAULTHANDLER=1 shows where)" in shown
    )
    assert f"crash {most + 1} in a row: it stays down" in shown
    assert server.process.stdout.read() == ""  # the address was said once


@pytest.mark.campaign
def test_a_stop_during_the_pause_ends_at_once_with_1(supervised) -> None:
    server = supervised(program=LONG_PAUSES)
    server.address()
    os.kill(server.child(), signal.SIGKILL)
    server.wait_for("serving on 127", 2)
    os.kill(server.child(), signal.SIGKILL)
    server.wait_for("starting it again in 1e\\+06 s")
    server.process.terminate()
    assert server.process.wait(800) == 1
    assert "stopped while no process served" in server.log.read_text()


@pytest.mark.parametrize(
    "fault", ["setting", "port", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("folder", "damage"))]
)
def test_a_start_that_is_refused_is_one_line_and_not_tried_again(supervised, tmp_path, fault) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if fault == "port":
            server = supervised(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        elif fault == "folder":
            (tmp_path / "data").write_text("a file")
            server = supervised()
        elif fault == "setting":
            server = supervised("--threads", "many")
        else:
            first = supervised()
            with client_of(first.address()) as client:
                client.create_model("m", GRADS)
            first.process.terminate()
            assert first.process.wait(800) == 0
            for path in (tmp_path / "data" / "models" / "m").iterdir():
                path.write_bytes(b"damaged")
            first.log.write_text("")
            server = supervised()
        assert server.process.wait(800) == 1
        assert server.process.stdout.read() == ""
    lines = server.log.read_text().splitlines()
    assert [line for line in lines if line.startswith("numba-adam: ")] == lines[-1:]
    assert "starting it again" not in "".join(lines)


def test_a_failed_fsync_ends_both_with_74_and_is_not_tried_again(supervised, tmp_path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(800)
        server = supervised(program=FAILING_DISK, env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")})
        address = server.address()
        with client_of(address) as client:
            model = client.create_model("m", {"w": np.zeros(1000, np.float32)}, durability="disk")
            assert model.push(GRADS).version == 1
            (tmp_path / "broken").touch()
            failing = model.push_async(GRADS)
            assert server.process.wait(800) == 74
            assert not failing.done()
            shown = server.log.read_text()
            (tmp_path / "broken").unlink()
            assert supervised(listen=address).address() == address
            assert failing.result(800).version == 2
        assert manager.recv(4096).decode().startswith("READY=1\n")
        assert manager.recv(4096).decode() == (
            "STATUS=the serving process ended with exit status 74; it is not started again"
        )
    assert "00000001.journal: fsync failed ([Errno 5] Input/output error)" in shown
    assert "ended with exit status 74: it is not started again" in shown
    assert "starting it again" not in shown


def test_a_port_that_is_taken_meanwhile_is_tried_again_until_it_is_free(supervised) -> None:
    server = supervised()
    address = server.address()
    with client_of(address) as client:
        assert client.create_model("m", GRADS).push(GRADS).version == 1
    child = server.child()
    server.process.send_signal(signal.SIGSTOP)  # it must not be faster than the thief
    os.kill(child, signal.SIGKILL)
    assert ends(child)
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        server.process.send_signal(signal.SIGCONT)
        server.wait_for("restart 2 of at most 10")
        assert "numba-adam: " in server.log.read_text()  # why it does not start
    with client_of(address) as client:
        assert client.open_model("m").push(GRADS).version == 2
    server.process.terminate()
    assert server.process.wait(800) == 0
    assert server.process.stdout.read() == ""


@pytest.mark.parametrize("whom", ["server", pytest.param("supervisor", marks=pytest.mark.campaign)])
def test_a_kill_during_a_stop_ends_both_and_loses_no_push(supervised, whom) -> None:
    server = supervised()
    with client_of(server.address()) as client:
        model = client.create_model("m", {"w": np.zeros(1000, np.float32)})
        assert model.push(GRADS).version == 1
    child = server.child()
    os.kill(child, signal.SIGSTOP)  # it cannot finish its stop before the kill
    server.process.terminate()
    if whom == "supervisor":
        server.process.kill()
    else:
        os.kill(child, signal.SIGKILL)
    assert server.process.wait(800) == -signal.SIGKILL
    assert ends(child)
    assert "starting it again" not in server.log.read_text()
    again = supervised()
    with client_of(again.address()) as client:
        assert client.open_model("m").push(GRADS).version == 2


@pytest.mark.campaign
def test_two_supervisors_on_one_folder_do_not_share_it(supervised) -> None:
    server = supervised()
    address = server.address()
    other = supervised()
    assert other.process.wait(800) == 1
    assert "another server uses it" in other.log.read_text()
    with client_of(address) as client:
        assert client.create_model("m", GRADS).push(GRADS).version == 1


@pytest.mark.campaign
def test_with_closed_standard_streams_it_serves_and_restarts(supervised, tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shell = 'exec "$0" -m numba_adam serve --listen "$1" --data-dir data --memory-dir memory <&- >&- 2>&-'
    (tmp_path / "memory").mkdir()
    process = subprocess.Popen(["sh", "-c", shell, sys.executable, f"127.0.0.1:{port}"], cwd=tmp_path)
    try:
        with client_of(f"127.0.0.1:{port}") as client:
            model = client.create_model("m", GRADS)
            assert model.push(GRADS).version == 1
            os.kill(child_of(process.pid), signal.SIGKILL)
            assert model.push(GRADS).version == 2
        process.terminate()
        assert process.wait(800) == 0
    finally:
        process.kill()
        process.wait(800)


@pytest.mark.campaign
def test_without_supervision_a_crash_ends_it(supervised) -> None:
    server = supervised("--no-supervise")
    server.address()
    assert Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text() == ""
    server.process.kill()
    assert server.process.wait(800) == -signal.SIGKILL


def test_systemd_is_told_of_readiness_of_the_crash_and_of_the_stop(supervised, tmp_path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(800)
        server = supervised(env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")})
        address = server.address()
        assert manager.recv(4096).decode().startswith(f"READY=1\nSTATUS=serving on {address}, process ")
        os.kill(server.child(), signal.SIGKILL)
        assert manager.recv(4096).decode().startswith("STATUS=the serving process died of SIGKILL")
        assert manager.recv(4096).decode().startswith("READY=1\n")
        server.process.terminate()
        assert manager.recv(4096).decode() == "STOPPING=1"
        assert server.process.wait(800) == 0


@pytest.mark.campaign
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace of processes")
def test_as_process_1_it_passes_signals_on_and_waits_for_orphans(supervised) -> None:
    server = supervised(before=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"))
    server.address()
    first = server.child()
    serving = child_of(first)
    # A process whose parent ends is given to process 1 of the namespace.
    orphans = ["nsenter", "--target", str(first), "--pid", "--mount", "sh", "-c", "(exit 3) & (exec true) & exit"]
    subprocess.run(orphans, check=True, timeout=800)
    os.kill(serving, signal.SIGKILL)
    server.wait_for("serving on 127", 2)
    assert is_left_with_one_child(first)
    os.kill(first, signal.SIGTERM)
    assert server.process.wait(800) == 0
