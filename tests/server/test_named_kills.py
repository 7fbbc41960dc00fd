"""A server at the level `process` that dies at a chosen place of a push, of its journal or of its recovery."""

import grpc
import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2

pytestmark = pytest.mark.campaign
SIZE = 100_000
PUSHES = 3  # before the one in which the server dies

# Programs that run first in a server, and let it die: `die_in` at the n-th call of a function, before or after it.
DIE = """
import os, signal
def die_in(owner, name, nth, after):
    function, calls = getattr(owner, name), [0]
    def dying(*arguments, **options):
        calls[0] += 1
        if calls[0] == nth and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, dying)
import numba_adam.server.runtime.slices as slices
slices.MOST_ELEMENTS = 1 << 15  # several launches for each update
from numba_adam.cpu.table import UpdateTable
from numba_adam.server.runtime.keeper import Keeper
from numba_adam.server.runtime.model import Model
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.storage import journal
import numba_adam.server.runtime.keeper as keeper
"""
LAUNCHES = 4  # of an update of SIZE elements in slices of 2**15
BEFORE = PUSHES * LAUNCHES + 1  # launches; one compiles the kernel

# A new journal after some pushes.
OFTEN = (
    "keeper._LARGEST_JOURNAL_BYTES = 1500\nKeeper._first_bytes = property(lambda self: 0, lambda self, value: None)\n"
)

# Place -> (program, whether the push is in afterwards)
PLACES = {
    "before it is noted": (f"die_in(Keeper, 'note', {PUSHES + 2}, False)", False),  # the session is noted too
    "when it is noted": (f"die_in(Keeper, 'note', {PUSHES + 2}, True)", True),
    "within the journal's record": (
        "def half(descriptor, raw, write=journal.write_all, calls=[0]):\n"
        "    calls[0] += 1\n"
        f"    if calls[0] == {PUSHES + 4}:\n"  # after the magic, the first record and the session
        "        write(descriptor, raw[: len(raw) // 2]); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(descriptor, raw)\n"
        "journal.write_all = half",
        False,
    ),
    "before the first launch": (f"die_in(UpdateTable, 'launch_staged', {BEFORE + 1}, False)", True),
    "after the first launch": (f"die_in(UpdateTable, 'launch_staged', {BEFORE + 1}, True)", True),
    "after the third launch": (f"die_in(UpdateTable, 'launch_staged', {BEFORE + 3}, True)", True),
    "after the update": (f"die_in(Model, 'update', {PUSHES + 1}, True)", True),
    "before the ledger counts it": (f"die_in(PushLedger, 'accept', {PUSHES + 1}, False)", True),
    "after the ledger counts it": (f"die_in(PushLedger, 'accept', {PUSHES + 1}, True)", True),
    "before a new journal": (f"{OFTEN}die_in(Keeper, 'begin_anew', 1, False)", None),
    "after a new journal": (f"{OFTEN}die_in(Keeper, 'begin_anew', 1, True)", None),
}
IN_RECOVERY = {
    "before its update": "die_in(UpdateTable, 'launch_staged', 1, False)",
    "after its first launch": "die_in(UpdateTable, 'launch_staged', 1, True)",
    "after its third launch": "die_in(UpdateTable, 'launch_staged', 3, True)",
    "before its journal": "die_in(keeper, 'Journal', 1, False)",
    "after its journal": "die_in(keeper, 'Journal', 1, True)",
}


def gradient_of(number):
    return np.random.default_rng(number).standard_normal(SIZE, dtype=np.float32)


def expected(start, pushes):
    param, exp_avg, exp_avg_sq = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, pushes + 1):
        na.adam_update(param, gradient_of(step), exp_avg, exp_avg_sq, step, lr=0.01)
    return param.tobytes()


@pytest.fixture
def start():
    return np.random.default_rng(99).standard_normal(SIZE, dtype=np.float32)


@pytest.fixture
def serve(tmp_path, processes):
    (tmp_path / "memory").mkdir()

    def start_server(program=""):
        first = f"{DIE}\n{program}" if program else ""
        return processes(tmp_path / "data", memory_dir=str(tmp_path / "memory"), threads=1, first=first)

    return start_server


def pushed_until_death(peers, process, start):
    """Push until the server dies; return the session and the number of pushes that were acknowledged."""
    peer = peers(process.address)
    peer.create({"x": start}, lr=0.01, durability=model_pb2.DURABILITY_PROCESS)
    session, number = peer.session(), 0
    code = None
    while code is None and number < 100:
        number += 1
        try:
            session.push({"x": gradient_of(number)})
        except grpc.RpcError as error:
            code = error.code()
    assert code == grpc.StatusCode.UNAVAILABLE
    assert process.wait() == -9
    return session, number - 1


def check_nothing_is_lost(peers, process, session, start, acknowledged, is_in):
    peer = session.peer = peers(process.address)
    assert peer.state().state_id == session.state_id
    version = peer.state().version
    assert version in ((acknowledged, acknowledged + 1) if is_in is None else (acknowledged + is_in,))
    assert peer.pull().arrays["x"].tobytes() == expected(start, version)
    ack = session.push({"x": gradient_of(acknowledged + 1)}, sequence=acknowledged + 1)
    assert (ack.version, ack.duplicate) == (acknowledged + 1, version > acknowledged)
    assert session.push({"x": gradient_of(acknowledged + 2)}).version == acknowledged + 2
    assert peer.pull().arrays["x"].tobytes() == expected(start, acknowledged + 2)


@pytest.mark.parametrize("place", PLACES)
def test_a_server_that_dies_in_a_push_loses_nothing(place, serve, peers, start):
    program, is_in = PLACES[place]
    session, acknowledged = pushed_until_death(peers, serve(program), start)
    if is_in is not None:
        assert acknowledged == PUSHES
    check_nothing_is_lost(peers, serve(), session, start, acknowledged, is_in)


@pytest.mark.parametrize("place", IN_RECOVERY)
def test_a_server_that_dies_in_its_recovery_loses_nothing(place, serve, peers, start):
    session, acknowledged = pushed_until_death(peers, serve(PLACES["after the first launch"][0]), start)
    with pytest.raises(AssertionError, match=r"did not start|died of signal"):
        serve(IN_RECOVERY[place])
    check_nothing_is_lost(peers, serve(), session, start, acknowledged, True)
