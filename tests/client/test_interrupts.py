"""Ctrl-C at any point of any call: the next calls work, and neither locks nor threads are left.

The interrupts come at random moments; the seed is printed by a failing test.
"""

from __future__ import annotations

import sys

import programs
import pytest

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")]

INTERRUPTED = """
random = np.random.default_rng(SEED)

def interrupted(call, seconds):
    "Begin a call and interrupt it after some time: before, during or after it, by chance."
    caught = threading.Event()
    def interrupt():
        while not caught.wait(seconds):  # repeat, because Python drops an exception in some places
            os.kill(os.getpid(), signal.SIGINT)
            if caught.wait(5):
                break
    interrupter = threading.Thread(target=interrupt)
    try:
        try:
            interrupter.start()
            call()
            threading.Event().wait()
        except ServiceError:  # for example, the interrupted call has already created the model
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    caught.set()
    interrupter.join()

def threads():
    "Return the names of all threads but the main one and one that waits for the main thread's next call."
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if "numba-adam call" in names:
        names.remove("numba-adam call")
    return names

def quiet():
    "Wait until the threads of abandoned calls have ended; the test's own timeout is the limit."
    while threads():
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                try:
                    thread.join(0.01)
                except RuntimeError:  # it is listed already, but does not run yet
                    pass
"""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("form", ["push", "push_pull", "push large", "push beside push_async"])
def test_the_push_after_an_interrupted_one_is_neither_blocked_nor_mistaken_for_it(server_process, form, seed):
    """Every acknowledged push is applied, and no version is acknowledged twice."""
    program = (
        f"SEED, FORM = {seed}, {form!r}"
        + INTERRUPTED
        + """
size = 1_000_000 if FORM == "push large" else 4
grads, zeros = {"w": np.ones(size, np.float32)}, {"w": np.zeros(size, np.float32)}
client = ParameterClient(address, "w0", timeout_seconds=800)
model = client.create_model("m", zeros)
versions = [model.push(grads).version]
if FORM == "push beside push_async":
    model.push_async(grads).result()
push = model.push_pull if FORM == "push_pull" else model.push
began = time.monotonic()
push(grads)
usual = time.monotonic() - began
for _ in range(25):
    interrupted(lambda: push(grads), random.uniform(0, 1.5 * usual))
    ack = model.push(grads)
    assert ack.applied and not ack.duplicate
    versions.append(ack.version)
    assert len(threading.enumerate()) < 10, threading.enumerate()
assert sorted(set(versions)) == versions, versions
model.pull(min_version=versions[-1])
client.close()
quiet()
assert threading.active_count() == 1, threading.enumerate()
"""
    )
    assert programs.run(program, server_process.address) == ""


@pytest.mark.parametrize("seed", range(2))
def test_other_calls_work_after_any_interrupted_call(server_process, seed):
    program = (
        f"SEED = {seed}"
        + INTERRUPTED
        + """
client = ParameterClient(address, "w0", timeout_seconds=800)
model = client.create_model("m", zeros)
model.push(grads)
names = iter(range(1000))
def opened():
    with ParameterClient(address, timeout_seconds=800) as other:
        other.open_model("m").push_async(grads)
calls = [
    lambda: model.pull(), lambda: model.pull(min_version=10**9), lambda: model.push_pull(grads), client.status,
    client.snapshot, client.list_models, lambda: client.open_model("m"), lambda: model.push_async(grads).result(),
    lambda: client.create_model(f"m{next(names)}", zeros), lambda: client.delete_model("m0"), opened,
    lambda: [model.push_async(grads) for _ in range(20)],
]
for number in range(4 * len(calls)):
    interrupted(calls[number % len(calls)], random.uniform(0, 0.02))
    for call in (lambda: model.push(grads), model.pull, client.status, lambda: model.push_async(grads).result()):
        call()
client.close()
quiet()
assert threading.active_count() == 1, threading.enumerate()
"""
    )
    assert programs.run(program, server_process.address) == ""


@pytest.mark.parametrize(
    "call", ["model.push(grads)", "model.push_pull(grads)", "model.pull(min_version=9)", "client.status()"]
)
def test_an_unanswered_call_can_be_interrupted_and_the_next_one_works(server_process, call):
    """The call may last for a day; the server is stopped until the interrupt."""
    program = (
        "SEED = 0"
        + INTERRUPTED
        + """
client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
model = client.create_model("m", zeros)
assert model.push(grads).version == 1
for _ in range(3):
    os.kill(int(sys.argv[2]), signal.SIGSTOP)
    interrupted(lambda: CALL, 0.05)
    quiet()
    os.kill(int(sys.argv[2]), signal.SIGCONT)
    ack = model.push(grads)
    assert ack.applied and not ack.duplicate
client.close()
""".replace("CALL", call)
    )
    assert programs.run(program, server_process.address, str(server_process.process_id)) == ""


def test_two_simultaneous_signals_interrupt_a_call(server_process):
    """The second one arrives while the first is handled. The server is stopped (SIGSTOP) meanwhile."""
    program = (
        "SEED = 0"
        + INTERRUPTED
        + """
client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
model = client.create_model("m", zeros)
assert model.push(grads).version == 1
heard = []
def handle(number, _):
    heard.append(number)
    raise KeyboardInterrupt
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, handle)
def modules():
    "Yield the modules of the main thread's frames."
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame:
        yield frame.f_globals["__name__"]
        frame = frame.f_back
def interrupt():
    while "numba_adam.client.transport.shield" not in modules():
        pass  # the main thread has not begun its call
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)
for count in range(1, 6):
    os.kill(int(sys.argv[2]), signal.SIGSTOP)
    interrupter = threading.Thread(target=interrupt)
    try:
        try:
            interrupter.start()
            model.push(grads)
        except KeyboardInterrupt:
            while len(heard) < 2 * count:
                interrupter.join(0.01)
    except KeyboardInterrupt:
        pass
    interrupter.join()
    assert len(heard) == 2 * count
    quiet()
    os.kill(int(sys.argv[2]), signal.SIGCONT)
    ack = model.push(grads)
    assert ack.applied and not ack.duplicate
client.close()
"""
    )
    assert programs.run(program, server_process.address, str(server_process.process_id)) == ""


def test_a_call_between_two_tries_can_be_interrupted(server_process):
    program = (
        "SEED = 0"
        + INTERRUPTED
        + """
away = ParameterClient("127.0.0.1:1", timeout_seconds=FOR_EVER)
for _ in range(5):
    interrupted(away.status, 0.05)
away.close()
quiet()
assert threading.active_count() == 1, threading.enumerate()
"""
    )
    assert programs.run(program, server_process.address) == ""


def test_an_interrupt_does_not_affect_another_threads_calls(server_process):
    """An interrupt closes the connection; other calls are sent again, and applied once."""
    program = (
        "SEED = 0"
        + INTERRUPTED
        + """
size = 1_000_000
grads, zeros = {"w": np.ones(size, np.float32)}, {"w": np.zeros(size, np.float32)}
client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
model = client.create_model("m", zeros)
versions, done = [], threading.Event()
def push_on():
    while not done.is_set():
        versions.append(model.push_async(grads).result().version)
pusher = threading.Thread(target=push_on)
pusher.start()
for _ in range(15):
    interrupted(lambda: model.pull(min_version=10**9), random.uniform(0, 0.1))
done.set()
pusher.join()
assert versions == sorted(set(versions)), versions
assert client.status().models[0].pushes_applied == len(versions)
client.close()
"""
    )
    assert programs.run(program, server_process.address) == ""


def test_a_signal_handler_that_does_not_raise_interrupts_nothing(server_process):
    program = """
client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
model = client.create_model("m", zeros)
heard, done, answered = [], threading.Event(), threading.Semaphore(0)
def handle(*_):
    heard.append(client.status().models[0].model.version)  # a call in a call
    answered.release()
signal.signal(signal.SIGUSR1, handle)
def ring():
    while not done.is_set():
        os.kill(os.getpid(), signal.SIGUSR1)
        answered.acquire()
ringer = threading.Thread(target=ring)
ringer.start()
assert [model.push(grads).version for _ in range(200)] == list(range(1, 201))
done.set()
ringer.join()
assert heard and heard == sorted(heard)
client.close()
"""
    assert programs.run(program, server_process.address) == ""
