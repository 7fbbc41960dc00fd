"""Any number of Python threads, with every threading layer and in forked children: no abort, no hang, the same bits."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest

import numba_adam as na
from numba_adam.cpu.kernels import threads as own

SIZE = 100_000  # on all threads
STEPS = 6

COMMON = f"""
import os, sys, threading
import numba, numpy as np
import numba_adam as na

def make(seed, size={SIZE}):
    rng = np.random.default_rng(seed)
    return na.Adam([rng.normal(size=size).astype("f4")]), rng.normal(size=({STEPS}, size)).astype("f4")

def bits(optimizer):
    state = optimizer.state[0]
    return optimizer.param_groups[0]["params"][0].tobytes() + state["exp_avg"].tobytes() + state["exp_avg_sq"].tobytes()

def alone(seed, size={SIZE}):
    optimizer, grads = make(seed, size)
    for grad in grads:
        optimizer.step([grad])
    return bits(optimizer)

def child(work):
    "Run work in a forked child and return its exit status."
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

# Eight threads, each with its own optimizer, begin together; then eight threads share one.
CROWD = (
    COMMON
    + """
expected = [alone(seed) for seed in range(8)]
begin, failures = threading.Barrier(8), []

def train(seed):
    try:
        optimizer, grads = make(seed)
        begin.wait()
        for grad in grads:
            optimizer.step([grad])
        assert bits(optimizer) == expected[seed], seed
    except BaseException as error:
        failures.append(repr(error))

crowd = [threading.Thread(target=train, args=(seed,)) for seed in range(8)]
for thread in crowd: thread.start()
for thread in crowd: thread.join()
assert not failures, failures

optimizer, grads = make(3)

def share():
    try:
        begin.wait()
        for _ in range(5):
            optimizer.step([grads[0]])
    except BaseException as error:
        failures.append(repr(error))

crowd = [threading.Thread(target=share) for _ in range(8)]
for thread in crowd: thread.start()
for thread in crowd: thread.join()
assert not failures, failures
twin, _ = make(3)
for _ in range(40):
    twin.step([grads[0]])
assert bits(optimizer) == bits(twin)
assert optimizer.state[0]["step"] == 40
from numba_adam.cpu.kernels.threads import threading_layer
print(threading_layer())
"""
)


# pip puts TBB where the loader does not look by itself.
TBB_FOLDER = Path(sys.prefix) / "lib"
HAS_TBB = any(TBB_FOLDER.glob("libtbb.so.*"))
LAYERS = [
    "omp",
    "workqueue",
    pytest.param("tbb", marks=pytest.mark.skipif(not HAS_TBB, reason="TBB comes for Linux on x86-64 only")),
]


def using(layer: str, thread_count: int) -> dict[str, str]:
    """Return the environment of a process that uses a threading layer."""
    return {
        "NUMBA_THREADING_LAYER": layer,
        "NUMBA_NUM_THREADS": str(thread_count),
        "LD_LIBRARY_PATH": str(TBB_FOLDER),
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_several_threads_can_step_at_the_same_time(run_python, layer):
    assert run_python(CROWD, **using(layer, 4)) == layer


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that signal")
def test_a_signal_handler_can_step_during_a_step(run_python):
    """The handler can run between any two bytecodes, even while the launch lock is held."""
    program = (
        COMMON
        + """
import signal
outer, grads = make(0)
inner, _ = make(1)
handled = 0

def handler(*_):
    global handled
    handled += 1
    inner.step([grads[0]])
    if handled < 500:
        signal.setitimer(signal.ITIMER_REAL, 2e-4)  # not before: a busy machine would run handlers within handlers

outer.step([grads[0]])
inner.step([grads[0]])
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 2e-4)
while handled < 500:
    outer.step([grads[0]])
for optimizer, seed in ((outer, 0), (inner, 1)):
    twin, _ = make(seed)
    for _ in range(optimizer.state[0]["step"]):
        twin.step([grads[0]])
    assert bits(optimizer) == bits(twin)
assert inner.state[0]["step"] == 1 + handled
print("done")
"""
    )
    assert run_python(program, NUMBA_NUM_THREADS="2") == "done"


def test_threads_can_mix_the_function_and_the_class():
    begin, failures = threading.Barrier(4), []

    def train(kind, seed):
        rng = np.random.default_rng(seed)
        param, grad = rng.normal(size=(2, SIZE)).astype("f4")
        expected = param.copy()
        moments = np.zeros((4, SIZE), "f4")
        begin.wait()
        optimizer = na.Adam([param])
        for step in range(1, STEPS + 1):
            optimizer.step([grad])
            na.adam_update(expected, grad, *moments[:2], step)
        if param.tobytes() != expected.tobytes():
            failures.append((kind, seed))

    crowd = [threading.Thread(target=train, args=("mixed", seed)) for seed in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert failures == []


@pytest.fixture
def _threads_as_they_were():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.mark.usefixtures("_threads_as_they_were")
def test_a_small_update_takes_one_thread_and_set_num_threads_is_obeyed():
    most = numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(most)
    assert own.tasks_for(0) == own.tasks_for(1) == own.tasks_for(2 * own.ELEMENTS_PER_TASK - 1) == 1
    assert own.tasks_for(2 * own.ELEMENTS_PER_TASK) == min(2, most)
    assert own.tasks_for(10**9) == own.thread_count() == most
    numba.set_num_threads(1)
    assert own.tasks_for(10**9) == own.thread_count() == 1


def test_a_large_update_has_equally_many_shares_for_each_thread():
    threads = own.thread_count()
    assert own.shares_for(2 * own.ELEMENTS_PER_TASK - 1) == 1
    assert own.shares_for(4 * own.ELEMENTS_PER_TASK) == own.tasks_for(4 * own.ELEMENTS_PER_TASK)
    if threads > 1:
        assert own.shares_for(2 * threads * own.ELEMENTS_PER_SHARE) == 2 * threads
        assert own.shares_for(7 * threads * own.ELEMENTS_PER_SHARE - 1) == 6 * threads


@numba.njit(error_model="numpy", nogil=True)
def _count_calls(packed, like, extra, count, task, tasks):
    extra[task] += count


@pytest.mark.parametrize("tasks", [2, 3, 4, 5, 7, 64, 1001])
def test_every_share_is_computed_once_whichever_thread_takes_it(tasks):
    calls = np.zeros(tasks + 1, np.int64)
    for launches in range(1, 6):
        own.launch(_count_calls, tasks, np.zeros((1, 2), np.uint64), np.zeros((1, 1)), calls, 3)
        assert (calls == 3 * launches).all()


def test_set_num_threads_applies_to_its_own_thread(run_python):
    program = (
        COMMON
        + """
expected = alone(0)
numba.set_num_threads(1)
from numba_adam.cpu.kernels import threads
found = []
thread = threading.Thread(target=lambda: found.append((threads.thread_count(), alone(0) == expected)))
thread.start(); thread.join()
assert alone(0) == expected
assert numba.get_num_threads() == 1
print(threads.thread_count(), *found[0])
"""
    )
    assert run_python(program, NUMBA_NUM_THREADS="3") == "1 3 True"


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
DEPRECATED = sys.version_info >= (3, 12)  # os.fork warns there when threads exist, which is what is tested here


def without_fork_warnings(program):
    return ("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" if DEPRECATED else "") + program


@needs_fork
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("first", ["our launch", "a kernel of the user's own"])
def test_a_forked_child_steps_with_the_right_bits(run_python, layer, first):
    """Before and after the parent has threads, and in the child's own child."""
    program = (
        COMMON
        + """
@numba.njit(parallel=True)
def total(x):
    result = 0.0
    for i in numba.prange(x.size):
        result += x[i]
    return result

def work():
    optimizer, grads = make(0)
    for grad in grads:
        optimizer.step([grad])
    return bits(optimizer)

assert child(lambda: len(work()) == 12 * SIZE) == 0

if sys.argv[1] == "our launch":
    alone(1)
else:
    assert total(np.ones(1000)) == 1000
optimizer, grads = make(0)
def go_on():
    for grad in grads:
        optimizer.step([grad])
    return bits(optimizer) == alone(0)
assert child(go_on) == 0
assert child(lambda: child(go_on) == 0) == 0
assert optimizer.state == {}
assert go_on()
print("done")
""".replace("SIZE", str(SIZE))
    )
    program = without_fork_warnings(program)
    assert run_python(program, first, **using(layer, 2)) == "done"


@needs_fork
@pytest.mark.parametrize("stepped", ["the same optimizer", "another optimizer", "one of a size of its own"])
def test_a_child_forked_in_the_middle_of_a_step_does_not_hang(run_python, stepped):
    """Another thread steps continuously. In every child, locks must be free and states complete."""
    program = (
        COMMON
        + """
def make_level(size):
    return na.Adam([np.zeros(size, "f4")]), np.ones(size, "f4")

busy, other, small = make_level(400_000), make_level(400_000), make_level(100)
optimizer, grad = {"the same optimizer": busy, "another optimizer": other}.get(sys.argv[1], small)
optimizer.step([grad])
stop, begun = threading.Event(), threading.Event()

def step_for_ever():
    while not stop.is_set():
        busy[0].step([busy[1]])
        begun.set()

def is_whole(optimizer):
    "All elements began alike and had the same gradients: in a whole state they are all alike."
    state = optimizer.state[0]
    arrays = optimizer.param_groups[0]["params"][0], state["exp_avg"], state["exp_avg_sq"]
    return all((array == array[0]).all() for array in arrays)

def work():
    before = int(optimizer.state[0]["step"])
    whole = is_whole(optimizer) and is_whole(busy[0])
    optimizer.step([grad])
    return whole and is_whole(optimizer) and optimizer.state[0]["step"] == before + 1

thread = threading.Thread(target=step_for_ever)
thread.start()
begun.wait()
statuses = [child(work) for _ in range(20)]
stop.set()
thread.join()
assert statuses == [0] * 20, statuses
assert work()
print("done")
"""
    )
    assert run_python(without_fork_warnings(program), stepped, NUMBA_NUM_THREADS="2") == "done"


@needs_fork
def test_threads_can_fork_while_optimizers_are_made(run_python):
    program = (
        COMMON
        + """
alone(0)
failures = []
begin = threading.Barrier(4)

def fork_often():
    begin.wait()
    for _ in range(15):
        status = child(lambda: alone(5, 100) == expected)
        if status:
            failures.append(status)

def make_often():
    begin.wait()
    for _ in range(400):
        na.Adam([np.zeros(3)]).step([np.ones(3)])

expected = alone(5, 100)
crowd = [threading.Thread(target=work) for work in (fork_often, fork_often, make_often, make_often)]
sys.unraisablehook = lambda error: failures.append(repr(error.exc_value))
for thread in crowd: thread.start()
for thread in crowd: thread.join()
assert not failures, failures
print("done")
"""
    )
    assert run_python(without_fork_warnings(program), NUMBA_NUM_THREADS="2") == "done"
