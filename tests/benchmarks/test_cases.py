"""Runs real cases in their own processes, with small arrays. No timing is asserted."""

import numpy as np
import pytest

from benchmarks import worker
from benchmarks.case import MissingError, Settings
from benchmarks.contestants.contestant import DisagreementError, check_agreement, check_direction, load, missing
from benchmarks.contestants.memory_loop import MemoryLoop
from benchmarks.contestants.on_rows import SETS, OurRows, TableWorkload
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.plain_numpy import PlainNumpy
from benchmarks.contestants.plain_read import PlainRead
from benchmarks.contestants.rows_loop import RowsLoop
from benchmarks.themes.memory import growth_of_a_step
from benchmarks.workload import Array, Workload, equal_arrays, one_array

TINY = Settings(seconds=0.0, fewest_pairs=2, largest_elements=1000)


def steps(contestant: Ours | PlainNumpy, count: int) -> None:
    for _ in range(count):
        contestant.step()


@pytest.mark.parametrize("workload", [one_array(1000), equal_arrays(count=3, elements=70)])
def test_contestants_with_the_same_work_agree(workload: Workload) -> None:
    ours, peer = Ours(workload, threads=2), PlainNumpy(workload, threads=2)
    steps(ours, 20)
    steps(peer, 20)
    check_agreement(ours, peer, workload)
    assert all(np.any(one != before) for one, before in zip(ours.params(), workload.params(), strict=True))


def test_contestants_with_different_work_are_detected() -> None:
    workload = one_array(1000)
    ours, peer = Ours(workload, threads=2), PlainNumpy(workload, threads=2)
    steps(ours, 20)
    steps(peer, 19)
    with pytest.raises(DisagreementError, match="differed"):
        check_agreement(ours, peer, workload)


def test_variants_with_different_results_are_detected() -> None:
    (way,) = one_array(1000).grads()
    noise = one_array(1000).params()[0] * np.float32(0.002)
    check_direction([way], [3 * way + noise], least=0.9)
    for other in (-way, np.abs(way), np.zeros_like(way), way * np.float32(np.nan)):
        with pytest.raises(DisagreementError, match="cosine"):
            check_direction([way], [other], least=0.9)


def test_the_memory_loop_changes_nothing() -> None:
    ours = Ours(one_array(1003), threads=2)
    ours.step()
    arrays: list[Array] = [*ours.params(), *ours.grads(), *ours.moments()]
    before = [array.copy() for array in arrays]
    MemoryLoop(ours, threads=2).step()
    for array, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_the_loop_over_rows_changes_nothing() -> None:
    workload = TableWorkload(rows=500, width=16, touched=40)
    ours = OurRows(workload)
    ours.step()
    before = [array.copy() for array in ours.table()]
    loop = RowsLoop(ours.table(), workload.sets(), workload.grads(), threads=2)
    for _ in range(SETS):
        loop.step()
    for array, was in zip(ours.table(), before, strict=True):
        np.testing.assert_array_equal(array, was)


def test_the_plain_read_reads_every_element() -> None:
    bits = np.zeros(1003, np.int32)
    for place in (0, 501, 1002):
        bits[place] = 1 << (place % 7)
    read = PlainRead(bits.view(np.float32), threads=2)
    read.step()
    assert int(np.bitwise_or.reduce(read.results)) == int(np.bitwise_or.reduce(bits))


def test_the_memory_of_a_step_is_measured() -> None:
    workload = one_array(4_000_000)
    assert growth_of_a_step(PlainNumpy(workload, threads=2)) >= 4 * workload.elements


def test_a_library_that_is_not_installed_is_reported_as_missing() -> None:
    with pytest.raises(MissingError, match="no_such_library is not installed"):
        load("no_such_library")


def test_reasons_contain_no_private_paths() -> None:
    reason = str(missing("peer", OSError("cannot open /home/somebody/lib/peer.so: no such file\nsecond line")))
    assert reason == "peer does not run here: OSError: cannot open .../peer.so: no such file"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "flat/100k/numpy",
        "flat/50m/loop",
        "norm/50m/read",
        "rows/loop",
        "scaling/float32/one-thread",
        "scaling/loop",
        "curves/all-threads",
        "denormals/float32/ordinary",
        "rows/dense",
        "rows/exact",
        "start/second-step",
        "service/push",
        "beside/snapshot/p99",
        "beside/update/p99",
        "beside/own-snapshot/p99",
        "same_host/push-100kb",
    ],
)
def test_a_case_runs_in_its_own_process(name: str) -> None:
    answer = worker.run(name, TINY)
    assert answer.keys() == {"pairs", "notes", "curves"}, answer
    assert len(answer["pairs"]) >= 2


def test_a_failed_case_is_reported() -> None:
    answer = worker.run("no/such/case", TINY)
    assert "no/such/case" in answer["failed"]


def test_all_contestants_get_the_same_number_of_threads() -> None:
    environment = worker.environment(threads=3)
    assert {environment[name] for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "NPROC")} == {"3"}
