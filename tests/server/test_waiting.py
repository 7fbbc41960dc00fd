"""Calls that wait for a version: what wakes them, and their results."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from numba_adam.errors import ModelNotFoundError, RewoundError
from numba_adam.server.model.arena import Arena
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime.model import Model, Push
from numba_adam.settings.hyperparameters import Hyperparameters

DEADLINE = 60


@pytest.fixture
def model():
    spec = Spec("model", "float32", (Tensor("x", (4,)),), Hyperparameters())
    return Model(spec, "r", Arena([4], "float32"), PushLedger("s", 1))


@pytest.fixture
def waiting(model):
    """Starts a thread that waits for a version; returns its future once it waits."""
    over = []
    with ThreadPoolExecutor(1) as pool:

        def wait(min_version, is_over=lambda: False):
            looked = threading.Event()

            def has_ended():
                looked.set()  # from here on the model's lock is held until the thread waits
                return is_over()

            future = pool.submit(model.wait_for, "s", min_version, has_ended, None)
            assert looked.wait(DEADLINE)
            over.append(future)
            return future

        yield wait


def push(model, epoch, sequence):
    model.apply(Push(PushKey("s", "w", epoch, sequence), 0, (True,), Content(sequence, 1)), np.ones(4, np.float32))


def test_a_push_wakes_calls_that_wait_for_its_version(model, waiting):
    epoch = model.open_session("w").epoch
    waiter = waiting(2)
    push(model, epoch, 1)
    push(model, epoch, 2)
    assert waiter.result(DEADLINE) is True


def test_a_reached_version_is_returned_at_once(model):
    assert model.wait_for("s", 0, lambda: False, None) is True


def test_a_deletion_wakes_waiting_calls(model, waiting):
    waiter = waiting(1)
    model.apply_queue.call(model.mark_deleted)
    with pytest.raises(ModelNotFoundError, match="it was deleted"):
        waiter.result(DEADLINE)


def test_woken_calls_check_whether_they_were_cancelled(model, waiting):
    is_over = threading.Event()
    waiter = waiting(1, is_over.is_set)
    is_over.set()
    model.wake()
    assert waiter.result(DEADLINE) is False


def test_a_timeout_of_zero_does_not_wait(model):
    assert model.wait_for("s", 1, lambda: False, 0.0) is False


def test_a_version_of_another_state_is_refused_at_once(model):
    with pytest.raises(RewoundError):
        model.wait_for("another", 1, lambda: False, None)
