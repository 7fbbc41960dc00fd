"""The server process and the worker processes of the demonstration: start, kill, wait.

May import the standard library and numba_adam.errors. The processes run modules by name (`python -m`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numba_adam.errors import ServerUnavailableError, ServiceError

# -P: do not import a folder numba_adam of the current folder.
_PYTHON = (sys.executable, "-P", "-m")
# One thread is faster for such a small gradient, and the processes share few cores.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_READY = "numba-adam: serving on "
_STOP_SECONDS = 30


class Event(NamedTuple):
    """A report of a worker."""

    worker: int
    """The index of the worker, from 0."""

    kind: str
    """"ready", "push" or "rewind"; "exit" after the process has ended."""

    values: dict[str, Any]
    """The values of the report. All kinds except "exit" have `time`, in seconds as time.time()."""


class ServerProcess:
    """`numba-adam serve`: a process that serves, and one that starts it again after a crash, on the same port."""

    def __init__(self, folder: Path, snapshot_every_pushes: int) -> None:
        self.address = "127.0.0.1:0"  # port 0: the system chooses a free port at the first start
        self._log = folder / "server.log"
        self._options = (
            *("--data-dir", str(folder / "data"), "--snapshot-interval-seconds", "0"),
            *("--snapshot-every-pushes", str(snapshot_every_pushes)),
        )
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The id of the process that serves: a child of the one that was started, which supervises it."""
        assert self._process is not None, "call start() first"
        own = self._process.pid
        return int(Path(f"/proc/{own}/task/{own}/children").read_text().split()[0])

    def kill_serving(self) -> None:
        """Kill the process that serves with SIGKILL; the other one starts it again."""
        os.kill(self.pid, signal.SIGKILL)

    def start(self) -> None:
        """Start the process and return when it is ready.

        Raises:
            ServerUnavailableError: the process ended. The message has the last lines of its log.
        """
        command = [*_PYTHON, "numba_adam", "serve", "--listen", self.address, *self._options]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line.startswith(_READY):
            self.kill()
            raise ServerUnavailableError(f"the server did not start; the end of its log:\n{_tail(self._log)}")
        self.address = line.removeprefix(_READY)

    def kill(self) -> None:
        """Kill both processes with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._forget()

    def stop(self) -> None:
        """Stop the process with SIGTERM and wait for it."""
        if self._process is not None:
            self._process.terminate()
            self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.wait(_STOP_SECONDS)
        self._process.stdout.close()
        self._process = None


class WorkerProcess:
    """A process of `numba_adam.demo.worker`. Its reports go into the queue."""

    def __init__(self, index: int, arguments: Sequence[str], folder: Path, events: queue.Queue[Event]) -> None:
        self._index, self._events = index, events
        self._log = folder / f"worker-{index}.log"
        command = [*_PYTHON, "numba_adam.demo.worker", "--index", str(index), *arguments]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **_ONE_THREAD},
            )
        self._reader = threading.Thread(target=self._read, name=f"worker-{index}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                values = json.loads(line)
                self._events.put(Event(self._index, values.pop("event"), values))
        self._events.put(Event(self._index, "exit", {"status": self._process.wait()}))

    def go(self) -> None:
        """Start the training of a worker that has reported "ready"."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker has ended; its "exit" event says so
            self._process.stdin.write("go\n")
            self._process.stdin.close()

    def error(self, status: int) -> ServiceError:
        """Return an exception with the exit status and the last lines of the log."""
        return ServiceError(f"worker {self._index} ended with status {status}; the end of its log:\n{_tail(self._log)}")

    def end(self) -> None:
        """Kill the process if it still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(_STOP_SECONDS)
        self._reader.join(_STOP_SECONDS)


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
