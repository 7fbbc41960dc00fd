"""A worker's normal calls: create, pull, push in every form, and local refusals."""

from __future__ import annotations

import threading
from concurrent import futures

import numpy as np
import pytest

from numba_adam.client import Ack, ParameterClient
from numba_adam.errors import (
    ConfigurationError,
    DeadlineExceededError,
    DtypeError,
    HyperparameterError,
    InvalidRequestError,
    LayoutError,
    ModelExistsError,
    ModelNotFoundError,
    NamesError,
    NonFiniteError,
    ReadOnlyError,
    ServiceError,
    SessionFencedError,
    ShapeError,
)


def adam(param, grad, exp_avg, exp_avg_sq, step, lr):
    """The update as the paper has it, in float64: the oracle."""
    exp_avg = 0.9 * exp_avg + 0.1 * grad
    exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * grad * grad
    step_size = lr * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    return param - step_size * exp_avg / (np.sqrt(exp_avg_sq) + 1e-8), exp_avg, exp_avg_sq


def same(left, right):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pushes_make_the_steps_of_adam(client, arrays, gradients_of, dtype):
    params = {name: array.astype(dtype) for name, array in arrays.items()}
    model = client.create_model("m", params, lr=0.01)
    oracle = {name: (array.astype(np.float64), 0.0, 0.0) for name, array in params.items()}
    for step in range(1, 6):
        grads = gradients_of(params, step)
        ack = model.push(grads)
        assert (ack.version, ack.applied, ack.duplicate, ack.durability) == (step, True, False, "process")
        oracle = {name: adam(*oracle[name][:1], grads[name].astype(float), *oracle[name][1:], step, 0.01)
                  for name in params}  # fmt: skip
    pulled = model.pull()
    assert model.version == 5
    for name, array in pulled.items():
        assert (array.dtype, array.shape) == (np.dtype(dtype), params[name].shape)
        np.testing.assert_allclose(array, oracle[name][0], rtol=1e-5, atol=1e-6)


def test_a_pull_returns_the_initial_values(client, arrays):
    model = client.create_model("m", arrays)
    same(model.pull(), arrays)
    assert (model.version, model.name) == (0, "m")
    assert dict(model.spec.shapes) == {name: array.shape for name, array in arrays.items()}
    assert model.spec.hyperparameters.lr == 1e-3


def test_a_pull_returns_views_of_one_flat_vector(client, arrays):
    pulled = client.create_model("m", arrays).pull()
    assert pulled["w"].base is not None
    assert pulled["w"].base is pulled["b"].base
    assert pulled["w"].flags.writeable


def test_a_pull_can_write_to_given_arrays(client, arrays):
    model = client.create_model("m", arrays)
    out = {name: np.full_like(array, 9) for name, array in arrays.items()}
    pulled = model.pull(out=out)
    assert all(pulled[name] is out[name] for name in out)
    same(out, arrays)


def test_an_array_without_a_gradient_does_not_change(client, arrays, gradients_of):
    model = client.create_model("m", arrays, lr=0.1)
    grads = gradients_of(arrays, 1)
    model.push({**grads, "b": None})
    pulled = model.pull()
    np.testing.assert_array_equal(pulled["b"], arrays["b"])
    assert not np.array_equal(pulled["w"], arrays["w"])
    assert model.push(dict.fromkeys(arrays)).version == 2


def test_push_pull_returns_the_updated_parameters(client, arrays, gradients_of):
    model = client.create_model("m", arrays, lr=0.1)
    params = model.push_pull(gradients_of(arrays, 1))
    assert (model.version, model.last_ack.version) == (1, 1)
    same(params, model.pull())


def test_staleness_is_counted_from_the_last_pull(server, connect, arrays, gradients_of):
    ours = connect(server.address).create_model("m", arrays)
    others = connect(server.address).open_model("m")
    ours.pull()
    others.push(gradients_of(arrays, 1))
    others.push(gradients_of(arrays, 2))
    assert ours.push(gradients_of(arrays, 3)).staleness == 2
    ours.pull()
    assert ours.push(gradients_of(arrays, 4)).staleness == 0


def test_push_async_keeps_the_order_of_the_calls(client, arrays, gradients_of):
    model = client.create_model("m", arrays)
    pushes = [model.push_async(gradients_of(arrays, seed)) for seed in range(20)]
    last = model.push(gradients_of(arrays, 20))
    assert [push.result().version for push in pushes] == list(range(1, 21))
    assert last.version == 21


def test_push_async_from_a_callback_does_not_deadlock(client, arrays, gradients_of):
    """The queue is full and a thread waits for it, while callbacks on the sender's thread push more."""
    model, grads = client.create_model("m", arrays), gradients_of(arrays, 0)
    wanted, versions, done = 20, [], threading.Event()

    def again(push: futures.Future[Ack]) -> None:
        versions.append(push.result().version)
        if len(versions) < wanted:
            model.push_async(grads).add_done_callback(again)
            model.push_async(grads)
        else:
            done.set()

    model.push_async(grads).add_done_callback(again)
    others = [model.push_async(grads) for _ in range(20)]
    assert done.wait(800)
    assert versions == sorted(versions)
    assert all(push.result(800).applied for push in others)


def test_closing_the_client_ends_a_push_that_waits_for_the_queue(server, connect, arrays, gradients_of):
    """A callback closes the client on the sender's own thread."""
    client = connect(server.address)
    model, grads = client.create_model("m", arrays), gradients_of(arrays, 0)
    model.push_async(grads).add_done_callback(lambda _: client.close())

    def push_on() -> None:
        while True:
            model.push_async(grads)

    with pytest.raises(ServiceError, match="the client was closed"):
        push_on()


def test_a_rejected_push_in_the_background_does_not_stop_the_next(client, arrays, gradients_of):
    model = client.create_model("m", arrays)
    bad = {**gradients_of(arrays, 1), "b": np.full(7, np.nan, np.float32)}
    first, second, third = (model.push_async(g) for g in (gradients_of(arrays, 0), bad, gradients_of(arrays, 2)))
    assert first.result().version == 1
    with pytest.raises(NonFiniteError):
        second.result()
    assert third.result().version == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_gradient_is_refused_and_the_next_push_works(client, arrays, gradients_of, bad):
    model = client.create_model("m", arrays)
    grads = gradients_of(arrays, 1)
    grads["b"][3] = bad
    with pytest.raises(NonFiniteError, match=r"'b' holds .* at element 3"):
        model.push(grads)
    same(model.pull(), arrays)
    with pytest.raises(NonFiniteError):
        model.push_pull(grads)
    assert model.push(gradients_of(arrays, 2)).version == 1


def test_threads_can_share_a_model(client, arrays, gradients_of):
    model = client.create_model("m", arrays)

    def work(worker: int) -> list[int]:
        versions = [model.push(gradients_of(arrays, worker * 100 + step)).version for step in range(10)]
        model.pull(min_version=versions[-1])
        return versions

    with futures.ThreadPoolExecutor(6) as pool:
        versions = [version for result in pool.map(work, range(6)) for version in result]
    assert sorted(versions) == list(range(1, 61))


def test_a_pull_waits_for_the_requested_version(server, connect, arrays, gradients_of):
    model = connect(server.address).create_model("m", arrays)
    other = connect(server.address).open_model("m")
    with futures.ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(model.pull, min_version=2)
        for seed in (1, 2):
            other.push(gradients_of(arrays, seed))
        pulled.result(timeout=800)
    assert model.version >= 2


def test_a_version_that_is_not_reached_in_time_is_an_error(server, connect, arrays, hurry):
    model = connect(server.address).create_model("m", arrays)
    hurry(model, 0.3)
    with pytest.raises(DeadlineExceededError, match=r"pull of model 'm': gave up after .* within 0.3 s"):
        model.pull(min_version=1)


@pytest.mark.parametrize("min_version", [-1, 1.5, "2", 1 << 64])
def test_an_invalid_version_is_refused(client, arrays, min_version):
    model = client.create_model("m", arrays)
    with pytest.raises(InvalidRequestError, match=r"min_version: expected a whole number from 0 to \d+, got "):
        model.pull(min_version=min_version)


# --- refusals before anything is sent ---------------------------------------------------------------------------

MISFITS = {
    "missing": (lambda g: {"w": g["w"]}, NamesError, r"grads lacks 'empty', 'b', 'scale'; give None"),
    "strange": (lambda g: {**g, "v": g["b"]}, NamesError, r"grads has 'v', which the model does not; it has 'w'"),
    "not a dict": (lambda g: g["w"], NamesError, "grads: expected a dict .* got a ndarray"),
    "shape": (
        lambda g: {**g, "b": np.ones(8, np.float32)},
        ShapeError,
        r"grads\['b'\]: expected the model's shape \(7,\), got \(8,\)",
    ),
    "dtype": (
        lambda g: {**g, "b": np.ones(7)},
        DtypeError,
        r"grads\['b'\]: expected the model's dtype float32, bfloat16 or float16, got float64",
    ),
    "layout": (lambda g: {**g, "b": np.ones(14, np.float32)[::2]}, LayoutError, r"grads\['b'\]"),
}


@pytest.mark.parametrize(("spoil", "error", "message"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("form", ["push", "push_pull", "push_async"])
def test_unsuitable_gradients_are_refused_before_anything_is_sent(
    client, arrays, gradients_of, form, spoil, error, message
):
    model = client.create_model("m", arrays)
    with pytest.raises(error, match=message):
        getattr(model, form)(spoil(gradients_of(arrays, 1)))
    assert client.status().models[0].pushes_rejected == 0
    assert model.push(gradients_of(arrays, 2)).version == 1


def test_unsuitable_output_arrays_are_refused(client, arrays):
    model = client.create_model("m", arrays)
    with pytest.raises(NamesError, match="out lacks 'w', 'empty', 'scale'; give"):
        model.pull(out={"b": arrays["b"]})
    frozen = {name: array.copy() for name, array in arrays.items()}
    frozen["b"].flags.writeable = False
    with pytest.raises(ReadOnlyError, match=r"out\['b'\]"):
        model.pull(out=frozen)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, NamesError, "at least one entry"),
        (1.0, NamesError, "params: expected a dict of name -> array"),
        ({3: np.ones(2)}, NamesError, "params: expected a dict of name -> array.* got the name 3"),
        ({"a\ud800": np.ones(2)}, NamesError, "use only printable characters in names"),
        (
            {"a": np.ones(2), "b": np.ones(2, np.float32)},
            DtypeError,
            r"got float32 for params\['b'\] and float64 for params\['a'\]",
        ),
        ({"a": np.ones((4, 4)).T[:2]}, LayoutError, r"params\['a'\]"),
    ],
)
def test_invalid_initial_values_are_refused(client, params, error, message):
    with pytest.raises(error, match=message):
        client.create_model("m", params)


@pytest.mark.parametrize("name", [None, 5, "half of a pair \ud800"])
def test_a_model_name_that_cannot_be_encoded_is_refused(client, arrays, name):
    for call in (lambda: client.create_model(name, arrays), lambda: client.open_model(name)):
        with pytest.raises(InvalidRequestError, match=r"model name: expected text .* got "):
            call()
    with pytest.raises(InvalidRequestError, match=r"model name: expected text .* got "):
        client.delete_model(name)


def test_settings_out_of_range_are_refused_before_anything_is_sent(client, arrays):
    with pytest.raises(HyperparameterError, match=r"lr=-1"):
        client.create_model("m", arrays, lr=-1)
    with pytest.raises(ConfigurationError, match="mode: expected 'async' or 'sync' or 'ssp', got 'swarm'"):
        client.create_model("m", arrays, mode="swarm")
    with pytest.raises(HyperparameterError, match="workers"):
        client.create_model("m", arrays, mode="sync")
    with pytest.raises(HyperparameterError, match="backup: expected a whole number from 0 to 1, got 2"):
        client.create_model("m", arrays, mode="sync", workers=2, backup=2)
    with pytest.raises(ConfigurationError, match='only mode="sync" has rounds'):
        client.create_model("m", arrays, workers=2)
    with pytest.raises(InvalidRequestError, match=r"\.\./m"):
        client.create_model("../m", arrays)
    assert client.list_models() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "here"}, "address: expected HOST:PORT.* got 'here'"),
        ({"address": ""}, "address: expected HOST:PORT.* got ''"),
        ({"address": "http://127.0.0.1:50051"}, "got the URL .*; write '127.0.0.1:50051'"),
        ({"address": "https://localhost/"}, "got the URL .*; write 'localhost:50051'"),
        ({"address": "grpc://[::1]:7"}, r"got the URL .*; write '\[::1\]:7'"),
        ({"worker_id": ""}, "1 to 128 printable characters"),
        ({"worker_id": "w" * 129}, "1 to 128 printable characters"),
        ({"worker_id": "a\nb"}, r"1 to 128 printable characters, got 'a\\nb'"),
        ({"timeout_seconds": 0}, "expected a finite number above 0, got 0"),
        ({"timeout_seconds": float("inf")}, "expected a finite number above 0, got inf"),
        ({"timeout_seconds": "3"}, "timeout_seconds: expected a finite number above 0, got '3'"),
        ({"timeout_seconds": None}, "timeout_seconds: expected a finite number above 0, got None"),
    ],
)
def test_a_client_with_wrong_settings_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        ParameterClient(**{"address": "127.0.0.1:1", **arguments})


# --- models on the server ---------------------------------------------------------------------------------------


def test_workers_that_create_the_same_model_share_it(server, connect, arrays):
    ready = threading.Barrier(6)

    def work(_: int) -> str:
        client = connect(server.address)
        ready.wait()
        return client.create_model("m", arrays, lr=0.1, exist_ok=True).state_id

    with futures.ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(work, range(6)))) == 1
    assert [model.name for model in connect(server.address).list_models()] == ["m"]


def test_a_different_model_is_refused_and_the_error_lists_differences(server, connect, arrays):
    connect(server.address).create_model("m", arrays, lr=0.1)
    other = connect(server.address)
    with pytest.raises(ModelExistsError, match="exist"):
        other.create_model("m", arrays, lr=0.1)
    with pytest.raises(ModelExistsError, match=r"lr: the model has 0\.1, asked for 0\.2"):
        other.create_model("m", arrays, lr=0.2, exist_ok=True)
    with pytest.raises(ModelExistsError, match=r"array 'b': the model has shape \(7,\), asked for \(8,\)"):
        other.create_model("m", {**arrays, "b": np.zeros(8, np.float32)}, lr=0.1, exist_ok=True)
    with pytest.raises(ModelExistsError, match="array 'v': the model does not have it"):
        other.create_model("m", {**arrays, "v": arrays["b"]}, lr=0.1, exist_ok=True)
    with pytest.raises(ModelExistsError, match="dtype: the model has float32, asked for float64"):
        other.create_model("m", {name: a.astype(np.float64) for name, a in arrays.items()}, lr=0.1, exist_ok=True)


def test_models_are_opened_listed_and_deleted(client, arrays):
    with pytest.raises(ModelNotFoundError, match="'m'"):
        client.open_model("m")
    client.create_model("m", arrays)
    assert client.open_model("m") is client.open_model("m")
    assert [(model.name, model.parameter_count) for model in client.list_models()] == [("m", 23)]
    client.delete_model("m")
    assert client.list_models() == []
    with pytest.raises(ModelNotFoundError):
        client.delete_model("m")


def test_a_model_created_again_with_a_name_starts_from_zero(client, arrays, gradients_of):
    old = client.create_model("m", arrays)
    old.push(gradients_of(arrays, 1))
    client.delete_model("m")
    new = client.create_model("m", arrays)
    rewinds: list[int] = []
    new.on_rewind(rewinds.append)
    assert (new.version, new.push(gradients_of(arrays, 2)).version, rewinds) == (0, 1, [])


def test_an_old_handle_refuses_a_new_model_with_reordered_arrays(server, connect):
    """Both have the same size, so an old handle would exchange the arrays' values."""
    ones, twos = np.ones(3, np.float32), np.full(3, 2, np.float32)
    other = connect(server.address)
    other.create_model("m", {"a": ones, "b": twos})
    client = connect(server.address)
    old = client.open_model("m")
    same(old.pull(), {"a": ones, "b": twos})
    other.delete_model("m")
    other.create_model("m", {"b": twos, "a": ones})
    for _ in range(2):  # not only where it is noticed first
        with pytest.raises(InvalidRequestError, match="deleted and created again with other arrays"):
            old.pull()
    with pytest.raises(InvalidRequestError, match="deleted and created again with other arrays"):
        old.push({"a": ones, "b": twos})
    same(client.open_model("m").pull(), {"b": twos, "a": ones})


def test_snapshot_and_status_return_records(client, arrays, gradients_of):
    model = client.create_model("m", arrays)
    model.push(gradients_of(arrays, 1))
    [snapshot] = client.snapshot("m")
    assert (snapshot.model, snapshot.version) == ("m", 1)
    assert snapshot.size_bytes > 3 * sum(array.nbytes for array in arrays.values())
    assert model.push(gradients_of(arrays, 2)).snapshot_version == 1
    assert [info.model for info in client.snapshot()] == ["m"]
    status = client.status()
    assert (status.models[0].pushes_applied, status.models[0].workers, status.threads > 0) == (2, 1, True)
    assert 0 < status.memory_used_bytes <= status.memory_budget_bytes


def test_a_second_process_of_the_same_worker_takes_over(server, connect, arrays, gradients_of):
    old = connect(server.address, "w").create_model("m", arrays)
    old.push(gradients_of(arrays, 1))
    new = connect(server.address, "w").open_model("m")
    assert new.push(gradients_of(arrays, 2)).version == 2
    for _ in range(2):  # it does not take over in its turn
        with pytest.raises(SessionFencedError, match="worker_id"):
            old.push(gradients_of(arrays, 3))
    assert new.push(gradients_of(arrays, 4)).version == 3


def test_an_ack_cannot_be_modified():
    ack = Ack(version=1, durability="memory", snapshot_version=0)
    with pytest.raises(AttributeError):
        ack.version = 2
