"""Requests to open sessions over an unreliable network: a late one never fences a live session."""

import json
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from numba_adam.errors import SessionFencedError, SessionUnknownError
from numba_adam.server.model.answers import Limits
from numba_adam.server.model.push_ledger import PushLedger

WORKERS = ("a", "b", "c", "d")
LIMITS = Limits(kept_answers=3, most_sessions=2)


class Opening(NamedTuple):
    """A message that may arrive now, later, or several times."""

    worker: str
    nonce: str
    seen_epoch: int
    sent_at: int


class LateOpenings(RuleBasedStateMachine):
    """Processes open sessions as our client does; the network delays and repeats them; the server restarts."""

    def __init__(self):
        super().__init__()
        self.ledger = PushLedger("s", 1, LIMITS)
        self.in_the_network = []
        self.clock = 0
        self.holder = {}  # worker -> (epoch, nonce, when) of the session that was opened last

    def tick(self):
        """Advance the time; return a new nonce."""
        self.clock += 1
        return f"nonce-{self.clock}"

    @rule(worker=st.sampled_from(WORKERS), has_looked=st.booleans())
    def a_process_sends_an_opening(self, worker, has_looked):
        """It may have read the newest epoch before."""
        seen_epoch = self.ledger.last_epoch if has_looked else 0
        self.in_the_network.append(Opening(worker, self.tick(), seen_epoch, self.clock))

    @precondition(lambda self: self.in_the_network)
    @rule(data=st.data())
    def an_opening_arrives(self, data):
        opening = data.draw(st.sampled_from(self.in_the_network))
        held = self.holder.get(opening.worker)
        before = self.ledger.to_record()
        self.tick()
        try:
            epoch = self.ledger.open_session(opening.worker, opening.nonce, opening.seen_epoch)
        except (SessionFencedError, SessionUnknownError):
            assert self.ledger.to_record() == before
            is_retry = held is not None and opening.nonce == held[1]
            assert not (is_retry and opening.worker in self.ledger.sessions), "a retry gets the epoch of its first try"
            return
        if held is not None and opening.nonce == held[1]:
            assert epoch == held[0]
            assert self.ledger.to_record() == before
            return
        if held is not None:
            assert opening.sent_at > held[2], "a session was taken over by who did not know of it"
            assert epoch > held[0]
        self.holder[opening.worker] = (epoch, opening.nonce, self.clock)

    @precondition(lambda self: self.holder)
    @rule(data=st.data())
    def a_refused_process_looks_and_opens_once_more(self, data):
        """A live process that retries always gets a session."""
        worker = data.draw(st.sampled_from(WORKERS))
        nonce = self.tick()
        try:
            epoch = self.ledger.open_session(worker, nonce, 0)
        except (SessionFencedError, SessionUnknownError):
            epoch = self.ledger.open_session(worker, nonce, self.ledger.last_epoch)
        self.holder[worker] = (epoch, nonce, self.clock)

    @rule()
    def the_server_restarts(self):
        self.ledger = PushLedger.from_record(json.loads(json.dumps(self.ledger.to_record())), LIMITS)

    @invariant()
    def the_session_that_is_kept_is_the_one_that_was_opened_last(self):
        for worker, session in self.ledger.sessions.items():
            assert (session.epoch, session.nonce) == self.holder[worker][:2]


TestLateOpenings = LateOpenings.TestCase
TestLateOpenings.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
