"""The launcher: one thread for all launches, jobs in turns slice by slice, its own number of threads, and its end."""

import argparse
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from numba_adam.errors import ServerUnavailableError
from numba_adam.server.config import add_arguments
from numba_adam.server.runtime.launcher import Launcher

DEADLINE = 60


@pytest.fixture
def launcher():
    running = Launcher(1)
    yield running
    running.stop()


def wait_until(condition):
    """Wait until something is so; the test's timeout is its limit."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def noting(log, name, count):
    """Yield so many times, and note each."""
    for number in range(count):
        log.append((name, number))
        yield


def test_slices_run_in_order_on_a_thread_of_its_own(launcher):
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


def test_its_number_of_threads_is_its_own(launcher):
    found = []

    def job():
        found.append(numba.get_num_threads())
        yield

    launcher.run(job())
    assert found == [1] == [launcher.threads]


@pytest.mark.parametrize("asked", [0, 99_999])
def test_it_takes_no_more_threads_than_numba_has(asked):
    assert Launcher(asked).threads == numba.config.NUMBA_NUM_THREADS


def test_an_error_in_a_slice_comes_back_and_other_jobs_go_on(launcher):
    def wrong():
        yield
        raise ZeroDivisionError

    log = []
    with pytest.raises(ZeroDivisionError):
        launcher.run(wrong())
    assert launcher.is_idle
    launcher.run(noting(log, "next", 1))
    assert log == [("next", 0)]


def test_an_error_does_not_keep_a_gradients_memory(launcher):
    """Without the garbage collector's help."""
    gradient = np.zeros(10)
    alive = weakref.ref(gradient)

    def wrong(_):
        raise ZeroDivisionError
        yield

    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            launcher.run(wrong(gradient))
        launcher.run(iter(()))
        del gradient
        assert alive() is None
    finally:
        gc.enable()


def test_a_launcher_that_was_never_used_ends_too():
    launcher = Launcher(1)
    launcher.stop()
    launcher.stop()
    with pytest.raises(ServerUnavailableError, match="stopping"):
        launcher.run(iter(()))


def test_a_job_that_was_begun_is_finished_before_the_end():
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


def test_more_threads_than_there_are_are_said_at_the_start_and_in_the_help(tmp_path, processes):
    here = numba.config.NUMBA_NUM_THREADS
    log = processes(tmp_path / "many", threads=here + 97).log.read_text()
    assert f"threads={here + 97}: large updates run on {here}, which are all that Numba has here" in log
    assert "threads=" not in processes(tmp_path / "few", threads=here).log.read_text()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert "A larger number takes no more than these" in " ".join(parser.format_help().split())
