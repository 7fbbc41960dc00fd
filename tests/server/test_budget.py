"""The byte budget: transfers that fit, that must wait, and that can never fit."""

import pytest

from numba_adam.errors import BudgetExceededError, TransferTooLargeError
from numba_adam.ps.errors import to_status
from numba_adam.server.runtime.budget import SMALL_CHANGE_BYTES, SlotPool

GRAIN = 1 << 16


def test_slots_count_until_they_are_released():
    pool = SlotPool(10 * GRAIN)
    with pool.acquire(GRAIN + 1, "a push") as slot:
        assert slot.bytes.nbytes == GRAIN + 1
        assert pool.used_bytes == 2 * GRAIN
    assert pool.used_bytes == 2 * GRAIN  # kept, warm, for the next one
    with pool.acquire(GRAIN + 7, "a push") as slot:
        assert pool.used_bytes == 2 * GRAIN


def test_slots_in_use_do_not_overlap():
    pool = SlotPool(10 * GRAIN)
    with pool.acquire(GRAIN, "a push") as one, pool.acquire(GRAIN, "a push") as two:
        one.bytes[:] = 1
        two.bytes[:] = 2
        assert (one.bytes == 1).all()


def test_a_full_budget_refuses_with_a_time_to_retry():
    pool = SlotPool(2 * GRAIN)
    with pool.acquire(GRAIN, "a push"):
        with pytest.raises(BudgetExceededError, match="of 65537 bytes: 65536 of the server's 131072 bytes") as caught:
            pool.acquire(GRAIN + 1, "a push")
        assert not isinstance(caught.value, TransferTooLargeError)
        assert to_status(caught.value)[2].retry_after_milliseconds > 0
    pool.acquire(GRAIN + 1, "a push").release()


def test_free_slots_make_room_for_other_sizes():
    pool = SlotPool(4 * GRAIN)
    for grains in (1, 2, 1):
        pool.acquire(grains * GRAIN, "a push").release()
    with pool.acquire(4 * GRAIN, "a pull"):
        assert pool.used_bytes == 4 * GRAIN


def test_a_transfer_larger_than_the_budget_gets_its_own_error():
    with pytest.raises(TransferTooLargeError, match="whole memory budget is 131072 bytes") as caught:
        SlotPool(2 * GRAIN).acquire(2 * GRAIN + 1, "a pull")
    assert to_status(caught.value)[2].retry_after_milliseconds == 0


def test_models_count_until_they_are_released():
    pool = SlotPool(10 * GRAIN)
    pool.admit_model("m", 5 * GRAIN, GRAIN)
    assert pool.used_bytes == 5 * GRAIN
    pool.release_model("m")
    assert pool.used_bytes == 0


def test_a_model_that_could_not_be_pulled_is_refused():
    pool = SlotPool(10 * GRAIN)
    with pytest.raises(TransferTooLargeError, match="model 'm' needs"):
        pool.admit_model("m", 9 * GRAIN, 2 * GRAIN)
    pool.admit_model("m", 5 * GRAIN, 2 * GRAIN)
    with pytest.raises(BudgetExceededError, match="model 'n'"):
        pool.admit_model("n", 4 * GRAIN, GRAIN)
    pool.admit_model("n", 3 * GRAIN, GRAIN)
    pool.acquire(2 * GRAIN, "a pull").release()


def test_an_empty_transfer_takes_nothing():
    pool = SlotPool(GRAIN)
    with pool.acquire(GRAIN, "a push"), pool.acquire(0, "a push") as slot:
        assert slot.bytes.nbytes == 0


def test_an_optional_slot_takes_at_most_half_of_the_free_memory():
    pool = SlotPool(10 * GRAIN)
    pool.acquire(2 * GRAIN, "a push").release()  # kept, and makes room
    with pool.acquire(4 * GRAIN, "a push"):
        assert pool.spare(3 * GRAIN + 1) is None
        spared = pool.spare(3 * GRAIN)
        assert spared.bytes.nbytes == 3 * GRAIN
        with pool.acquire(3 * GRAIN, "a push"):
            assert pool.spare(1) is None


def test_discarded_memory_does_not_count():
    pool = SlotPool(4 * GRAIN)
    slot = pool.spare(2 * GRAIN)
    assert pool.used_bytes == 2 * GRAIN
    slot.discard()
    assert pool.used_bytes == 0
    slot.discard()  # twice takes nothing from others
    with pool.acquire(4 * GRAIN, "a push"):
        assert pool.used_bytes == 4 * GRAIN


def test_memory_without_arrays_counts_beyond_an_allowance():
    pool = SlotPool(10 * GRAIN)
    pool.admit_model("m", 2 * GRAIN, GRAIN)
    pool.keep("m", SMALL_CHANGE_BYTES, "a description")
    assert pool.used_bytes == 2 * GRAIN
    pool.keep("header", 3 * GRAIN, "a header")
    assert pool.used_bytes == 5 * GRAIN
    pool.keep("header", 0, "a header")
    pool.keep("m", SMALL_CHANGE_BYTES + GRAIN, "a description")
    assert pool.used_bytes == 3 * GRAIN
    pool.release_model("m")
    assert pool.used_bytes == 0


def test_memory_without_arrays_leaves_space_for_the_largest_transfer():
    pool = SlotPool(10 * GRAIN)
    pool.admit_model("m", 2 * GRAIN, 3 * GRAIN - 1)
    with pytest.raises(BudgetExceededError, match="sessions of") as caught:
        pool.keep("s", SMALL_CHANGE_BYTES + 5 * GRAIN + 1, "sessions")
    assert to_status(caught.value)[2].retry_after_milliseconds > 0
    assert not pool.reserve(5 * GRAIN + 1)
    assert pool.used_bytes == 2 * GRAIN
    pool.keep("s", SMALL_CHANGE_BYTES + 5 * GRAIN, "sessions")
    pool.acquire(3 * GRAIN - 1, "a pull").release()
    pool.keep("s", SMALL_CHANGE_BYTES + 6 * GRAIN, "sessions", must=True)  # it is there already
    assert pool.used_bytes == 8 * GRAIN  # the slot that was kept warm has made room
    with pytest.raises(TransferTooLargeError):
        pool.keep("header", SMALL_CHANGE_BYTES + 10 * GRAIN + 1, "a header")


def test_reserved_memory_counts_until_it_is_given_back():
    pool = SlotPool(4 * GRAIN)
    assert pool.reserve(3 * GRAIN)
    assert not pool.reserve(2 * GRAIN)
    pool.give_back(3 * GRAIN)
    assert pool.used_bytes == 0
