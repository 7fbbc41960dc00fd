"""Clocks of the ledger in thousands of schedules: workers that join, leave, die, retry and repeat; crashes; changes.

An oracle that shares no code with the ledger says which push may be applied. The ends of leases, crashes and changes of
the mode are events of the schedule. A crash leaves a record and the events since.
"""

import json
import random
from dataclasses import replace

import pytest

from numba_adam.errors import SequenceError, SessionFencedError, SessionUnknownError, WorkerAheadError
from numba_adam.ps.mode_settings import ModeSettings
from numba_adam.ps.modes import Mode
from numba_adam.server.model.answers import LATE, Accepted
from numba_adam.server.model.events import Acceptance, Change, Departure, Opening, Rejection, decode, encode, replay
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.steering import Group, Steering
from numba_adam.settings.hyperparameters import Hyperparameters

STEPS = 100
SETTINGS = Steering((Group((0,), Hyperparameters()),))


class Server:
    """A ledger, and the events since its last record, as a server has them."""

    def __init__(self, bound):
        self.first_bound, self.ledger = bound, PushLedger("s", 1)
        self.ledger.begin(bound)
        self.begin()

    def begin(self):
        self.record, self.events = json.dumps(self.ledger.to_record()), []

    def happen(self, event):
        self.events.append(encode(event))
        replay(self.ledger, event)

    def crash(self):
        before = self.ledger.to_record()
        self.ledger = PushLedger.from_record(json.loads(self.record))
        self.ledger.begin(self.first_bound)
        for raw in self.events:
            replay(self.ledger, decode(raw, "s"))
        assert self.ledger.to_record() == before

    def open(self, worker):
        self.happen(Opening(worker, f"{worker}-{self.ledger.last_epoch}"))
        return self.ledger.sessions[worker].epoch

    def push(self, key, base_version, number, is_refused):
        content = Content(str(number), "payload")
        kept = self.ledger.judge(key, base_version, content)
        if kept is None:
            if is_refused:
                self.happen(Rejection(key, LATE, "late", content))
            else:
                self.happen(Acceptance(key, base_version, (True,), content, 0))
        return self.ledger.judge(key, base_version, content).answer

    def change(self, request_id, mode):
        settings = replace(SETTINGS, mode=mode)
        self.happen(Change(request_id, "digest", json.dumps(settings.to_record())))


class Oracle:
    """Who may push, by the words of docs/modes.md: a list of the clocks of those that somebody waits for."""

    def __init__(self, bound):
        self.bound, self.members = bound, []

    def join(self, worker):
        if self.bound and all(name != worker for name, _ in self.members):
            self.members.append([worker, min([clock for _, clock in self.members], default=0)])

    def may_push(self, worker):
        if not self.bound:
            return True
        mine = [clock for name, clock in self.members if name == worker]
        return not mine or all(mine[0] + 1 <= clock + self.bound for _, clock in self.members if clock != mine[0])

    def pushed(self, worker):
        self.join(worker)
        for member in self.members:
            member[1] += member[0] == worker

    def leave(self, worker):
        self.members = [member for member in self.members if member[0] != worker]

    def change(self, bound):
        self.bound, self.members = bound, self.members if bound else []


class Worker:
    """A worker that repeats a push until it has its answer, unless it dies."""

    def __init__(self, name):
        self.name, self.epoch, self.sequence, self.sent, self.seen = name, 0, 1, None, 0


def run(seed):
    choices = random.Random(seed)
    bound = choices.choice([1, 2, 3, 7, None])
    server, oracle = Server(bound), Oracle(bound)
    workers = [Worker(f"w{number}") for number in range(choices.randint(1, 5))]
    answers, old, seen = {}, [], set()
    for moment in range(STEPS):
        event, worker = choices.random(), choices.choice(workers)
        if event < 0.05:
            server.crash()
        elif event < 0.10:
            server.begin()
        elif event < 0.16:  # its lease ends, or it leaves
            server.happen(Departure(worker.name))
            oracle.leave(worker.name)
        elif event < 0.18:
            bound = choices.choice([1, 2, 5, None])
            mode = ModeSettings() if bound is None else ModeSettings(mode=Mode.SSP, staleness=bound)
            server.change(f"change-{moment}", mode)
            oracle.change(bound)
        elif event < 0.25 and old:  # a message that comes again, much later
            sent = choices.choice(old)
            try:
                found = server.push(*sent)
            except (SequenceError, SessionFencedError, SessionUnknownError, WorkerAheadError):
                continue
            if sent[2] not in answers:  # it is the next push of its worker, sent a second time
                oracle.pushed(sent[0].worker_id)
            assert answers.setdefault(sent[2], found) == found
        else:
            if not worker.epoch or choices.random() < 0.05:  # it begins, or died and starts again
                worker.epoch, worker.sequence, worker.sent = server.open(worker.name), 1, None
                oracle.join(worker.name)
            if worker.sent is None:
                worker.seen = choices.choice([server.ledger.version, worker.seen])
                key = PushKey("s", worker.name, worker.epoch, worker.sequence)
                worker.sent = key, worker.seen, len(old), choices.random() < 0.2
                old.append(worker.sent)
            number = worker.sent[2]
            may_push = number in answers or oracle.may_push(worker.name)
            before = None if may_push else server.ledger.to_record()
            try:
                answer = server.push(*worker.sent)
            except WorkerAheadError as error:
                hint = error.detail
            else:
                hint = None
            if hint is not None:
                assert not may_push, "a push that is not ahead was refused"
                assert hint.retry_after_milliseconds > 0
                assert not hint.sequence_recorded
                assert server.ledger.to_record() == before
                seen.add("ahead")
                continue
            assert may_push, "a push that is ahead was taken"
            if number not in answers:
                oracle.pushed(worker.name)
            assert answers.setdefault(number, answer) == answer
            worker.sent, worker.sequence = None, worker.sequence + 1
            seen.add(type(answer).__name__)
        clocks = dict(map(tuple, oracle.members))
        assert server.ledger.clocks.to_record() == clocks
        if server.ledger.clocks.bound and event >= 0.18:
            assert len(clocks) < 2 or seed_allows(clocks, server.ledger.clocks.bound, server)
    applied = [answer.version for answer in answers.values() if isinstance(answer, Accepted)]
    assert sorted(applied) == list(range(1, server.ledger.version + 1))
    return seen


def seed_allows(clocks, bound, server):
    """Return whether no clock is too far ahead; a smaller bound, set later, holds back those that are."""
    if server.ledger.changes.newest.number:
        return True
    return max(clocks.values()) - min(clocks.values()) <= bound


@pytest.mark.parametrize("schedules", [300, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_no_schedule_gets_a_worker_too_far_ahead_or_holds_one_back_that_is_not(schedules):
    seen = set()
    for seed in range(schedules):
        try:
            seen |= run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed} fails: {error!r}") from error
    assert seen == {"ahead", "Accepted", "Rejected"}


def lets_workers_run(patch):
    patch.setattr("numba_adam.server.model.clocks.Clocks.check", lambda *_: None)


def joins_at_zero(patch):
    patch.setattr("numba_adam.server.model.clocks.Clocks.slowest", 0)


def forgets_the_clocks_when_a_journal_begins(patch):
    record = PushLedger.to_record

    def forgetful(self):
        return {key: value for key, value in record(self).items() if key != "clocks"}

    patch.setattr(PushLedger, "to_record", forgetful)


def keeps_the_clock_of_one_that_left(patch):
    patch.setattr("numba_adam.server.model.clocks.Clocks.leave", lambda *_: None)


@pytest.mark.parametrize(
    "breaks",
    [lets_workers_run, joins_at_zero, forgets_the_clocks_when_a_journal_begins, keeps_the_clock_of_one_that_left],
    ids=lambda each: each.__name__,
)
def test_a_broken_rule_is_noticed(monkeypatch, breaks):
    breaks(monkeypatch)
    with pytest.raises(AssertionError, match=r"seed \d+ fails"):
        test_no_schedule_gets_a_worker_too_far_ahead_or_holds_one_back_that_is_not(300)
