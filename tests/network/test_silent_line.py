"""A line that goes silent: no packet arrives, and no end of it hears of that. Calls end by their deadlines."""

from __future__ import annotations

import sys

import pytest

pytestmark = [pytest.mark.campaign]

NAME, SECONDS = "trainer.test", 20
BEGIN = """
import numpy as np
from numba_adam.client import ParameterClient
from numba_adam.errors import DeadlineExceededError, ServiceError
W = np.zeros(50_000, np.float32)

def said(word):
    print(word, flush=True)
    input()

client = ParameterClient({address!r}, "w0", timeout_seconds={seconds})
model = client.create_model("m", {{"w": W}}, durability="memory")
applied = model.push({{"w": W + 1}}).version
"""
ENDED = """
said("silent")
try:
    {call}
    print("returned", flush=True)
except ServiceError as error:
    print(type(error).__name__, flush=True)
said("heard")
"""
AFTER = """
again = ParameterClient({address!r}, "w1", timeout_seconds=700)
print(again.open_model("m").push({{"w": W + 3}}).version, model.push({{"w": W + 4}}).version, flush=True)
"""
CALLS = {
    "push": 'model.push({"w": W + 2})',
    "pull": "model.pull()",
    "waiting pull": "model.pull(min_version=2)",
    "push_pull": 'model.push_pull({"w": W + 2})',
}


class Line:
    """The cable between the two hosts, which can go silent in one direction or in both."""

    def __init__(self, pair) -> None:
        self._pair = pair

    def silence(self) -> None:
        """Send what each host sends to a hardware address that nobody has."""
        for host, other in ((self._pair.worker, "10.77.0.1"), (self._pair.server, "10.77.0.2")):
            host.run(*f"ip neigh replace {other} lladdr 02:00:00:00:00:99 dev cable nud permanent".split())

    def mend(self) -> None:
        for host, other in ((self._pair.worker, "10.77.0.1"), (self._pair.server, "10.77.0.2")):
            host.run(*f"ip neigh del {other} dev cable".split())


@pytest.fixture
def line(pair) -> Line:
    return Line(pair)


def start(pair, script: str):
    ca = str(pair.folder / "numba-adam-certificates/ca.pem")
    environment = {**pair.environment, "NUMBA_ADAM_SERVER_CA": ca, "NUMBA_ADAM_TOKEN": pair.token}
    return pair.worker.talking(sys.executable, "-c", script, env=environment)


def answer(worker) -> None:
    worker.stdin.write("\n")
    worker.stdin.flush()


@pytest.mark.parametrize("call", CALLS)
def test_a_call_over_a_silent_line_ends_by_its_deadline_and_the_next_go_on(pair, line, call):
    """A push that did not arrive is not applied later; one more push of each worker is applied once."""
    port = pair.serve("10.77.0.1:0", "--keepalive-seconds", "2").rpartition(":")[2]
    pair.names("10.77.0.1")
    address = f"{NAME}:{port}"
    script = (BEGIN + ENDED.replace("{call}", CALLS[call].replace("{", "{{").replace("}", "}}")) + AFTER).format(
        address=address, seconds=SECONDS
    )
    with start(pair, script) as worker:
        assert worker.stdout.readline() == "silent\n"
        line.silence()
        answer(worker)
        assert worker.stdout.readline() in ("DeadlineExceededError\n", "ServerUnavailableError\n")
        assert worker.stdout.readline() == "heard\n"
        line.mend()
        answer(worker)
        first, second = map(int, worker.stdout.readline().split())
    assert second == first + 1
    assert first in ((2, 3) if "push" in call else (2,))


def test_a_call_goes_on_by_itself_when_the_line_is_back_before_its_deadline(pair, line):
    port = pair.serve("10.77.0.1:0", "--keepalive-seconds", "2").rpartition(":")[2]
    pair.names("10.77.0.1")
    script = (
        BEGIN + 'said("silent")\nprint("pushing", flush=True)\nprint(model.push({{"w": W + 2}}).version)\n'
    ).format(address=f"{NAME}:{port}", seconds=700)
    with start(pair, script) as worker:
        assert worker.stdout.readline() == "silent\n"
        line.silence()
        answer(worker)
        assert worker.stdout.readline() == "pushing\n"
        line.mend()
        assert worker.stdout.readline() == "2\n"


LOOP = """
loop = iter(model.worker(range(3)))
_, step = next(loop)
step.grads = {{"w": W + 2}}
"""
NEXT = """
_, step = next(loop)
step.grads = {{"w": W + 3}}
print(step.ack.version, step.ack.applied, flush=True)
_, step = next(loop)
print(step.ack.version, step.ack.applied, flush=True)
"""
LOOP_AGAIN = """
said("heard")
steps = 0
for _, step in model.worker(range(3)):
    step.grads = {{"w": W + 3}}
    steps += 1
print(steps, model.pull() is not None and model.version, flush=True)
"""


def test_a_workers_loop_goes_on_by_itself_when_the_line_is_back(pair, line):
    """The push of the loop whose line went silent is applied once, and so is the next."""
    port = pair.serve("10.77.0.1:0", "--keepalive-seconds", "2").rpartition(":")[2]
    pair.names("10.77.0.1")
    script = (BEGIN + LOOP + 'said("silent")\nprint("pushing", flush=True)\n' + NEXT).format(
        address=f"{NAME}:{port}", seconds=700
    )
    with start(pair, script) as worker:
        assert worker.stdout.readline() == "silent\n"
        line.silence()
        answer(worker)
        assert worker.stdout.readline() == "pushing\n"
        line.mend()
        assert worker.stdout.readline() == "2 True\n"
        assert worker.stdout.readline() == "3 True\n"


def test_a_workers_loop_over_a_silent_line_ends_by_its_deadline_and_another_one_goes_on(pair, line):
    """The first loop's push may have been applied, or not; each of the second loop's is applied once."""
    port = pair.serve("10.77.0.1:0", "--keepalive-seconds", "2").rpartition(":")[2]
    pair.names("10.77.0.1")
    script = (BEGIN + LOOP + ENDED.replace("{call}", "next(loop)").removesuffix('said("heard")\n') + LOOP_AGAIN).format(
        address=f"{NAME}:{port}", seconds=SECONDS
    )
    with start(pair, script) as worker:
        assert worker.stdout.readline() == "silent\n"
        line.silence()
        answer(worker)
        assert worker.stdout.readline() in ("DeadlineExceededError\n", "ServerUnavailableError\n")
        assert worker.stdout.readline() == "heard\n"
        line.mend()
        answer(worker)
        steps, version = map(int, worker.stdout.readline().split())
    assert steps == 3
    assert version in (4, 5)


CALLS_IN_FLIGHT = """
import urllib.request
while True:
    text = urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=700).read().decode()
    if "numba_adam_calls_in_flight {count}.0" in text:
        print(text)
        break
"""


def test_the_server_finds_a_dead_connection_and_ends_its_calls(pair, line):
    """A worker waits for a version and vanishes. No other timeout would end the call: the server's pings do."""
    words = ("--keepalive-seconds", "2", "--stall-seconds", "100000", "--metrics-listen", "127.0.0.1:9464")
    port = pair.serve("10.77.0.1:0", *words).rpartition(":")[2]
    pair.names("10.77.0.1")
    script = (BEGIN + "model.pull(min_version=10**6)\n").format(address=f"{NAME}:{port}", seconds=100_000)
    with start(pair, script):
        assert "calls_in_flight 1.0" in pair.server.run(sys.executable, "-c", CALLS_IN_FLIGHT.format(count=1))
        line.silence()
        assert "calls_in_flight 0.0" in pair.server.run(sys.executable, "-c", CALLS_IN_FLIGHT.format(count=0))
