"""The launcher: one thread for all launches, jobs take turns by slices, its number of threads, and its stop."""

import argparse
import gc
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from numba_adam.errors import ServerUnavailableError
from numba_adam.server.config import add_arguments
from numba_adam.server.runtime import launcher as launching
from numba_adam.server.runtime.launcher import Launcher

DEADLINE = 60


@pytest.fixture
def launcher():
    running = Launcher(1)
    yield running
    running.stop()


class Clocked:
    """A launcher with all threads, and its test clock."""

    def __init__(self):
        self.seconds = 0.0
        self.launcher = Launcher(0, lambda: self.seconds)

    def pass_time(self):
        """Advance the clock until small calls no longer count."""
        self.seconds += 1.0

    def found(self, look, before=()):
        """Return the number of threads in each of several slices.

        Args:
            look: called in each slice.
            before: called before each slice but the first, in order.
        """
        found = []

        def job():
            for act in (lambda: None, *before):
                act()
                found.append(look())
                yield

        self.launcher.run(job())
        return found


@pytest.fixture
def clocked():
    made = Clocked()
    yield made
    made.launcher.stop()


def priority():
    """Return the niceness of this thread, or of the process on systems without thread priorities."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def wait_until(condition):
    """Wait until a condition holds; the test's timeout is the limit."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def noting(log, name, count):
    """Yield this number of times, and record each."""
    for number in range(count):
        log.append((name, number))
        yield


def test_slices_run_in_order_on_the_launchers_thread(launcher):
    seen = []

    def job():
        for number in range(3):
            seen.append((number, threading.get_ident()))
            yield

    launcher.run(job())
    launcher.run(job())
    assert [number for number, _ in seen] == [0, 1, 2] * 2
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] != threading.get_ident()


def test_jobs_take_turns_after_each_slice(launcher):
    log, begun, go_on = [], threading.Event(), threading.Event()

    def first():
        begun.set()
        assert go_on.wait(DEADLINE)
        yield from noting(log, "first", 3)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(launcher.run, first())]
        assert begun.wait(DEADLINE)
        assert not launcher.is_idle
        for number, name in enumerate(("second", "third"), 2):
            jobs.append(pool.submit(launcher.run, noting(log, name, 3)))
            wait_until(lambda: launcher._jobs == number)  # noqa: B023
        go_on.set()
        for job in jobs:
            job.result(DEADLINE)
    assert log == [(name, number) for number in range(3) for name in ("first", "second", "third")]
    assert launcher.is_idle


def test_the_launcher_has_its_own_number_of_threads(launcher):
    found = []

    def job():
        found.append(numba.get_num_threads())
        yield

    launcher.run(job())
    assert found == [1] == [launcher.threads]


@pytest.mark.parametrize("asked", [0, 99_999])
def test_the_launcher_uses_no_more_threads_than_numba_has(asked):
    assert Launcher(asked).threads == numba.config.NUMBA_NUM_THREADS


def test_an_error_in_a_slice_goes_to_its_caller_and_other_jobs_continue(launcher):
    def wrong():
        yield
        raise ZeroDivisionError

    log = []
    with pytest.raises(ZeroDivisionError):
        launcher.run(wrong())
    assert launcher.is_idle
    launcher.run(noting(log, "next", 1))
    assert log == [("next", 0)]


@pytest.mark.parametrize("small_calls", [False, True])
def test_an_error_does_not_keep_a_gradient_alive(clocked, small_calls):
    """Without the garbage collector."""
    gradient = np.zeros(10)
    alive = weakref.ref(gradient)
    if small_calls:
        clocked.launcher.note_small_call()

    def wrong(_):
        raise ZeroDivisionError
        yield

    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            clocked.launcher.run(wrong(gradient))
        clocked.launcher.run(iter(()))
        del gradient
        assert alive() is None
    finally:
        gc.enable()


def test_a_launcher_that_was_never_used_stops():
    launcher = Launcher(1)
    launcher.stop()
    launcher.stop()
    with pytest.raises(ServerUnavailableError, match="stopping"):
        launcher.run(iter(()))


def test_stop_waits_for_a_job_that_has_begun():
    launcher, log, begun, go_on = Launcher(1), [], threading.Event(), threading.Event()

    def job():
        begun.set()
        assert go_on.wait(DEADLINE)
        yield from noting(log, "job", 5)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(launcher.run, job())]
        assert begun.wait(DEADLINE)
        jobs.append(pool.submit(launcher.run, noting(log, "other", 5)))
        wait_until(lambda: launcher._jobs == 2)
        end = pool.submit(launcher.stop)
        wait_until(lambda: launcher._is_stopped)
        go_on.set()
        for each in (*jobs, end):
            each.result(DEADLINE)
    assert sorted(log) == [(name, number) for name in ("job", "other") for number in range(5)]
    with pytest.raises(ServerUnavailableError, match="stopping"):
        launcher.run(iter(()))
    assert launcher.is_idle


def test_the_log_and_the_help_say_when_too_many_threads_are_set(tmp_path, processes):
    here = numba.config.NUMBA_NUM_THREADS
    log = processes(tmp_path / "many", threads=here + 97).log.read_text()
    assert f"threads={here + 97}: Numba has only {here} threads here" in log
    assert "threads=" not in processes(tmp_path / "few", threads=here).log.read_text()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert "A larger number means all too" in " ".join(parser.format_help().split())


def test_slices_leave_a_processor_free_while_small_calls_arrive(clocked):
    everything, fewer = clocked.launcher.threads, clocked.launcher.fewer_threads
    assert fewer == max(1, min(everything, numba.config.NUMBA_DEFAULT_NUM_THREADS - 1))
    assert clocked.found(numba.get_num_threads) == [everything]
    clocked.launcher.note_small_call()
    assert clocked.found(numba.get_num_threads, [lambda: None]) == [fewer, fewer]
    clocked.pass_time()
    assert clocked.found(numba.get_num_threads, [lambda: None]) == [everything, everything]


def test_a_small_call_during_a_large_update_counts_from_the_next_slice(clocked):
    steps = [clocked.launcher.note_small_call, lambda: None, clocked.pass_time, lambda: None]
    main, *threads = clocked.found(threading.get_ident, steps)  # what a slice does counts for the one after it
    assert threads[0] == main == threads[3]
    assert threads[1] == threads[2] != main


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no priorities of threads")
def test_slices_have_a_lower_priority_only_while_small_calls_arrive(clocked):
    usual = priority()
    assert clocked.found(priority) == [usual]
    clocked.launcher.note_small_call()
    assert clocked.found(priority) == [min(usual + 5, 19)]
    clocked.pass_time()
    assert clocked.found(priority) == [usual]
    assert priority() == usual


def test_no_priority_is_set_on_systems_without_thread_priorities(clocked, monkeypatch):
    usual = priority()
    monkeypatch.setattr(launching, "_HAS_THREAD_PRIORITIES", False)
    clocked.launcher.note_small_call()
    assert clocked.found(priority) == [usual]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no priorities of threads")
def test_a_sandbox_that_forbids_priorities_does_not_stop_updates(clocked, monkeypatch):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise PermissionError

    monkeypatch.setattr(launching.os, "setpriority", refuse)
    clocked.launcher.note_small_call()
    assert clocked.found(numba.get_num_threads, [lambda: None]) == [clocked.launcher.fewer_threads] * 2
    assert len(asked) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_an_error_in_a_background_slice_goes_to_its_caller(clocked, error):
    clocked.launcher.note_small_call()

    def fail():
        raise error

    with pytest.raises(error):
        clocked.found(threading.get_ident, [fail])
    assert clocked.launcher.is_idle
    assert len(clocked.found(threading.get_ident, [lambda: None])) == 2


def test_slices_continue_on_the_same_thread_while_the_interpreter_exits(clocked):
    """Executors then accept no more work, as after a shutdown."""
    main, _ = clocked.found(threading.get_ident, [clocked.launcher._background.shutdown])
    clocked.launcher.note_small_call()
    assert clocked.found(threading.get_ident, [lambda: None]) == [main, main]
