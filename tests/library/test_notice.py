"""Whoever waits for a compiler is told once: on a terminal, else in the log. Nothing here depends on time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from numba_adam.kernel_cache.notice import Notice

FOLDER = Path("/somewhere/kernels")
# After 0 seconds the line is due as soon as a compilation begins. The program waits until it is there.
PROGRAM = """
import logging, os, sys, threading
from pathlib import Path
from numba_adam.kernel_cache.notice import Notice

logged = threading.Event()


class Handler(logging.Handler):
    def emit(self, record):
        print("logged:", record.getMessage())
        logged.set()


logging.getLogger("numba_adam").addHandler(Handler())
logging.getLogger("numba_adam").setLevel(logging.INFO)
ours, theirs = os.openpty()
sys.stderr = open(theirs, "w", buffering=1) if sys.argv[1] == "terminal" else sys.stderr
exec(sys.argv[3])
notice = Notice(after_seconds=0)
notice.begin("float32", 3, Path("/somewhere/kernels"))
if sys.argv[2] == "told":
    print("shown:", os.read(ours, 1000).decode().strip())
else:
    logged.wait()
notice.end("float32")
"""
LINE = "compiling the float32 kernels once, some 3 s; kept in /somewhere/kernels"


FILTER = "import warnings; warnings.{}"


@pytest.mark.parametrize(
    ("stream", "outcome", "environment", "statement"),
    [
        ("terminal", "told", {}, ""),
        ("terminal", "told", {"NUMBA_ADAM_QUIET": ""}, ""),
        ("terminal", "logged", {"NUMBA_ADAM_QUIET": "1"}, ""),
        ("terminal", "logged", {}, FILTER.format("simplefilter('ignore')")),
        ("terminal", "logged", {}, FILTER.format("filterwarnings('ignore', category=UserWarning)")),
        ("terminal", "logged", {}, FILTER.format("filterwarnings('ignore', module='numba_adam')")),
        ("terminal", "logged", {}, FILTER.format("filterwarnings('ignore', message='compiling the')")),
        ("terminal", "told", {}, FILTER.format("filterwarnings('ignore', message='another')")),
        ("terminal", "told", {}, FILTER.format("filterwarnings('ignore', module='numba$')")),
        ("terminal", "told", {}, FILTER.format("simplefilter('error')")),
        ("pipe", "logged", {}, ""),
    ],
)
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no terminals that a program can open")
def test_one_line_is_shown_on_a_terminal_and_logged_elsewhere(run_python, stream, outcome, environment, statement):
    output = run_python(PROGRAM, stream, outcome, statement, **{"NUMBA_ADAM_QUIET": "", **environment})
    assert output == (f"shown: numba-adam: {LINE}" if outcome == "told" else f"logged: {LINE}")


@pytest.mark.parametrize(("option", "outcome"), [("ignore", "logged"), ("ignore::DeprecationWarning", "told")])
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no terminals that a program can open")
@pytest.mark.parametrize("is_variable", [True, False])
def test_pythons_own_option_for_warnings_is_respected(option, outcome, is_variable):
    chosen, arguments = {"PYTHONWARNINGS": option}, ["-W", option]
    command = [sys.executable, *([] if is_variable else arguments), "-c", PROGRAM, "terminal", outcome, ""]
    environment = {**os.environ, "NUMBA_ADAM_QUIET": "", **(chosen if is_variable else {})}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert child.stdout.strip() == (f"shown: numba-adam: {LINE}" if outcome == "told" else f"logged: {LINE}")


class Waiting(Notice):
    """A notice that counts what it says, and lets a test wait for it."""

    def __init__(self, after_seconds: float) -> None:
        super().__init__(after_seconds)
        self.told: list[str] = []
        self.has_told = threading.Event()

    def _tell(self, what: str, seconds: int, folder: Path | None) -> None:
        super()._tell(what, seconds, folder)
        self.told.append(what)
        self.has_told.set()


def test_a_second_kernel_of_the_kind_is_not_told_of_again():
    notice = Waiting(after_seconds=0)
    for what in ("float32", "float32", "float64"):
        notice.has_told.clear()
        notice.begin(what, 3, FOLDER)
        assert what in notice.told or notice.has_told.wait()
        notice.end(what)
    assert notice.told == ["float32", "float64"]


def test_short_compilations_add_up():
    """Each of them ends before the limit, and together they pass it."""
    notice = Waiting(after_seconds=1e6)
    notice.begin("float32", 3, FOLDER)
    notice.end("float32")
    assert notice.told == []
    notice._spent["float32"] = 1e6  # as if they had taken so long
    notice.begin("float32", 3, FOLDER)
    assert notice.has_told.wait()
    notice.end("float32")
    assert notice.told == ["float32"]


def test_without_a_folder_the_line_says_that_every_process_compiles(caplog):
    notice = Waiting(after_seconds=0)
    with caplog.at_level("INFO", "numba_adam"):
        notice.begin("float32", 3, None)
        assert notice.has_told.wait()
        notice.end("float32")
    assert [record.getMessage() for record in caplog.records] == [
        "compiling the float32 kernels in every process: no folder can keep them"
    ]
