"""The model and its recovery under virtual time: schedules of late messages, lost answers and crashes.

A schedule is made from its seed alone. It runs the server's model, ledger, events and journal as they are. Simulated
are the network, the machine, the arrays and the workers. Messages are delayed, repeated and lost. The server dies
within any record, between any two blocks of an update, in its recovery, and before any answer. At the level `disk` the
power fails, which keeps any part of what was not settled.

SIMULATED=100000 runs as many schedules, and SIMULATED_SEED=N begins with the N-th. A failure names its seed.
"""

import heapq
import json
import os
import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from numba_adam.errors import ServiceError, SessionFencedError, SessionUnknownError
from numba_adam.server.model.answers import Accepted, Limits
from numba_adam.server.model.events import Acceptance, Opening, decode, encode
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime import model as runtime
from numba_adam.server.runtime.keeping import Keeping
from numba_adam.server.storage import journal
from numba_adam.settings.hyperparameters import Hyperparameters

SCHEDULES = int(os.environ.get("SIMULATED", 500))
FIRST = int(os.environ.get("SIMULATED_SEED", 0))
BLOCKS, PUSHES, MISMATCH = 2, 4, 4
SPEC = Spec("m", "float32", (Tensor("x", (1,)),), Hyperparameters())
LIMITS = Limits(kept_answers=4)
SHARING = SimpleNamespace(begin=lambda _: None, end=lambda _: None)
ARENA = SimpleNamespace(sharing=SHARING)  # nobody maps it


class Crash(BaseException):
    """The server's process died, or its machine lost power."""


class Machine:
    """What a death of the server's process leaves: a journal, arrays of blocks, gradients."""

    def __init__(self, choices, *, is_disk):
        self.choices, self.is_disk = choices, is_disk
        self.file, self.settled, self.base = bytearray(), 0, []
        self.blocks, self.done = [[] for _ in range(BLOCKS)], 0
        self.gradients = {}  # number of the file -> what it has
        self.countdown = None  # places until the next crash

    def place(self):
        """Die here, if it is time."""
        if self.countdown is not None:
            self.countdown -= 1
            if self.countdown < 0:
                self.countdown = None
                raise Crash

    def append(self, raw):
        """Append to the journal. A crash leaves any part of it."""
        try:
            self.place()
        except Crash:
            self.file += raw[: self.choices.randrange(len(raw) + 1)]
            raise
        self.file += raw
        self.place()

    def crash(self):
        """Lose what a crash loses."""
        if self.is_disk:
            del self.file[self.choices.randint(self.settled, len(self.file)) :]
            self.blocks, self.done, self.gradients = [list(self.base) for _ in range(BLOCKS)], len(self.base), {}


class SimulatedKeeper(Keeping):
    """Writes records as the real keepers do, with the real frames, into the simulated machine."""

    def __init__(self, machine, ledger):
        self.machine, self.ledger = machine, ledger
        self.begin_anew()

    def begin_anew(self):
        """Put a new journal in the place of the old one, which is there until the new one is complete."""
        self.machine.place()
        base = list(self.machine.blocks[0])
        self.machine.file = bytearray(journal.MAGIC)
        self.machine.file += self.framed(json.dumps(self.ledger.to_record()).encode())
        self.machine.base, self.machine.settled = base, len(self.machine.file)
        self.machine.place()

    def framed(self, record):
        position = len(self.machine.file)
        check = journal._check(len(record), position)
        return journal._HEAD.pack(len(record), check, journal.xxhash.xxh3_64_intdigest(record)) + record

    def note(self, event, gradient=None):  # noqa: ARG002 - the machine has it
        if self.machine.choices.random() < 0.1:
            self.begin_anew()
        self.machine.append(self.framed(encode(event)))

    def settle(self):
        self.machine.place()
        self.machine.settled = len(self.machine.file)
        self.machine.place()

    def gradient(self, what):  # noqa: ARG002
        return nullcontext((0, None))

    def close(self, *, remove):
        """Nothing is open."""


class SimulatedUpdate:
    """Updates blocks one after the other. Each has the gradients that were applied to it, so order and number show."""

    machine = None  # of the schedule that runs
    is_short = True

    def __init__(self, spec, arena, launcher):
        pass

    def is_done(self, number):
        return self.machine.done >= number

    def run(self, present, gradient, steps, number, settings=None):  # noqa: ARG002
        for block in self.machine.blocks:
            self.machine.place()
            if len(block) < number:
                block.append(int(gradient[0]))
        self.machine.place()
        self.machine.done = number


class Worker:
    """A worker that follows docs/wire.md: it sends each request until there is an answer, and opens a session first."""

    def __init__(self, schedule, number):
        self.schedule, self.name = schedule, f"w{number}"
        self.left = [number * 100 + each for each in range(PUSHES)]
        self.bad = {gradient for gradient in self.left if schedule.choices.random() < 0.15}
        self.process = self.request = self.epoch = self.sequence = self.openings = self.seen = 0
        self.pending = None

    def restart(self):
        """Another process takes over. It does not know whether the last push was applied."""
        if self.left:
            self.process += 1
            if self.pending and self.pending[0] == "push":
                self.schedule.doubtful.add(self.left.pop(0))
            self.epoch = self.seen = 0
            self.begin()

    def begin(self):
        if not self.left:
            return
        self.request += 1
        if self.epoch:
            self.pending = ("push", self.name, self.epoch, self.sequence, self.left[0], self.left[0] in self.bad)
        else:
            self.openings += 1
            self.pending = ("open", self.name, f"{self.process}-{self.openings}", self.seen)
        self.send(self.process, self.request)

    def send(self, process, request):
        """Send the request, and again after a while, until there is an answer."""
        if (process, request) == (self.process, self.request) and self.pending:
            self.schedule.post(self.schedule.serve, self, (process, request), self.pending)
            self.schedule.later(4 + 4 * self.schedule.choices.random(), self.send, process, request)

    def receive(self, label, answer):
        if label != (self.process, self.request) or not self.pending:
            return  # late, or for an earlier process
        asked, self.pending = self.pending, None
        if asked[0] == "open":
            if isinstance(answer, SessionFencedError | SessionUnknownError):
                assert self.seen == 0, "a process that says the newest epoch was refused"
                self.seen = answer.args[1]
            else:
                self.epoch, self.sequence = answer
        else:
            assert not isinstance(answer, Exception), answer
            self.schedule.acknowledge(asked, answer)
            self.left.pop(0)
            self.sequence += 1
        self.begin()


class Schedule:
    """One run of workers, network and server, made from a seed."""

    def __init__(self, seed):
        self.choices = choices = random.Random(seed)
        self.machine = SimulatedUpdate.machine = Machine(choices, is_disk=choices.random() < 0.5)
        self.time, self.order, self.events = 0.0, 0, []
        self.crashes, self.most_crashes = 0, choices.randint(1, 3)
        self.model = None
        self.versions, self.answers, self.doubtful, self.files = {}, {}, set(), 0
        self.workers = [Worker(self, number) for number in range(choices.randint(1, 3))]

    def later(self, delay, act, *arguments):
        self.order += 1
        heapq.heappush(self.events, (self.time + delay, self.order, act, arguments))

    def post(self, act, *arguments):
        """Deliver a message after a while: never, once or twice."""
        for _ in range(self.choices.choice((0, 1, 1, 1, 1, 2))):
            self.later(self.choices.choice((0.1, 0.2, 1, 3, 20)) * self.choices.random(), act, *arguments)

    def run(self):
        self.start()
        for worker in self.workers:
            worker.begin()
            if self.choices.random() < 0.2:
                self.later(10 * self.choices.random(), worker.restart)
        while self.events:
            self.time, _, act, arguments = heapq.heappop(self.events)
            act(*arguments)
        self.check()

    # --- the server

    def start(self):
        """Start the server on what an earlier process left. It may die again."""
        if self.crashes < self.most_crashes:
            self.machine.countdown = self.choices.randrange(80)
        try:
            self.model = self.recovered()
        except Crash:
            self.die()
        else:
            assert all(len(block) == self.model.version == self.machine.done for block in self.machine.blocks)

    def recovered(self):
        machine = self.machine
        records = list(journal._records(Path("journal"), memoryview(bytes(machine.file)))) if machine.file else []
        ledger = PushLedger.from_record(json.loads(records[0]), LIMITS) if records else PushLedger("s", 1, LIMITS)
        model = runtime.Model(SPEC, "r", ARENA, ledger)
        events = [decode(record, "s") for record in records[1:]]
        if machine.is_disk:  # its journal has the gradients; here their names are in the digest of the header
            for event in events:
                model.redo(event, gradient_named(event))
        else:
            model.recover(events, lambda number: np.array([machine.gradients[number]]))
        model.keeper = SimulatedKeeper(machine, ledger)
        return model

    def die(self):
        self.crashes += 1
        self.model, self.machine.countdown = None, None
        self.machine.crash()
        self.later(2 * self.choices.random(), self.start)

    def serve(self, worker, label, request):
        if self.model is None:
            return  # nobody listens
        try:
            try:
                answer = self.opened(*request[1:]) if request[0] == "open" else self.pushed(*request[1:])
            except ServiceError as error:
                answer = type(error)(str(error), self.model.ledger.last_epoch)
            self.model.settle()
        except Crash:
            self.die()
            return
        self.post(worker.receive, label, answer)

    def opened(self, name, nonce, seen):
        opened = self.model.open_session(name, nonce, "s", seen)
        return opened.epoch, opened.next_sequence

    def pushed(self, name, epoch, sequence, gradient, is_bad):
        key, content = PushKey("s", name, epoch, sequence), Content(str(gradient), "payload")
        self.files = 1 + self.files % 3  # files of gradients are used again
        self.machine.gradients[self.files] = gradient
        push = runtime.Push(key, 0, (True,), content, self.files)
        if is_bad:
            return self.model.reject(push, MISMATCH, "does not fit").answer
        return self.model.apply(push, np.array([gradient])).answer

    # --- what must hold

    def acknowledge(self, asked, answer):
        gradient = asked[4]
        assert self.answers.setdefault(gradient, answer) == answer, "a retry got another answer"
        if isinstance(answer, Accepted):
            assert gradient not in self.versions or self.versions[gradient] == answer.version
            self.versions[gradient] = answer.version
        else:
            assert asked[5], "a push that fits was rejected"

    def check(self):
        assert self.model is not None
        first, *others = self.machine.blocks
        assert all(block == first for block in others)
        assert len(first) == len(set(first)) == self.model.version, "a gradient was applied twice"
        for gradient, version in self.versions.items():
            assert first[version - 1] == gradient, "an acknowledged push is lost"
        assert set(first) - self.versions.keys() <= self.doubtful, "a push was applied that nobody sent"
        assert not any(worker.left for worker in self.workers), "a worker did not finish"


def gradient_named(event):
    return np.array([int(event.content.header)]) if isinstance(event, Acceptance) else np.empty(0)


@pytest.fixture
def simulated(monkeypatch):
    monkeypatch.setattr(runtime, "SlicedUpdate", SimulatedUpdate)


def run(seeds):
    """Run schedules; return how many crashes there were."""
    crashes = 0
    for seed in seeds:
        schedule = Schedule(seed)
        try:
            schedule.run()
        except Exception as error:
            raise AssertionError(f"SIMULATED_SEED={seed} SIMULATED=1 fails: {error!r}") from error
        crashes += schedule.crashes
    return crashes


def test_no_schedule_loses_an_acknowledged_push_or_applies_one_twice(simulated, campaign):
    first = FIRST or campaign.seed(0)
    crashes = run(range(first, first + SCHEDULES))
    campaign.did(schedules=SCHEDULES, crashes=crashes)
    assert SCHEDULES < 100 or crashes > SCHEDULES / 2


def test_a_schedule_is_made_from_its_seed_alone(simulated):
    ends = []
    for _ in range(2):
        schedule = Schedule(7)
        schedule.run()
        ends.append((schedule.time, schedule.order, schedule.crashes, schedule.machine.blocks, schedule.versions))
    assert ends[0] == ends[1]


def answers_before_it_is_settled(patch):
    patch.setattr(SimulatedKeeper, "settle", lambda _: None)


def notes_an_event_when_the_next_one_happens(patch):
    note, waiting = SimulatedKeeper.note, {}

    def late(self, event, gradient=None):
        if self in waiting:
            note(self, waiting[self])
        waiting[self] = event

    patch.setattr(SimulatedKeeper, "note", late)


def notes_no_openings(patch):
    note = SimulatedKeeper.note
    patch.setattr(SimulatedKeeper, "note", lambda self, event, _=None: isinstance(event, Opening) or note(self, event))


def does_not_finish_the_last_update(patch):
    patch.setattr(SimulatedUpdate, "is_done", lambda *_: True)


def reads_no_further_than_the_last_record_but_one(patch):
    records = journal._records
    patch.setattr(journal, "_records", lambda *where: (found := list(records(*where)))[: max(1, len(found) - 1)])


def forgets_the_answers_of_a_session(patch):
    restored = PushLedger.from_record

    def forgetful(record, limits):
        for session in record["sessions"]:
            session["answers"] = []
        return restored(record, limits)

    patch.setattr(PushLedger, "from_record", forgetful)


@pytest.mark.parametrize(
    "breaks",
    [
        answers_before_it_is_settled,
        notes_an_event_when_the_next_one_happens,
        notes_no_openings,
        does_not_finish_the_last_update,
        reads_no_further_than_the_last_record_but_one,
        forgets_the_answers_of_a_session,
    ],
    ids=lambda each: each.__name__,
)
def test_a_broken_protocol_is_noticed(simulated, monkeypatch, breaks):
    breaks(monkeypatch)
    with pytest.raises(AssertionError, match="SIMULATED_SEED"):
        run(range(2000))
