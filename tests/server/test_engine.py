"""The engine: one thread, in order, and an end that loses nothing."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from numba_adam.errors import ServerUnavailableError
from numba_adam.server.engine import Engine


@pytest.fixture
def engine():
    running = Engine(1)
    yield running
    running.stop()


def test_everything_runs_on_one_thread(engine):
    seen = []

    def note(number):
        seen.append((number, threading.current_thread().name))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: engine.call(note, number), range(50)))
    assert len({name for _, name in seen}) == 1
    assert sorted(number for number, _ in seen) == list(range(50))


def test_its_number_of_threads_is_its_own(engine):
    assert engine.call(numba.get_num_threads) == 1


def test_an_error_comes_back_to_whoever_asked_and_the_engine_lives_on(engine):
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0)
    assert engine.call(lambda: 7) == 7


def test_an_error_does_not_keep_a_gradients_memory(engine):
    """Without the garbage collector's help: a rejected push must give its slot's memory back at once."""
    gradient = np.zeros(10)
    alive = weakref.ref(gradient)

    def fail(_):
        raise ValueError("no")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="no"):
            engine.call(fail, gradient)
        engine.call(lambda: None)
        del gradient
        assert alive() is None
    finally:
        gc.enable()


def test_after_the_end_it_says_that_the_server_is_stopping():
    engine = Engine(0)
    assert engine.call(lambda: 1) == 1
    engine.stop()
    with pytest.raises(ServerUnavailableError, match="stopping"):
        engine.call(lambda: 1)
