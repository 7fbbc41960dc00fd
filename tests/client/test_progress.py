"""The progress line: only for long transfers, only on a terminal."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest

from numba_adam.client import progress
from numba_adam.client.progress import Reason, TerminalLine, reporter, silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_short_transfer_draws_nothing():
    stream, clock = io.StringIO(), Clock()
    line = TerminalLine("push", stream, clock)
    for done in (10, 20, 30):
        clock.now += 0.5
        line(done, 30)
    assert stream.getvalue() == ""


def test_a_long_transfer_draws_one_line_and_ends_it():
    stream, clock = io.StringIO(), Clock()
    line = TerminalLine("push of model 'm'", stream, clock)
    for done in range(1, 101):
        clock.now += 0.05
        line(done * 1_000_000, 100_000_000)
    text = stream.getvalue()
    assert text.startswith("\rpush of model 'm': ")
    assert text.endswith("100 of 100 MB (100 %), 20 MB/s \n")
    assert text.count("\r") < 40, "it is redrawn some ten times a second"


@pytest.mark.parametrize("setting", [None, False, True])
def test_without_a_terminal_nothing_is_drawn(setting, monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    assert reporter(setting, "push") is silent


def test_on_a_terminal_a_line_is_drawn(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    assert isinstance(reporter(True, "push"), TerminalLine)
    assert reporter(False, "push") is silent


def test_a_callable_gets_the_progress_of_pushes_and_pulls(server, connect):
    told: list[tuple[int, int]] = []
    client = connect(server.address, progress=lambda done, total: told.append((done, total)))
    params = {"w": np.ones(700_000, np.float32)}
    model = client.create_model("m", params)
    for call in (lambda: model.push(params), model.pull, lambda: model.push_pull(params)):
        told.clear()
        call()
        assert told[-1] == (2_800_000, 2_800_000)
        assert any(0 < done < 2_800_000 for done, _ in told)


def test_an_error_of_the_callable_ends_its_push_and_the_next_one_works(server, connect, caplog):
    calls = iter(range(100))

    def failing(done: int, total: int) -> None:
        if next(calls) == 1:  # the first chunk of the first push; creating the model was call 0
            raise ZeroDivisionError("in the progress callable")

    client = connect(server.address, progress=failing)
    params = {"w": np.ones(10, np.float32)}
    model = client.create_model("m", params)
    with pytest.raises(ZeroDivisionError, match="in the progress callable"):
        model.push(params)
    assert model.push(params).version == 1


def test_the_thread_that_asks_for_a_reason_ends_with_a_call_that_was_interrupted_before_it_began():
    asked = threading.Event()

    def ask() -> str:
        asked.set()
        return ""

    before = set(threading.enumerate())
    reason = Reason(ask, after_seconds=0.01)
    reason.__enter__()  # an interrupt comes here, and the end of `with` never does
    (thread,) = set(threading.enumerate()) - before
    assert asked.wait(800)
    del reason
    thread.join(800)
    assert not thread.is_alive()
