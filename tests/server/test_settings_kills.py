"""A server at the level `process` that dies within a change of settings, or within a push under changed settings."""

import grpc
import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb

pytestmark = pytest.mark.campaign

DIE = """
import os, signal
import numba_adam.server.runtime.slices as slices
slices.MOST_ELEMENTS = 1 << 15  # several launches for each update
from numba_adam.cpu.table import UpdateTable
from numba_adam.server.runtime.keeper import Keeper
from numba_adam.server.model.changes import Changes
from numba_adam.server.model.push_ledger import PushLedger
def die_in(owner, name, nth, after, is_counted=lambda *_: True):
    function, calls = getattr(owner, name), [0]
    def dying(*arguments, **options):
        calls[0] += is_counted(*arguments)
        if calls[0] == nth and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, dying)
def of_changes(keeper, event, *rest):
    return type(event).__name__ == "Change"
"""
OF_A_CHANGE = {  # place -> (program, whether the change is made)
    "before it is noted": ("die_in(Keeper, 'note', 1, False, of_changes)", False),
    "when it is noted": ("die_in(Keeper, 'note', 1, True, of_changes)", True),
    "before the ledger has it": ("die_in(Changes, 'make', 1, False)", True),
    "after the ledger has it": ("die_in(Changes, 'make', 1, True)", True),
}
LAUNCHES = 4  # of an update of 100,000 elements in slices of 2**15; one more compiles the kernel
OF_A_PUSH = {
    "before the first launch": f"die_in(UpdateTable, 'launch_staged', {LAUNCHES + 2}, False)",
    "after the first launch": f"die_in(UpdateTable, 'launch_staged', {LAUNCHES + 2}, True)",
    "after the third launch": f"die_in(UpdateTable, 'launch_staged', {LAUNCHES + 4}, True)",
    "before the ledger counts it": "die_in(PushLedger, 'accept', 2, False)",
    "after the ledger counts it": "die_in(PushLedger, 'accept', 2, True)",
}
LINE = model_pb2.Schedule(linear=model_pb2.LinearRate(begin=0.5, end=0.0, steps=4))
GROUPS = [
    model_pb2.ParamGroup(params=["b"], hyperparameters={"weight_decay": 0.1}),
    model_pb2.ParamGroup(schedule=LINE),
]


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(size, dtype=np.float32) for name, size in (("w", 90_000), ("b", 9_999), ("c", 1))}


@pytest.fixture
def served(tmp_path, processes, peers):
    (tmp_path / "memory").mkdir()

    def serve(**options):
        process = processes(tmp_path / "data", memory_dir=str(tmp_path / "memory"), **options)
        return process, peers(process.address)

    return serve


def begin(peer, make_model):
    """Create a model and push once; return the session, and the parameters and the library's optimizer beside it."""
    params = arrays(1)
    make_model(peer, params, "process", model_pb2.Settings(groups=GROUPS, max_grad_norm=1.0, frozen=["c"]))
    rest = {"w": params["w"], "c": params["c"]}
    optimizer = na.Adam([{"params": {"b": params["b"]}, "weight_decay": 0.1}, {"params": rest}])
    session = peer.session()
    session.push(arrays(2), loss_scale=8.0)
    step(optimizer, 2, 0.5, max_grad_norm=1.0)
    return session, params, optimizer


def step(optimizer, seed, rate, **arguments):
    optimizer.param_groups[1]["lr"] = rate
    assert optimizer.step(arrays(seed) | {"c": None}, loss_scale=8.0, **arguments).applied


def request(peer):
    return pb.UpdateModelRequest(
        model="model",
        state_id=peer.state().state_id,
        request_id="one",
        change=pb.SettingsChange(groups=[pb.GroupChange(group=0, lr=0.25)], max_grad_norm=0.0, clip_value=0.01),
    )


def assert_same(peer, params):
    assert {name: array.tobytes() for name, array in peer.pull().arrays.items()} == {
        name: array.tobytes() for name, array in params.items()
    }


@pytest.mark.parametrize("place", OF_A_CHANGE)
def test_a_server_that_dies_in_a_change_has_made_it_or_not(served, make_model, place):
    program, is_made = OF_A_CHANGE[place]
    process, peer = served(first=DIE + program)
    session, params, optimizer = begin(peer, make_model)
    change = request(peer)
    with pytest.raises(grpc.RpcError):
        peer.stub.UpdateModel(change, timeout=800)
    process.wait()
    process, peer = served()
    assert_same(peer, params)
    answer = peer.stub.UpdateModel(change, timeout=800)
    assert (answer.change, answer.version, answer.duplicate) == (1, 1, is_made)
    session.peer = peer
    session.push(arrays(3), loss_scale=8.0)
    optimizer.param_groups[0]["lr"] = 0.25
    step(optimizer, 3, 0.375, clip_value=0.01)
    assert_same(peer, params)


@pytest.mark.parametrize("place", OF_A_PUSH)
def test_a_server_that_dies_in_a_push_finishes_it_with_the_settings_of_that_push(served, make_model, place):
    process, peer = served(first=DIE + OF_A_PUSH[place])
    session, params, optimizer = begin(peer, make_model)
    peer.stub.UpdateModel(request(peer), timeout=800)
    with pytest.raises(grpc.RpcError):
        session.push(arrays(3), loss_scale=8.0)
    process.wait()
    optimizer.param_groups[0]["lr"] = 0.25
    step(optimizer, 3, 0.375, clip_value=0.01)
    process, peer = served()
    assert peer.state().version == 2
    assert_same(peer, params)
    session.peer = peer
    assert session.push(arrays(3), sequence=2, loss_scale=8.0).duplicate
    session.push(arrays(4), sequence=3, loss_scale=8.0)
    step(optimizer, 4, 0.25, clip_value=0.01)
    assert_same(peer, params)
