"""Pull copies: one version, shared while it is the newest, and released by the last user."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from numba_adam.errors import ServerUnavailableError
from numba_adam.server.model.arena import Arena
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime.budget import SlotPool
from numba_adam.server.runtime.model import Model, Push
from numba_adam.server.runtime.pull_copy import PullCopies
from numba_adam.settings.hyperparameters import Hyperparameters

DEADLINE = 60
SIZE = 1 << 14  # elements: 64 KiB, one grain of the pool


@pytest.fixture
def pool():
    return SlotPool(1 << 24)


@pytest.fixture
def pull_copies(pool):
    return PullCopies(pool)


@pytest.fixture
def model():
    spec = Spec("model", "float32", (Tensor("x", (SIZE,)),), Hyperparameters(lr=0.1))
    made = Model(spec, "r", Arena([SIZE], "float32"), PushLedger("s", 1))
    made.arena.param[:] = 7
    return made


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as made:
        yield made


def push(model):
    """Make one step."""
    epoch = model.open_session("w").epoch
    outcome = model.apply(
        Push(PushKey("s", "w", epoch, 1), model.version, (True,), Content(1, 1)), np.ones(SIZE, np.float32)
    )
    assert outcome.answer.version == model.version


def values(pull_copy):
    """Return the one value that all elements of a pull copy have."""
    (value,) = set(pull_copy.bytes.view(np.float32).tolist())
    return value


def test_a_copy_is_shared_and_its_last_user_releases_the_memory(pull_copies, model, pool):
    first, second, third = pull_copies.take(model), pull_copies.take(model), pull_copies.take(model)
    assert first is second is third
    assert pool.used_bytes == 4 * SIZE
    for pull_copy in (first, second):
        pull_copies.release(pull_copy)
        with pool.acquire(4 * SIZE, "another transfer") as slot:  # it must not get the memory that is being sent
            slot.bytes[:] = 255
            assert values(third) == 7.0
    pull_copies.release(third)
    pool.acquire(4 * SIZE, "another transfer").release()
    assert pool.used_bytes <= 2 * 4 * SIZE


def test_a_new_version_gets_a_new_copy_and_the_old_one_does_not_change(pull_copies, model):
    older = pull_copies.take(model)
    push(model)
    newer = pull_copies.take(model)
    assert (older.state.version, newer.state.version) == (0, 1)
    assert values(older) == 7.0
    assert values(newer) == model.arena.param[0] != 7.0


def test_releasing_an_older_copy_keeps_the_newer_one_shared(pull_copies, model):
    older = pull_copies.take(model)
    push(model)
    newer = pull_copies.take(model)
    pull_copies.release(older)
    assert pull_copies.take(model) is newer


def test_a_copy_waits_for_updates_and_later_callers_share_it(pull_copies, model, threads, pool):
    begun, over = threading.Event(), threading.Event()

    def change():
        begun.set()
        assert over.wait(DEADLINE)
        push(model)

    changing = threads.submit(model.apply_queue.call, change)
    assert begun.wait(DEADLINE)
    takers = [threads.submit(pull_copies.take, model) for _ in range(2)]
    while model.apply_queue.waiting == 0 or pool.used_bytes == 0:  # the test's timeout is its limit
        assert not any(taker.done() for taker in takers)
    over.set()
    changing.result(DEADLINE)
    first, second = (taker.result(DEADLINE) for taker in takers)
    assert first is second
    assert first.state.version == 1
    assert pool.used_bytes == 4 * SIZE


def test_a_failed_pull_copy_releases_its_memory(pull_copies, model, pool):
    model.apply_queue.stop()
    with pytest.raises(ServerUnavailableError):
        pull_copies.take(model)
    with pool.acquire(pool.budget_bytes, "all of it"):
        assert pool.used_bytes == pool.budget_bytes
