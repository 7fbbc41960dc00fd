"""A client that waits for the server's compiler is told so."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings

import numpy as np
import pytest

from numba_adam.client import ParameterClient
from numba_adam.client.progress import Reason
from numba_adam.cpu import ahead
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server
from numba_adam.server.runtime import ready

DEADLINE = 800.0


class Terminal(io.StringIO):
    """A stderr that is a terminal, and says when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.is_written = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        self.is_written.set()
        return count


def watch_terminal(monkeypatch):
    """Make stderr a terminal: in the test itself, because pytest sets stderr between its fixtures and the test."""
    monkeypatch.delenv("NUMBA_ADAM_QUIET", raising=False)
    monkeypatch.setattr(sys, "warnoptions", [])
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


@pytest.fixture
def slow_compiler(monkeypatch):
    """Let the compilation of float64 kernels last until the event is set."""
    may_end, compile_them = threading.Event(), ahead.make_ready

    def make_ready(dtype, **options):
        assert dtype != "float64" or may_end.wait(DEADLINE)
        compile_them(dtype, **options)

    monkeypatch.setattr(ahead, "make_ready", make_ready)
    monkeypatch.setattr(ready, "_ready", set())
    return may_end


def test_create_model_says_on_a_terminal_that_the_server_compiles(monkeypatch, slow_compiler, tmp_path):
    terminal = watch_terminal(monkeypatch)
    with (
        Server(ServerConfig(listen="127.0.0.1:0", data_dir=tmp_path)) as server,
        ParameterClient(server.address, timeout_seconds=DEADLINE) as client,
    ):
        assert client.status().compiling == ""
        creation = threading.Thread(target=client.create_model, args=("m", {"w": np.ones(3)}))
        creation.start()
        try:
            assert terminal.is_written.wait(DEADLINE)
            assert client.status().compiling == "float64"
        finally:
            slow_compiler.set()
            creation.join(DEADLINE)
        assert client.status().compiling == ""
    assert "numba-adam: create model 'm': the server compiles its float64 kernels, once" in terminal.getvalue()
    assert terminal.getvalue().count("compiles") == 1


@pytest.mark.parametrize("why", ["quiet", "no warnings", "no terminal"])
def test_a_reason_goes_to_the_log_where_nobody_reads_stderr(monkeypatch, caplog, why):
    terminal = watch_terminal(monkeypatch)
    if why == "quiet":
        monkeypatch.setenv("NUMBA_ADAM_QUIET", "1")
    elif why == "no warnings":
        warnings.simplefilter("ignore")  # pytest takes it back after the test
    else:
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    told = threading.Event()
    caplog.handler.addFilter(lambda _: not told.set())
    with caplog.at_level(logging.INFO, logger="numba_adam"), Reason(lambda: "the reason", after_seconds=0.0):
        assert told.wait(DEADLINE)
    assert terminal.getvalue() == ""


def test_an_error_of_the_question_is_no_reason_and_the_next_answer_is(monkeypatch):
    terminal = watch_terminal(monkeypatch)
    answers = [OSError("not now"), "", "at last"]

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Reason(ask, after_seconds=0.0):
        assert terminal.is_written.wait(DEADLINE)
    assert terminal.getvalue() == "numba-adam: at last\n"
    assert answers == []


def test_a_short_call_asks_nothing():
    asked = threading.Event()
    with Reason(lambda: str(asked.set()), after_seconds=DEADLINE):
        pass
    assert not asked.is_set()
