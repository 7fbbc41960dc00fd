"""Two hosts in network namespaces of their own, joined by a virtual cable, on one machine. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAME = "trainer.test"
SERVER_HOST, WORKER_HOST = ("10.77.0.1", "fd77::1"), ("10.77.0.2", "fd77::2")
MOVED = "10.77.0.9"
DEAD = "10.77.0.200"  # nobody has it
PROXY = str(Path(__file__).with_name("proxy.py"))


class Host:
    """A network namespace with an /etc/hosts of its own; a process keeps it open."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.hosts = folder / f"hosts-{name}"
        self.hosts.write_text("127.0.0.1 localhost\n")
        keep = f"mount --bind {self.hosts} /etc/hosts && ip link set lo up && echo ready && exec cat"
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", keep]
        self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._running: list[subprocess.Popen[str]] = []
        if self._keeper.stdout.readline() != "ready\n":
            self.close()
            pytest.skip("the system forbids network namespaces")

    @property
    def pid(self) -> int:
        return self._keeper.pid

    def words(self, *command: str) -> list[str]:
        """Return a command that runs on this host."""
        spaces = (f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt")
        return [
            "nsenter",
            *spaces,
            "env",
            "-C",
            str(self._folder),
            *command,
        ]  # entering a mount namespace leaves the folder

    def run(self, *command: str, **options) -> str:
        """Run a command to its end; return what it prints."""
        run = subprocess.run(self.words(*command), capture_output=True, text=True, check=False, timeout=800, **options)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def start(self, *command: str, announces: str, log: Path, **options) -> str:
        """Start a program that runs on; return the last word of the line that says it is ready."""
        with log.open("a") as file:
            program = subprocess.Popen(self.words(*command), stdout=subprocess.PIPE, stderr=file, text=True, **options)
        self._running.append(program)
        line = program.stdout.readline()
        assert line.startswith(announces), log.read_text()
        return line.split()[-1]

    @contextlib.contextmanager
    def talking(self, *command: str, **options) -> Iterator[subprocess.Popen[str]]:
        """Run a program that one can write to and read from."""
        words = self.words(*command)
        program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
        with program:
            try:
                yield program
            finally:
                program.kill()

    def terminate_programs(self) -> None:
        """Ask the programs that run on to end, and wait until they have."""
        for program in self._running:
            program.terminate()
            program.wait(800)
        self.stop_programs()

    def stop_programs(self) -> None:
        """End the programs that run on."""
        while self._running:
            program = self._running.pop()
            program.kill()
            program.wait()
            program.stdout.close()

    def close(self) -> None:
        self.stop_programs()
        self._keeper.kill()
        self._keeper.wait()
        self._keeper.stdin.close()
        self._keeper.stdout.close()


class Pair:
    """The host of a server and that of a worker."""

    def __init__(self, folder: Path, server: Host, worker: Host) -> None:
        self.folder, self.server, self.worker = folder, server, worker
        cable = ("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns")
        if subprocess.run(server.words(*cable, str(worker.pid)), capture_output=True, check=False).returncode:
            pytest.skip("the system forbids virtual cables between network namespaces")
        for host, (four, six) in ((server, SERVER_HOST), (worker, WORKER_HOST)):
            host.run("ip", "address", "add", f"{four}/24", "dev", "cable")
            host.run("ip", "address", "add", f"{six}/64", "dev", "cable", "nodad")
            host.run("ip", "link", "set", "cable", "up")
        ours = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_ADAM_")}
        self.environment = {**ours, "XDG_CONFIG_HOME": str(folder / "config")}
        self.command("certificate", "ca")
        self.command("certificate", "server", NAME)
        self.token = self.command("token", "make", "w0", "--admin", "*", "--data-dir", "adam").strip()

    def command(self, *words: str) -> str:
        return self.server.run(sys.executable, "-m", "numba_adam", *words, env=self.environment)

    def serve(self, listen: str, *words: str) -> str:
        """Start a server with TLS and tokens; return its address."""
        files = self.folder / "numba-adam-certificates"
        tls = ("--tls-certificate", str(files / "server.pem"), "--tls-key", str(files / "server.key"))
        command = (sys.executable, "-m", "numba_adam", "serve", "--listen", listen, "--data-dir", "adam", *tls, *words)
        return self.server.start(
            *command,
            announces="numba-adam: serving on ",
            log=self.folder / "log",
            env=self.environment,
        )

    def names(self, *addresses: str) -> None:
        """Set what the server's name resolves to on the worker's host."""
        lines = "".join(f"{address} {NAME}\n" for address in addresses)
        self.worker.hosts.write_text(f"127.0.0.1 localhost\n{lines}")

    def work(self, program: str, **environment: str) -> str:
        """Run a worker's program; return what it prints."""
        ca = str(self.folder / "numba-adam-certificates/ca.pem")
        settings = {"NUMBA_ADAM_SERVER_CA": ca, "NUMBA_ADAM_TOKEN": self.token, **environment}
        run = (sys.executable, "-c", program)
        return self.worker.run(*run, env={**self.environment, **settings})


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    missing = [each for each in ("ip", "unshare", "nsenter") if shutil.which(each) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(Host(tmp_path, "server")))
        worker = stack.enter_context(contextlib.closing(Host(tmp_path, "worker")))
        yield Pair(tmp_path, server, worker)
