"""The push ledger compared with a simple model, over an unreliable network and with crashes."""

import copy
import json
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from numba_adam.errors import (
    InvalidRequestError,
    RewoundError,
    SequenceError,
    SequenceReusedError,
    SessionFencedError,
    SessionUnknownError,
    SnapshotError,
)
from numba_adam.server.model.answers import SESSION_BYTES, Accepted, Limits, Rejected
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger

WORKERS = ("a", "b", "c", "d")
LIMITS = Limits(kept_answers=3, most_sessions=3)
MISMATCH = 4
FIRST = Content("header", "payload")


def deliver(ledger, key, base_version, *, present=(True,), is_bad=False, content=FIRST):
    """Process a push like the apply queue; return the answer or the error's class."""
    try:
        kept = ledger.judge(key, base_version, content)
        if kept is not None:
            return kept.answer
        if is_bad:
            return ledger.reject(key, MISMATCH, f"push {key.sequence} does not fit", content)
        return ledger.accept(key, base_version, present, content)
    except (RewoundError, SessionUnknownError, SessionFencedError, SequenceError, InvalidRequestError) as error:
        return type(error)


class ListModel:
    """The same rules with linear searches: slow and obvious."""

    def __init__(self):
        self.state_number = 0
        self.applied = []
        self.epochs = []  # every worker that ever opened a session; its epoch is its place, counted from 1
        self.remembered = []  # workers, the one that was idle for longest first
        self.answers = {}  # epoch -> every answer of that session
        self.contents = {}  # epoch -> what each of them was given to

    def epoch_of(self, worker):
        places = [place for place, name in enumerate(self.epochs, 1) if name == worker]
        return places[-1] if worker in self.remembered else None

    def expect(self, key, base_version, is_bad, content):
        if key.state_id != f"state{self.state_number}":
            return RewoundError
        epoch = self.epoch_of(key.worker_id)
        if epoch is None or key.epoch > epoch:
            return SessionUnknownError
        if key.epoch < epoch:
            return SessionFencedError
        answers = self.answers[epoch]
        if key.sequence <= len(answers):
            recent = key.sequence > len(answers) - LIMITS.kept_answers and key.sequence >= 1
            if recent and self.contents[epoch][key.sequence - 1] != content:
                return SequenceReusedError
            return answers[key.sequence - 1] if recent else SequenceError
        if key.sequence > len(answers) + 1:
            return SequenceError
        if base_version > len(self.applied):
            return InvalidRequestError
        if is_bad:
            answer = Rejected(MISMATCH, f"push {key.sequence} does not fit")
        else:
            answer = Accepted(len(self.applied) + 1, len(self.applied) - base_version)
            self.applied.append(key)
        answers.append(answer)
        self.contents[epoch].append(content)
        self.remembered.remove(key.worker_id)
        self.remembered.append(key.worker_id)
        return answer


class ExactlyOnce(RuleBasedStateMachine):
    """Workers send; the network loses, repeats, delays and reorders; the server restarts or crashes."""

    def __init__(self):
        super().__init__()
        self.ledger = PushLedger("state0", 1, LIMITS)
        self.model = ListModel()
        self.in_the_network = []  # every push that was ever sent; each may still arrive, any number of times
        self.ever_applied = []
        self.states = 0
        self.saved = (self.ledger.to_record(), copy.deepcopy(self.model))

    @rule(worker=st.sampled_from(WORKERS))
    def open_session(self, worker):
        epoch = self.ledger.open_session(worker)
        self.model.epochs.append(worker)
        assert epoch == len(self.model.epochs)
        self.model.answers[epoch] = []
        self.model.contents[epoch] = []
        self.model.remembered = [name for name in self.model.remembered if name != worker] + [worker]
        self.model.remembered = self.model.remembered[-LIMITS.most_sessions :]

    @precondition(lambda self: self.model.epochs)
    @rule(
        data=st.data(),
        is_bad=st.booleans(),
        ahead=st.integers(-1, 3),
        behind=st.integers(-1, 4),
        content=st.builds(Content, st.sampled_from("hH"), st.sampled_from("pP")),
    )
    def send(self, data, is_bad, ahead, behind, content):
        epoch = data.draw(st.integers(1, len(self.model.epochs)))
        sequence = max(0, len(self.model.answers[epoch]) + ahead)
        key = PushKey(self.ledger.state_id, self.model.epochs[epoch - 1], epoch, sequence)
        self.in_the_network.append((key, max(0, self.ledger.version - behind), is_bad, content))

    @precondition(lambda self: self.in_the_network)
    @rule(data=st.data())
    def arrive(self, data):
        key, base_version, is_bad, content = data.draw(st.sampled_from(self.in_the_network))
        before = self.ledger.version
        expected = self.model.expect(key, base_version, is_bad, content)
        assert deliver(self.ledger, key, base_version, is_bad=is_bad, content=content) == expected
        if self.ledger.version != before:
            self.ever_applied.append(key)

    @rule()
    def snapshot(self):
        self.saved = (json.loads(json.dumps(self.ledger.to_record())), copy.deepcopy(self.model))

    @rule()
    def restart_cleanly(self):
        self.ledger = PushLedger.from_record(json.loads(json.dumps(self.ledger.to_record())), LIMITS)

    @rule()
    def crash(self):
        record, self.model = self.saved[0], copy.deepcopy(self.saved[1])
        self.ledger = PushLedger.from_record(record, LIMITS)
        self.states += 1
        self.ledger.state_id = f"state{self.states}"
        self.model.state_number = self.states

    @invariant()
    def nothing_is_ever_applied_twice(self):
        assert len(set(self.ever_applied)) == len(self.ever_applied)

    @invariant()
    def versions_have_no_gaps(self):
        assert self.ledger.version == len(self.model.applied) == self.ledger.steps[0]


TestExactlyOnce = ExactlyOnce.TestCase
# The mutants of the ledger are noticed with 30. A release tries 100,000: SEQUENCES=100000.
SEQUENCES = int(os.environ.get("SEQUENCES", 400))
TestExactlyOnce.settings = settings(max_examples=SEQUENCES, stateful_step_count=40)


@pytest.fixture
def ledger():
    return PushLedger("s", 2, LIMITS)


def key(epoch, sequence, *, state_id="s", worker="w"):
    return PushKey(state_id, worker, epoch, sequence)


def test_a_retry_of_a_lost_answer_after_later_pushes_gets_its_answer(ledger):
    epoch = ledger.open_session("w")
    answers = [deliver(ledger, key(epoch, sequence), 0, present=(True, True)) for sequence in (1, 2, 3)]
    assert [answer.version for answer in answers] == [1, 2, 3]
    assert deliver(ledger, key(epoch, 1), 0) == answers[0]
    assert ledger.version == 3


@pytest.mark.parametrize("is_bad", [False, True], ids=["accepted", "rejected"])
@pytest.mark.parametrize("other", [Content("header", "other"), Content("other", "payload"), Content("other")])
def test_the_same_number_with_other_content_is_never_answered_as_applied(ledger, is_bad, other):
    epoch = ledger.open_session("w")
    answer = deliver(ledger, key(epoch, 1), 0, present=(True, True), is_bad=is_bad, content=FIRST)
    for _ in range(2):
        before = ledger.to_record()
        assert deliver(ledger, key(epoch, 1), 0, present=(True, True), content=other) is SequenceReusedError
        assert ledger.to_record() == before
        assert deliver(ledger, key(epoch, 1), 0, content=FIRST) == answer
        ledger = PushLedger.from_record(json.loads(json.dumps(before)), LIMITS)


def test_a_rejection_of_a_header_is_repeated_for_any_payload(ledger):
    epoch = ledger.open_session("w")
    answer = deliver(ledger, key(epoch, 1), 0, is_bad=True, content=Content("header"))
    ledger = PushLedger.from_record(json.loads(json.dumps(ledger.to_record())), LIMITS)
    assert deliver(ledger, key(epoch, 1), 0, content=Content("header", "any")) == answer
    assert deliver(ledger, key(epoch, 1), 0, content=Content("other", "any")) is SequenceReusedError


def test_an_answer_of_format_1_is_recognized_by_its_number_only(ledger):
    """It has no digests to compare."""
    epoch = ledger.open_session("w")
    answer = deliver(ledger, key(epoch, 1), 0, present=(True, True))
    record = ledger.to_record()
    record["sessions"][0]["answers"] = [each[:3] for each in record["sessions"][0]["answers"]]
    ledger = PushLedger.from_record(record, LIMITS)
    assert ledger.to_record() == record
    assert deliver(ledger, key(epoch, 1), 0, content=Content("other", "other")) == answer


def with_session(**changes):
    record = PushLedger("s", 1).to_record()
    session = {"worker_id": "w", "epoch": 1, "last_sequence": 1, "answers": [[1, 1, 0]]} | changes
    return record | {"last_epoch": 1, "sessions": [session]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (PushLedger("s", 1).to_record() | {"quorum": 3}, "has 'quorum', which this numba-adam does not know"),
        ({"state_id": "s"}, "lacks 'version', 'steps', 'last_epoch', 'sessions'"),
        (with_session(clock=5), "a session's record has 'clock'"),
        (with_session(answers=[[1, 99, "no"]]), "the reason of a rejection is 99, and this numba-adam knows 4 or 5"),
        (with_session(answers=[[1, 1, 0, "h"]]), "an answer's record has 3 values, and this numba-adam knows 2 or 4"),
    ],
)
def test_a_record_with_unknown_keys_or_values_is_refused_by_name(record, words):
    PushLedger.from_record(with_session())
    with pytest.raises(SnapshotError, match=words):
        PushLedger.from_record(record)


def test_a_dropped_worker_never_gets_an_old_epoch_after_a_restart(ledger):
    """A push of its old session must not be mistaken for one of the new session."""
    forgotten = ledger.open_session("w")
    deliver(ledger, key(forgotten, 1), 0, present=(True, True))
    for name in ("x", "y", "z"):
        newest = ledger.open_session(name)
    assert "w" not in ledger.sessions
    ledger = PushLedger.from_record(json.loads(json.dumps(ledger.to_record())), LIMITS)
    assert deliver(ledger, key(forgotten, 1), 0) is SessionUnknownError
    assert ledger.open_session("w") == newest + 1 > forgotten
    assert deliver(ledger, key(forgotten, 1), 0) is SessionFencedError
    assert deliver(ledger, key(newest + 1, 1), 0, present=(True, True)) == Accepted(2, 1)


def test_arrays_without_a_gradient_do_not_count_a_step(ledger):
    epoch = ledger.open_session("w")
    deliver(ledger, key(epoch, 1), 0, present=(True, False))
    deliver(ledger, key(epoch, 2), 0, present=(True, True))
    deliver(ledger, key(epoch, 3), 0, present=(False, False))
    assert ledger.steps == [2, 1]
    assert ledger.version == 3


def test_staleness_is_measured_from_the_base_version(ledger):
    epoch = ledger.open_session("w")
    for sequence in range(1, 4):
        deliver(ledger, key(epoch, sequence), 0, present=(True, True))
    assert deliver(ledger, key(epoch, 4), 1, present=(True, True)) == Accepted(version=4, staleness=2)


def test_a_dropped_worker_never_gets_an_old_epoch_again(ledger):
    first = ledger.open_session("w")
    for name in ("x", "y", "z"):
        ledger.open_session(name)
    assert deliver(ledger, key(first, 1), 0) is SessionUnknownError
    assert ledger.open_session("w") > first
    assert deliver(ledger, key(first, 1), 0) is SessionFencedError


def test_a_rejection_uses_its_number_and_changes_nothing_else(ledger):
    epoch = ledger.open_session("w")
    answer = deliver(ledger, key(epoch, 1), 0, is_bad=True)
    assert answer == Rejected(MISMATCH, "push 1 does not fit")
    assert (ledger.version, ledger.steps) == (0, [0, 0])
    assert deliver(ledger, key(epoch, 1), 0) == answer
    assert deliver(ledger, key(epoch, 2), 0, present=(True, True)).version == 1


@pytest.mark.parametrize(
    ("push", "words"),
    [
        (key(1, 1, state_id="gone"), ["gone", "version 0", "pull"]),
        (key(1, 1, state_id="x" * 99), [f"state_id='{'x' * 64}': "]),
        (key(1, 1, worker="stranger"), ["stranger", "open one"]),
        (key(1, 1, worker="y" * 999), [f"worker '{'y' * 200}', "]),
        (key(1, 3), ["sequence=3", "next push", "is 1", "in order"]),
        (key(1, 0), ["sequence=0", "is 1", "in order"]),
    ],
)
def test_refusals_say_what_was_given_expected_and_what_to_do(ledger, push, words):
    ledger.open_session("w")
    with pytest.raises((RewoundError, SessionUnknownError, SequenceError)) as caught:
        ledger.judge(push, 0, Content("header", "payload"))
    assert all(word in str(caught.value) for word in words)
    assert ledger.to_record() == PushLedger.from_record(ledger.to_record(), LIMITS).to_record()


# ---- openings that come late, twice or after their successor ---------------------------------------------------------


def test_the_same_nonce_gets_the_same_epoch_even_after_a_restart(ledger):
    epoch = ledger.open_session("w", "a")
    deliver(ledger, key(epoch, 1), 0, present=(True, True))
    for _ in range(2):
        assert ledger.open_session("w", "a") == epoch
        assert deliver(ledger, key(epoch, 1), 0) == Accepted(1, 0)
        ledger = PushLedger.from_record(json.loads(json.dumps(ledger.to_record())), LIMITS)


@pytest.mark.parametrize("late", [("a", 0), ("b", 0), ("c", 1)], ids=["first", "second", "one that saw the first"])
def test_a_late_opening_fences_no_newer_session(ledger, late):
    first = ledger.open_session("w", "a")
    second = ledger.open_session("w", "b2", first)
    third = ledger.open_session("w", "d", second)
    before = ledger.to_record()
    for _ in range(2):
        with pytest.raises(SessionFencedError, match=f"epoch {third} has been opened since.*seen_epoch={third}$"):
            ledger.open_session("w", *late)
        assert ledger.to_record() == before
        ledger = PushLedger.from_record(json.loads(json.dumps(before)), LIMITS)
    assert deliver(ledger, key(third, 1), 0, present=(True, True)) == Accepted(1, 0)


def test_a_caller_that_knows_the_newest_epoch_takes_over(ledger):
    first = ledger.open_session("w", "a")
    other = ledger.open_session("x", "o")
    second = ledger.open_session("w", "b", other)
    assert second > other > first
    assert deliver(ledger, key(first, 1), 0) is SessionFencedError


def test_a_late_opening_of_a_dropped_worker_fences_no_session(ledger):
    """Otherwise it would get a higher epoch than the live worker and fence it permanently."""
    ledger.open_session("w", "a")
    for name in ("x", "y", "z"):
        newest = ledger.open_session(name, name)
    ledger = PushLedger.from_record(json.loads(json.dumps(ledger.to_record())), LIMITS)
    with pytest.raises(SessionUnknownError, match=f"open again with seen_epoch={newest}$"):
        ledger.open_session("w", "late")
    assert ledger.open_session("w", "b", newest) == newest + 1


def test_dropped_sessions_count_by_their_newest_epoch_in_any_order(ledger):
    """Workers are dropped by idle time, not in the order of their epochs."""
    epochs = {name: ledger.open_session(name, name) for name in "wxy"}
    deliver(ledger, key(epochs["w"], 1, worker="w"), 0, present=(True, True))
    ledger.open_session("z", "z")
    assert set(ledger.sessions) == set("ywz")  # x, of epoch 2, was idle for longest
    deliver(ledger, key(epochs["y"], 1, worker="y"), 0, present=(True, True))
    ledger.open_session("v", "v", ledger.last_epoch)
    assert set(ledger.sessions) == set("zyv")  # then w, of epoch 1
    with pytest.raises(SessionUnknownError, match="sessions up to epoch 2 have been forgotten"):
        ledger.open_session("x", "late", 1)


def test_the_same_nonce_gets_its_own_epoch_and_not_the_newest_of_all(ledger):
    epoch = ledger.open_session("w", "a")
    ledger.open_session("x", "b")
    assert ledger.open_session("w", "a") == epoch == ledger.last_epoch - 1


def test_a_seen_epoch_that_was_never_given_is_refused(ledger):
    ledger.open_session("w", "a")
    with pytest.raises(InvalidRequestError, match="seen_epoch=2: the newest epoch of this state is 1"):
        ledger.open_session("w", "b", 2)


def test_an_opening_without_a_nonce_always_opens_a_session(ledger):
    assert [ledger.open_session("w") for _ in range(3)] == [1, 2, 3]


def test_a_caller_that_knows_the_dropped_epoch_opens_a_session(ledger):
    """No session of its worker can be newer than the epoch it knows."""
    epoch = ledger.open_session("w", "a")
    for name in ("x", "y", "z"):
        newest = ledger.open_session(name, name)
    assert ledger.open_session("w", "b", epoch) == newest + 1


# ---- what is kept, and how much of it --------------------------------------------------------------------------------


def test_the_record_of_a_new_model_has_only_required_keys():
    record = PushLedger("s", 2).to_record()
    assert record == {"state_id": "s", "version": 0, "steps": [0, 0], "last_epoch": 0, "sessions": []}


def test_an_answer_that_is_no_longer_kept_gives_the_next_number(ledger):
    epoch = ledger.open_session("w")
    for sequence in range(1, 5):
        deliver(ledger, key(epoch, sequence), 0, present=(True, True))
    with pytest.raises(SequenceError, match=r"sequence=1: .* last 3 answers are kept; the next push is 5$"):
        ledger.judge(key(epoch, 1), 0, FIRST)


def test_limits_match_the_wire_document():
    assert Limits() == (64, 1024, 500, 1 << 20)


def test_the_memory_of_sessions_and_messages_is_counted():
    """The budget relies on this count."""
    ledger = PushLedger("state", 1, Limits(kept_answers=2, most_text=20))
    assert ledger.kept_bytes == 0
    epochs = {name: ledger.open_session(name) for name in ("w", "x")}
    assert ledger.kept_bytes == 2 * SESSION_BYTES

    def reject(sequence, length):
        message = ledger.reject(key(epochs["w"], sequence), MISMATCH, "x" * length, FIRST).message
        return message == "x" * length, ledger.kept_bytes - 2 * SESSION_BYTES

    ledger.accept(key(epochs["x"], 1, worker="x"), 0, (True,), FIRST)
    assert ledger.kept_bytes == 2 * SESSION_BYTES
    assert reject(1, 15) == (True, 30)
    assert reject(2, 6) == (False, 30)  # the server's own words for a text that it does not keep cost nothing
    assert reject(3, 20) == (False, 0)  # the first is forgotten once this one is answered
    assert reject(4, 20) == (True, 40)


def test_messages_of_rejections_are_shortened_and_limited_in_total():
    """A sender controls the message's text, but not how much of it is kept."""
    limits = Limits(kept_answers=3, most_sessions=2, longest_text=10, most_text=40)
    ledger = PushLedger("state", 1, limits)

    def reject(worker, sequence, text):
        return ledger.reject(PushKey("state", worker, ledger.sessions[worker].epoch, sequence), 4, text, FIRST).message

    ledger.open_session("a")
    assert reject("a", 1, "x" * 10) == "x" * 10
    assert reject("a", 2, "y" * 11) == "y" * 10 + " ..."
    assert reject("a", 3, "z" * 100) == "z" * 10 + " ..."
    assert "the message was dropped" in reject("a", 4, "w" * 10)  # of 38 characters, ten were forgotten just now
    assert reject("a", 5, "v" * 10) == "v" * 10
    again = PushLedger.from_record(json.loads(json.dumps(ledger.to_record())), limits)
    assert again.kept_bytes == ledger.kept_bytes
    before = ledger.kept_bytes
    ledger.open_session("a")
    assert ledger.kept_bytes < before
    assert [reject("a", sequence, "u" * 10) for sequence in (1, 2, 3)] == ["u" * 10] * 3
