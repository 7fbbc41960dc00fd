"""The interpreter exits at once during any call, without waiting for threads that no longer run.

The clients of these programs would wait for more than a day: a program that does not exit is a failure.
"""

from __future__ import annotations

import signal
import sys

import programs
import pytest

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")]

MODEL = """
client = ParameterClient(address, "w0", timeout_seconds=FOR_EVER)
model = client.create_model("m", zeros)
"""
STOPPED = """
os.kill(int(sys.argv[2]), signal.SIGSTOP)  # the server answers nothing any more
"""
LARGE = """
size = 4_000_000
grads, zeros = {"w": np.ones(size, np.float32)}, {"w": np.zeros(size, np.float32)}
"""
BEGUN = """
begun = threading.Event()
client._connection.report = lambda what: lambda so_far, total: begun.set()
"""
IN_A_THREAD = """
def in_a_thread(call):
    def work():
        begun.set()
        try:
            call()
        except ServiceError:
            pass
    begun = threading.Event()
    threading.Thread(target=work, daemon=True).start()
    begun.wait()
"""

WAYS = {
    "a pause between tries, given up": """
try:
    ParameterClient("127.0.0.1:1", timeout_seconds=3).open_model("x")
except Exception:
    pass
""",
    "a pause between tries, its client kept": """
client = ParameterClient("127.0.0.1:1", timeout_seconds=0.3)
try:
    client.open_model("x")
except Exception:
    pass
""",
    "a pause between tries, going on": IN_A_THREAD + """
client = ParameterClient("127.0.0.1:1", timeout_seconds=FOR_EVER)
in_a_thread(client.status)
""",
    "nothing: the client is not closed": MODEL + "model.push(grads)",
    "nothing: the client was dropped": MODEL + "model.push(grads)\ndel client, model",
    "a client in a cycle of references": MODEL + "model.push(grads)\nclient.itself = client\ndel client, model",
    "push_async, done": MODEL + "model.push_async(grads).result()",
    "push_async, queued": MODEL + STOPPED + "pushes = [model.push_async(grads) for _ in range(5)]",
    "push_async, waiting for room": IN_A_THREAD + MODEL + STOPPED + """
pushes = [model.push_async(grads) for _ in range(5)]
in_a_thread(lambda: model.push_async(grads))
""",
    "push_async, half-way": LARGE + MODEL + BEGUN + STOPPED.replace("os.kill", "stop = lambda: os.kill") + """
push = model.push_async(grads)
begun.wait()
stop()
""",
    "a push in a daemon thread": IN_A_THREAD + MODEL + STOPPED + "in_a_thread(lambda: model.push(grads))",
    "a push behind push_async": IN_A_THREAD + MODEL + STOPPED + """
model.push_async(grads)
in_a_thread(lambda: model.push(grads))
""",
    "a pull in a daemon thread": IN_A_THREAD + MODEL + "in_a_thread(lambda: model.pull(min_version=5))",
    "a pull half-way": LARGE + IN_A_THREAD + MODEL + BEGUN + """
in_a_thread(model.pull)
begun.wait()
""",
    "a push_pull in a daemon thread": IN_A_THREAD + MODEL + STOPPED + "in_a_thread(lambda: model.push_pull(grads))",
    "a model being created": IN_A_THREAD + MODEL + STOPPED + "in_a_thread(lambda: client.create_model('n', zeros))",
    "a snapshot in a daemon thread": IN_A_THREAD + MODEL + STOPPED + "in_a_thread(client.snapshot)",
    "many clients": "clients = [ParameterClient(address) for _ in range(20)]\n[one.status() for one in clients]",
    "sys.exit in the middle": MODEL + STOPPED + "push = model.push_async(grads)\nsys.exit(0)",
    "a client used as the interpreter exits": MODEL + "import atexit\natexit.register(client.status)",
    "a client closed as the interpreter exits": MODEL + STOPPED + """
import atexit
push = model.push_async(grads)
atexit.register(client.close, wait=False)
""",
}  # fmt: skip


@pytest.mark.parametrize("program", WAYS.values(), ids=WAYS)
def test_the_interpreter_exits_during_any_call(server_process, program):
    assert programs.run(program, server_process.address, str(server_process.process_id)) == ""


@pytest.mark.parametrize("how", ["raise RuntimeError('ours')", "threading.Thread(target=lambda: 1 / 0).start()"])
def test_an_exception_does_not_delay_the_exit(server_process, how):
    program = MODEL + STOPPED + f"push = model.push_async(grads)\n{how}"
    with programs.started(program, server_process.address, str(server_process.process_id)) as process:
        _, errors = process.communicate(timeout=programs.PATIENCE_SECONDS)
    assert errors.count("Traceback") == 1, errors
    assert process.returncode == ("raise" in how)


@pytest.mark.parametrize(
    "call",
    [
        "model.push(grads)",
        "model.pull(min_version=9)",
        "model.push_pull(grads)",
        "client.status()",
        "client.snapshot()",
        "client.create_model('n', zeros)",
        "[model.push_async(grads) for _ in range(9)]",
        "client.close()",
        "ParameterClient('127.0.0.1:1', timeout_seconds=FOR_EVER).status()",
    ],
)
def test_ctrl_c_in_a_call_ends_the_program(server_process, call):
    """A thread sends the interrupt when the main thread is in the call."""
    program = (
        MODEL
        + STOPPED
        + "model.push_async(grads)\n" * ("close" in call)
        + f"""
def interrupt():
    main = threading.main_thread().ident
    while "numba_adam" not in getattr(sys._current_frames()[main].f_back, "f_globals", {{}}).get("__name__", ""):
        pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
{call}
"""
    )
    with programs.started(program, server_process.address, str(server_process.process_id)) as process:
        _, errors = process.communicate(timeout=programs.PATIENCE_SECONDS)
    assert errors.count("KeyboardInterrupt") == 1, errors
    assert process.returncode in (-signal.SIGINT, 130)
