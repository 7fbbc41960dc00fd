"""Settings that change while a model trains: the bits of the library's optimizer, once, whatever dies or is late."""

import uuid

import numpy as np
import pytest

import numba_adam as na
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1 import parameter_service_pb2 as pb
from numba_adam.ps.v1.error_pb2 import Reason

LEVELS = ["memory", "process", "disk"]
KEPT = ["process", "disk"]
GROUPS = [
    model_pb2.ParamGroup(params=["c", "a"], hyperparameters=model_pb2.Hyperparameters(lr=0.05, weight_decay=0.1)),
    model_pb2.ParamGroup(hyperparameters=model_pb2.Hyperparameters(lr=0.01, beta1=0.8)),
]


def arrays(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (300, 7), "b": (5,), "c": (20_000,)}
    return {name: scale * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def change(peer, *groups, seen=0, request_id="", state_id=None, **values):
    request = pb.UpdateModelRequest(
        model="model",
        state_id=peer.state().state_id if state_id is None else state_id,
        request_id=request_id or uuid.uuid4().hex,
        seen_change=seen,
        change=pb.SettingsChange(groups=groups, **values),
    )
    return peer.stub.UpdateModel(request, timeout=800)


def model_of(peer):
    return peer.stub.GetModel(pb.GetModelRequest(model="model")).model


def assert_same(peer, expected):
    pulled = peer.pull().arrays
    assert {name: array.tobytes() for name, array in pulled.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


class Twin:
    """A server's model and the library's optimizer, which must have the same bits after each push."""

    def __init__(self, peer, params, optimizer):
        self.session, self.params, self.optimizer, self.number = peer.session(), params, optimizer, 0
        self.peer = peer

    def push_and_check(self, scale=1.0, skipped=(), loss_scale=None, **arguments):
        self.number += 1
        grads = arrays(100 + self.number, scale)
        changes = {} if loss_scale is None else {"loss_scale": loss_scale}
        self.session.push(grads, **changes)
        left = {name: None if name in skipped else grad for name, grad in grads.items()}
        if loss_scale is not None:
            arguments["loss_scale"] = loss_scale
        assert self.optimizer.step(left, **arguments).applied
        assert_same(self.peer, self.params)

    def move_to(self, peer):
        self.peer = self.session.peer = peer


@pytest.mark.parametrize("level", LEVELS)
def test_a_change_takes_effect_with_the_next_push_as_in_the_library(make_model, peer, level):
    params = arrays(1)
    make_model(peer, params, level)
    twin = Twin(peer, params, na.Adam(params))
    twin.push_and_check()
    answer = change(peer, pb.GroupChange(lr=0.1, beta1=0.5, eps=1e-6, weight_decay=0.01, decoupled_weight_decay=True))
    assert (answer.change, answer.version, answer.duplicate) == (1, 1, False)
    twin.optimizer.param_groups[0].update(
        lr=0.1, betas=(0.5, 0.999), eps=1e-6, weight_decay=0.01, decoupled_weight_decay=True
    )
    twin.push_and_check()
    change(peer, pb.GroupChange(eps_mode=model_pb2.EPS_MODE_ALGORITHM1, maximize=True, beta2=0.9), seen=1)
    twin.optimizer.param_groups[0].update(eps_mode="algorithm1", maximize=True, betas=(0.5, 0.9))
    twin.push_and_check()
    model = model_of(peer)
    assert (model.change, model.changed_at_version) == (2, 2)
    assert model.settings.groups[0].hyperparameters.lr == 0.1
    assert model.spec.hyperparameters.lr == 0.001  # the one that it was created with


@pytest.mark.parametrize("level", LEVELS)
def test_groups_have_the_bits_of_the_librarys_param_groups(make_model, peer, level):
    params = arrays(1)
    make_model(peer, params, level, model_pb2.Settings(groups=GROUPS, max_grad_norm=2.0))
    first = {name: params[name] for name in ("c", "a")}
    optimizer = na.Adam(
        [
            {"params": first, "lr": 0.05, "weight_decay": 0.1},
            {"params": {"b": params["b"]}, "lr": 0.01, "betas": (0.8, 0.999)},
        ]
    )
    twin = Twin(peer, params, optimizer)
    for _ in range(2):
        twin.push_and_check(max_grad_norm=2.0)
    change(peer, pb.GroupChange(group=1, lr=0.5))
    optimizer.param_groups[1]["lr"] = 0.5
    twin.push_and_check(max_grad_norm=2.0)
    assert [tuple(group.params) for group in model_of(peer).settings.groups] == [("c", "a"), ()]


@pytest.mark.parametrize("level", LEVELS)
def test_clipping_and_a_loss_scale_have_the_bits_of_the_librarys_step(make_model, peer, level):
    params = arrays(1)
    make_model(peer, params, level, model_pb2.Settings(max_grad_norm=3.0, clip_value=0.05))
    twin = Twin(peer, params, na.Adam(params))
    twin.push_and_check(max_grad_norm=3.0, clip_value=0.05)
    twin.push_and_check(loss_scale=1024.0, scale=1e3, max_grad_norm=3.0, clip_value=0.05)
    change(peer, max_grad_norm=0.0)
    twin.push_and_check(loss_scale=3.0, clip_value=0.05)
    change(peer, clip_value=0.0, seen=1)
    twin.push_and_check()
    twin.push_and_check(loss_scale=7e10, scale=1e20)  # beyond the limit of gradients without a scale


@pytest.mark.parametrize("level", LEVELS)
def test_a_frozen_array_keeps_its_bits_and_its_step_and_thaws(make_model, peer, level):
    params = arrays(1)
    make_model(peer, params, level, model_pb2.Settings(frozen=["b"], max_grad_norm=1.0))
    twin = Twin(peer, params, na.Adam(params))
    twin.push_and_check(skipped=("b",), max_grad_norm=1.0)
    change(peer, freeze=["a"], unfreeze=["b"])
    twin.push_and_check(skipped=("a",), max_grad_norm=1.0)
    change(peer, freeze=["a", "b", "c"], seen=1)
    twin.push_and_check(skipped=("a", "b", "c"), max_grad_norm=1.0)
    change(peer, unfreeze=["a", "b", "c"], seen=2)
    twin.push_and_check(max_grad_norm=1.0)


@pytest.mark.parametrize("level", LEVELS)
def test_a_schedule_gives_each_version_its_rate(make_model, peer, level):
    params = arrays(1)
    line = model_pb2.Schedule(linear=model_pb2.LinearRate(begin=0.0, end=0.1, steps=4))
    wave = model_pb2.Schedule(cosine=model_pb2.CosineRate(begin=0.1, end=0.01, steps=3))
    chained = model_pb2.Schedule(chained=model_pb2.ChainedRate(schedules=[line, wave], boundaries=[2]))
    make_model(peer, params, level, model_pb2.Settings(groups=[model_pb2.ParamGroup(schedule=chained)]))
    rates = [0.0, 0.1 * 0.25, 0.1, 0.01 + (0.1 - 0.01) * 0.75, 0.01 + (0.1 - 0.01) * 0.25, 0.01, 0.01]
    twin = Twin(peer, params, na.Adam(params))
    for rate in rates:
        assert model_of(peer).settings.groups[0].hyperparameters.lr == rate
        twin.optimizer.param_groups[0]["lr"] = rate
        twin.push_and_check()


@pytest.mark.parametrize("level", KEPT)
def test_after_a_kill_the_settings_and_the_bits_are_there_and_a_retry_gets_its_answer(
    make_model, level, tmp_path, processes, peers
):
    (tmp_path / "memory").mkdir()
    where = {"memory_dir": str(tmp_path / "memory")}
    process = processes(tmp_path / "data", **where)
    peer, params = peers(process.address), arrays(1)
    make_model(peer, params, level, model_pb2.Settings(groups=GROUPS))
    first = {name: params[name] for name in ("c", "a")}
    optimizer = na.Adam(
        [
            {"params": first, "lr": 0.05, "weight_decay": 0.1},
            {"params": {"b": params["b"]}, "lr": 0.01, "betas": (0.8, 0.999)},
        ]
    )
    twin = Twin(peer, params, optimizer)
    twin.push_and_check()
    schedule = model_pb2.Schedule(inverse_square_root=model_pb2.InverseSquareRootRate(lr=0.2, timescale=1))
    groups = [pb.GroupChange(group=0, lr=0.02), pb.GroupChange(group=1, schedule=schedule)]
    change(peer, *groups, request_id="one", freeze=["a"], max_grad_norm=1.5)
    for death in range(2):
        optimizer.param_groups[0]["lr"] = 0.02
        for _ in range(2):
            optimizer.param_groups[1]["lr"] = 0.2 * (1 / (1 + twin.number)) ** 0.5
            twin.push_and_check(skipped=("a",), max_grad_norm=1.5, loss_scale=3.0 if death else None)
        before = model_of(peer)
        process.kill()
        process = processes(tmp_path / "data", **where)
        peer = peers(process.address)
        twin.move_to(peer)
        assert_same(peer, params)
        assert model_of(peer).settings == before.settings
        assert model_of(peer).state == before.state
        again = change(peer, *groups, request_id="one", freeze=["a"], max_grad_norm=1.5)
        assert (again.change, again.version, again.duplicate) == (1, 1, True)
    optimizer.param_groups[1]["lr"] = 0.2 * (1 / (1 + twin.number)) ** 0.5
    twin.push_and_check(skipped=("a",), max_grad_norm=1.5)


def test_a_snapshot_has_the_settings(make_model, config, peers):
    from numba_adam.server.embedded import Server

    with Server(config) as server:
        peer = peers(server.address)
        make_model(peer, arrays(1))
        change(peer, pb.GroupChange(lr=0.3), request_id="one")
    with Server(config) as server:  # no push came after the change: it was saved at the stop all the same
        peer = peers(server.address)
        model = model_of(peer)
        assert (model.change, model.settings.groups[0].hyperparameters.lr) == (1, 0.3)
        assert change(peer, pb.GroupChange(lr=0.3), request_id="one").duplicate


def test_a_late_change_changes_nothing_that_a_newer_one_decided(make_model, peer, refused):
    make_model(peer, arrays(1))
    late = pb.UpdateModelRequest(
        model="model",
        state_id=peer.state().state_id,
        request_id="late",
        change=pb.SettingsChange(groups=[pb.GroupChange(lr=0.5)]),
    )
    change(peer, pb.GroupChange(lr=0.1))
    before = model_of(peer)
    refusal = refused(lambda: peer.stub.UpdateModel(late))
    assert (refusal.detail.reason, refusal.detail.change) == (Reason.REASON_SETTINGS_CHANGED, 1)
    assert model_of(peer) == before
    change(peer, pb.GroupChange(lr=0.2), seen=1, request_id="twice")
    change(peer, pb.GroupChange(lr=0.3), seen=2)
    again = change(peer, pb.GroupChange(lr=0.2), seen=1, request_id="twice")
    assert (again.change, again.duplicate) == (2, True)
    assert again.model.settings.groups[0].hyperparameters.lr == 0.3


def test_so_does_one_whose_answer_was_forgotten(make_model, peer, refused):
    make_model(peer, arrays(1))
    change(peer, pb.GroupChange(lr=0.5), request_id="first")
    for number in range(1, 70):
        change(peer, pb.GroupChange(lr=0.1), seen=number)
    refusal = refused(lambda: change(peer, pb.GroupChange(lr=0.5), request_id="first"))
    assert refusal.detail.reason == Reason.REASON_SETTINGS_CHANGED
    assert model_of(peer).settings.groups[0].hyperparameters.lr == 0.1


def test_a_change_for_a_deleted_models_state_changes_no_newer_model(make_model, peer, refused):
    make_model(peer, arrays(1))
    state = peer.state()
    peer.stub.DeleteModel(pb.DeleteModelRequest(model="model", state_id=state.state_id))
    peer.create(arrays(1))
    refusal = refused(lambda: change(peer, pb.GroupChange(lr=0.5), state_id=state.state_id))
    assert refusal.detail.reason == Reason.REASON_REWOUND
    assert model_of(peer).change == 0


SCHEDULE = model_pb2.Schedule
DEEP = SCHEDULE(constant=model_pb2.ConstantRate(lr=1))
for _ in range(9):
    DEEP = SCHEDULE(chained=model_pb2.ChainedRate(schedules=[DEEP]))
BAD = {
    "nothing": {},
    "an empty group": {"groups": [pb.GroupChange()]},
    "no such group": {"groups": [pb.GroupChange(group=2, lr=0.1)]},
    "a negative rate": {"groups": [pb.GroupChange(lr=-0.1)]},
    "a rate that is no number": {"groups": [pb.GroupChange(lr=float("nan"))]},
    "a rate that float32 cannot hold": {"groups": [pb.GroupChange(lr=1e39)]},
    "a beta of 1": {"groups": [pb.GroupChange(beta2=1.0)]},
    "a valid group before a bad one": {"groups": [pb.GroupChange(group=0, lr=0.1), pb.GroupChange(group=1, eps=-1)]},
    "a rate and a schedule": {"groups": [pb.GroupChange(lr=0.1, schedule=SCHEDULE(constant={"lr": 1}))]},
    "a schedule of no kind": {"groups": [pb.GroupChange(schedule=SCHEDULE())]},
    "a schedule that float32 cannot hold": {"groups": [pb.GroupChange(schedule=SCHEDULE(constant={"lr": 1e39}))]},
    "a negative end": {"groups": [pb.GroupChange(schedule=SCHEDULE(linear={"begin": 1, "end": -1, "steps": 9}))]},
    "no steps": {"groups": [pb.GroupChange(schedule=SCHEDULE(cosine={"begin": 1, "end": 0, "steps": 0}))]},
    "boundaries that fall": {
        "groups": [pb.GroupChange(schedule=SCHEDULE(piecewise={"rates": [1, 2, 3], "boundaries": [5, 5]}))]
    },
    "too few boundaries": {"groups": [pb.GroupChange(schedule=SCHEDULE(piecewise={"rates": [1, 2, 3]}))]},
    "too many rates": {
        "groups": [pb.GroupChange(schedule=SCHEDULE(piecewise={"rates": [1] * 300, "boundaries": range(1, 300)}))]
    },
    "an empty chain": {"groups": [pb.GroupChange(schedule=SCHEDULE(chained={}))]},
    "a chain of too many levels": {"groups": [pb.GroupChange(schedule=DEEP)]},
    "an unknown place of eps": {"groups": [pb.GroupChange(eps_mode=7)]},  # type: ignore[arg-type]
    "a negative norm": {"max_grad_norm": -1.0},
    "a norm that is no number": {"max_grad_norm": float("nan")},
    "an infinite element": {"clip_value": float("inf")},
    "an element that float32 cannot hold": {"clip_value": 1e-300},
    "an unknown array": {"freeze": ["a", "z"]},
    "an array both frozen and thawed": {"freeze": ["a"], "unfreeze": ["a"]},
}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_a_bad_change_is_refused_and_changes_nothing(make_model, peer, refused, values):
    make_model(peer, arrays(1), settings=model_pb2.Settings(groups=GROUPS))
    before = model_of(peer)
    groups = values.get("groups", [])
    refusal = refused(lambda: change(peer, *groups, **{key: values[key] for key in values if key != "groups"}))
    assert refusal.detail.reason == Reason.REASON_INVALID_REQUEST
    assert model_of(peer) == before


@pytest.mark.parametrize("field", ["state_id", "request_id", "seen_change"])
def test_a_change_without_its_identity_is_refused(make_model, peer, refused, field):
    make_model(peer, arrays(1))
    fields = {"state_id": peer.state().state_id, "request_id": "r", "seen_change": 0}
    fields[field] = 1 if field == "seen_change" else ""
    request = pb.UpdateModelRequest(model="model", change=pb.SettingsChange(clip_value=1.0), **fields)
    assert refused(lambda: peer.stub.UpdateModel(request)).detail.reason == Reason.REASON_INVALID_REQUEST
    assert model_of(peer).change == 0


def test_an_id_with_other_content_is_refused(make_model, peer, refused):
    make_model(peer, arrays(1))
    change(peer, pb.GroupChange(lr=0.5), request_id="same")
    refusal = refused(lambda: change(peer, pb.GroupChange(lr=0.6), request_id="same", seen=1))
    assert refusal.detail.reason == Reason.REASON_INVALID_REQUEST
    assert model_of(peer).settings.groups[0].hyperparameters.lr == 0.5


BAD_SETTINGS = {
    "an unknown array": model_pb2.Settings(groups=[model_pb2.ParamGroup(params=["z"])]),
    "an array in two groups": model_pb2.Settings(
        groups=[model_pb2.ParamGroup(params=["a"]), model_pb2.ParamGroup(params=["b", "a"])]
    ),
    "no array in the first group": model_pb2.Settings(groups=[model_pb2.ParamGroup(), model_pb2.ParamGroup()]),
    "no array left": model_pb2.Settings(groups=[model_pb2.ParamGroup(params=["a", "b", "c"]), model_pb2.ParamGroup()]),
    "another amsgrad": model_pb2.Settings(
        groups=[model_pb2.ParamGroup(params=["a"], hyperparameters=model_pb2.Hyperparameters(amsgrad=True))]
    ),
    "a norm of 0": model_pb2.Settings(max_grad_norm=0.0),
    "an unknown frozen array": model_pb2.Settings(frozen=["z"]),
}


@pytest.mark.parametrize("settings", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_model_with_bad_settings_is_not_created(make_model, peer, refused, settings):
    refusal = refused(lambda: make_model(peer, arrays(1), settings=settings))
    assert refusal.detail.reason == Reason.REASON_INVALID_REQUEST
    assert not peer.stub.ListModels(pb.ListModelsRequest()).models


@pytest.mark.parametrize("loss_scale", [0.0, -1.0, float("nan"), float("inf"), 1e-40, 1e300])
def test_a_push_with_an_impossible_loss_scale_is_rejected(make_model, peer, refused, loss_scale):
    make_model(peer, arrays(1))
    session = peer.session()
    refusal = refused(lambda: session.push(arrays(2), loss_scale=loss_scale))
    assert refusal.detail.reason == Reason.REASON_PUSH_MISMATCH
    assert refusal.detail.sequence_recorded
    assert_same(peer, arrays(1))


def test_the_same_push_with_another_loss_scale_is_another_push(make_model, peer, refused):
    make_model(peer, arrays(1))
    session = peer.session()
    session.push(arrays(2), loss_scale=2.0)
    refusal = refused(lambda: session.push(arrays(2), sequence=1, loss_scale=4.0))
    assert refusal.detail.reason == Reason.REASON_SEQUENCE_REUSED
    assert session.push(arrays(2), sequence=1, loss_scale=2.0).duplicate
