"""Runs the stages in processes of their own, within a budget of seconds.

A process that dies or hangs costs the item that it was at. Another one goes on with the items after it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu.journal import Journal, Record
from benchmarks.gpu.report import line
from benchmarks.gpu.stages import Stage
from benchmarks.gpu.worker import BROKEN

PATIENCE_SECONDS = 20.0  # beyond a stage's end, for the item that it is at
_POLL_SECONDS = 0.2


class Runner:
    """One run."""

    def __init__(
        self, journal: Journal, budget_seconds: float, cache: Path | None, said: Callable[[str], None] = print
    ) -> None:
        """Prepare a run.

        Args:
            journal: where the findings go.
            budget_seconds: when no further item begins, counted from now.
            cache: a folder for compiled kernels, shared by all processes of the run; None: the usual one.
            said: called with one line of text for each finding.
        """
        self._journal, self._said = journal, said
        self._end = time.time() + budget_seconds
        self._environment = {**os.environ, **({} if cache is None else {"NUMBA_CACHE_DIR": str(cache)})}
        self._printed, self._lock = 0, threading.Lock()

    def run(self, stages: Sequence[Stage]) -> None:
        """Run stages one after the other. Each gets its share of what is left."""
        for number, stage in enumerate(stages):
            shares = sum(later.share for later in stages[number:])
            left = self._end - time.time()
            self._run_stage(stage, time.time() + left * stage.share / shares)

    def _run_stage(self, stage: Stage, end: float) -> None:
        lanes = min(stage.lanes, os.cpu_count() or 1)
        with ThreadPoolExecutor(lanes) as threads:
            for done in [threads.submit(self._run_lane, stage, end, lane, lanes) for lane in range(lanes)]:
                done.result()
        self._print_new()

    def _run_lane(self, stage: Stage, end: float, lane: int, lanes: int) -> None:
        """Run one process of a stage, and others in its place while it dies."""
        arguments = [stage.name, str(self._journal.path), str(end), str(lane), str(lanes)]
        while True:
            status, errors = self._worked(arguments, end + PATIENCE_SECONDS)
            item = self._journal.unfinished(stage.name, lane)
            if item is not None:
                self._journal.add(Record(stage.name, item, "bad", _death(status, errors), lane=lane))
            elif status == 0:
                return
            elif status != BROKEN:  # before its first item, or after its last one
                self._journal.add(Record(stage.name, f"process {lane}", "bad", _death(status, errors), lane=lane))
                return

    def _worked(self, arguments: Sequence[str], end: float) -> tuple[int | None, str]:
        """Run a worker; return its status, None if it was killed, and what it wrote to stderr."""
        command = [sys.executable, "-m", "benchmarks.gpu.worker", *arguments]
        with subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as worker:
            return self._wait(worker, end)

    def _wait(self, worker: subprocess.Popen[str], end: float) -> tuple[int | None, str]:
        """Wait for a worker, and print what it finds meanwhile; return as `_worked`."""
        while True:
            try:
                _, errors = worker.communicate(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                self._print_new()
                if time.time() > end:
                    worker.kill()
                    _, errors = worker.communicate()
                    return None, errors
            else:
                return worker.returncode, errors

    def _print_new(self) -> None:
        with self._lock:
            results = self._journal.results()
            for record in results[self._printed :]:
                self._said(line(record))
            self._printed = len(results)


def _death(status: int | None, errors: str) -> str:
    """Return one line about a worker that ended in the middle of an item."""
    how = "was killed: it took too long" if status is None else f"ended with status {status}"
    last = next((text for text in reversed(errors.splitlines()) if text.strip()), "")
    return f"the process {how}. {last}".strip()
