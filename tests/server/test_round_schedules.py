"""Rounds of the ledger in thousands of schedules: workers that die, retry, start again, are late or send twice.

The ledger decides alone: timeouts and crashes are events of the schedule. A crash leaves a record and the events since.
The ledger that they give must be the one that was lost.
"""

import json
import random

import pytest

from numba_adam.errors import PushInProgressError, SequenceError, SessionFencedError, SessionUnknownError
from numba_adam.server.model.answers import LATE, ROUND_ABORTED, Accepted, Rejected
from numba_adam.server.model.events import Abortion, Closing, Holding, Opening, Rejection, decode, encode, replay
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.rounds import Held

STEPS = 120


class Server:
    """A ledger, the events since its last record, and the gradients of each version, as a server has them."""

    def __init__(self, needed):
        self.needed = needed
        self.ledger, self.applied = PushLedger("s", 1), {}
        self.begin()

    def begin(self):
        """Begin a new journal: a record, and the open round as events."""
        held = [encode(Holding(*push)) for push in self.ledger.round.in_order()]
        self.record, self.events = json.dumps(self.ledger.to_record()), held

    def happen(self, event):
        self.events.append(encode(event))
        if isinstance(event, Closing):
            pushes = self.ledger.round.in_order()
            assert len({push.key.worker_id for push in pushes}) == len(pushes) == self.needed
            self.applied[self.ledger.version + 1] = [push.content.header for push in pushes]
        replay(self.ledger, event)

    def crash(self):
        before, held = self.ledger.to_record(), self.ledger.round.in_order()
        self.ledger = PushLedger.from_record(json.loads(self.record))
        for raw in self.events:
            replay(self.ledger, decode(raw, "s"))
        assert self.ledger.to_record() == before
        assert self.ledger.round.in_order() == held

    def open(self, worker, seen):
        if self.ledger.known_session(worker, f"{worker}-{seen}-{len(self.events)}", self.ledger.last_epoch) is None:
            self.happen(Opening(worker, f"{worker}-{seen}-{len(self.events)}"))
        return self.ledger.sessions[worker].epoch

    def push(self, key, base_version, gradient):
        content = Content(str(gradient), "payload")
        kept = self.ledger.judge(key, base_version, content)
        if kept is not None:
            return kept.answer
        if base_version < self.ledger.version:
            self.happen(Rejection(key, LATE, "late", content))
        else:
            self.happen(Holding(key, (True,), content, gradient))
            if len(self.ledger.round) == self.needed:
                self.happen(Closing())
        return self.ledger.judge(key, base_version, content).answer

    def time_out(self):
        if self.ledger.round:
            self.happen(Abortion("too few"))


class Worker:
    """A worker that repeats a push until it has its answer, unless it dies."""

    def __init__(self, name):
        self.name, self.epoch, self.sequence, self.sent, self.seen = name, 0, 0, None, 0


def run(seed):
    choices = random.Random(seed)
    count = choices.randint(1, 5)
    needed = choices.randint(1, count)
    server, numbers = Server(needed), iter(range(1, 10_000))
    workers = [Worker(f"w{number}") for number in range(count)]
    answers, old = {}, []
    outcomes = set()
    for _ in range(STEPS):
        event = choices.random()
        if event < 0.05:
            server.crash()
        elif event < 0.10:
            server.begin()
        elif event < 0.14:
            server.time_out()
        elif event < 0.20 and old:  # a message that comes again, much later
            key, base, gradient = choices.choice(old)
            try:
                found = server.push(key, base, gradient)
            except (SequenceError, SessionFencedError, SessionUnknownError, PushInProgressError):
                continue
            assert isinstance(found, Held) or answers.setdefault(gradient, found) == found
        else:
            worker = choices.choice(workers)
            if not worker.epoch or choices.random() < 0.05:  # it begins, or died and starts again
                worker.epoch, worker.sequence, worker.sent = server.open(worker.name, worker.epoch), 1, None
                assert server.ledger.round.of(worker.name) is None
            if worker.sent is None:
                worker.seen = choices.choice([server.ledger.version, worker.seen])  # it may not have pulled
                worker.sent = PushKey("s", worker.name, worker.epoch, worker.sequence), worker.seen, next(numbers)
                old.append(worker.sent)
            answer = server.push(*worker.sent)
            if isinstance(answer, Held):
                assert answer.round == worker.sent[1] + 1 == server.ledger.version + 1
                continue
            assert answers.setdefault(worker.sent[2], answer) == answer
            worker.sent, worker.sequence = None, worker.sequence + 1
            outcomes.add(answer.reason if isinstance(answer, Rejected) else 0)
    applied = [gradient for version in sorted(server.applied) for gradient in server.applied[version]]
    assert len(applied) == len(set(applied)) == needed * server.ledger.version
    for gradient, answer in answers.items():
        is_in = str(gradient) in server.applied.get(getattr(answer, "version", 0), [])
        assert is_in == isinstance(answer, Accepted)
        assert is_in or str(gradient) not in applied
    return outcomes


def outcomes_of(seeds):
    """Run schedules; return the outcomes that pushes had."""
    outcomes = set()
    for seed in seeds:
        try:
            outcomes |= run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed} fails: {error!r}") from error
    return outcomes


@pytest.mark.parametrize("schedules", [300, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_no_schedule_applies_a_gradient_twice_or_answers_it_wrongly(schedules, campaign):
    first = campaign.seed(0)
    assert outcomes_of(range(first, first + schedules)) == {0, LATE, ROUND_ABORTED}
    campaign.did(schedules=schedules)


def keeps_the_old_gradient_of_a_worker_that_starts_again(patch):
    patch.setattr("numba_adam.server.model.rounds.OpenRound.withdraw", lambda *_: None)


def forgets_what_the_round_holds_when_a_journal_begins(patch):
    begin = Server.begin

    def forgetful(self):
        begin(self)
        self.events = []

    patch.setattr(Server, "begin", forgetful)


def takes_late_gradients(patch):
    judge = PushLedger.judge

    def lenient(self, push, base_version, content):
        return judge(self, push, self.version, content)

    push = Server.push
    patch.setattr(PushLedger, "judge", lenient)
    patch.setattr(Server, "push", lambda self, key, _, gradient: push(self, key, self.ledger.version, gradient))


@pytest.mark.parametrize(
    "breaks",
    [
        keeps_the_old_gradient_of_a_worker_that_starts_again,
        forgets_what_the_round_holds_when_a_journal_begins,
        takes_late_gradients,
    ],
    ids=lambda each: each.__name__,
)
def test_a_broken_rule_is_noticed(monkeypatch, breaks):
    breaks(monkeypatch)
    with pytest.raises(AssertionError, match=r"seed \d+ fails"):
        outcomes_of(range(300))
