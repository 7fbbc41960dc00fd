"""`Model.worker`: the loop pulls, takes gradients, pushes, and goes on after a crash of the server."""

from __future__ import annotations

import threading
from concurrent import futures

import numpy as np
import pytest

from numba_adam.client import Step
from numba_adam.errors import (
    ConfigurationError,
    NamesError,
    NonFiniteError,
    ServiceError,
    SessionFencedError,
    ShapeError,
)


def initial() -> dict[str, np.ndarray]:
    return {"w": np.array([1, -2, 3], np.float32), "b": np.array(0.5, np.float32)}


def gradient(params: dict[str, np.ndarray], batch: float) -> dict[str, np.ndarray]:
    """The gradient of a squared distance: it depends on the parameters and on the batch."""
    return {name: 2 * (array - np.float32(batch)) for name, array in params.items()}


def run(worker, gradient=gradient) -> list[int]:
    """Run a loop; return the versions that it computed gradients for."""
    versions = []
    for batch, step in worker:
        versions.append(step.version)
        step.grads = gradient(step.params, batch)
    return versions


def check_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], strict=True)


@pytest.fixture
def trained(client):
    """Train a second model by single calls; return its parameters after each batch."""

    def train(batches: list[float]) -> list[dict[str, np.ndarray]]:
        model = client.create_model("by-hand", initial(), lr=0.1)
        history = [model.pull()]
        for batch in batches:
            model.push(gradient(history[-1], batch))
            history.append(model.pull())
        return history

    return train


def test_a_loop_makes_the_steps_of_single_calls(client, trained):
    batches = [0.5, -1.0, 2.0, 0.0]
    model, history = client.create_model("m", initial(), lr=0.1), trained(batches)
    seen = []
    for batch, step in model.worker(batches):
        assert isinstance(step, Step)
        check_same(step.params, history[step.version])
        seen.append((batch, step.version, step.ack and step.ack.version))
        step.grads = gradient(step.params, batch)
    assert seen == [(0.5, 0, None), (-1.0, 1, 1), (2.0, 2, 2), (0.0, 3, 3)]
    check_same(model.pull(), history[4])


def test_a_loop_pulls_into_given_arrays(client, trained):
    batches = [0.5, -1.0, 2.0]
    model, history = client.create_model("m", initial(), lr=0.1), trained(batches)
    own = {name: np.zeros_like(array) for name, array in initial().items()}
    for batch, step in model.worker(batches, own):
        assert step.params["w"] is own["w"]
        check_same(own, history[step.version])
        step.grads = gradient(own, batch)
    check_same(own, history[3])


def test_a_loop_runs_once_through_the_batches_each_time(client, trained):
    batches = [0.5, -1.0]
    model, history = client.create_model("m", initial(), lr=0.1), trained(batches * 3)
    worker = model.worker(batches)
    for _ in range(3):
        for batch, step in worker:
            step.grads = gradient(step.params, batch)
    check_same(model.pull(), history[6])
    assert client.status().models[1].workers == 1


def test_a_loop_without_batches_pushes_nothing(client):
    model = client.create_model("m", initial())
    assert list(model.worker([])) == []
    check_same(model.pull(), initial())


def test_a_skipped_pass_and_one_that_is_left_push_nothing(client, trained):
    model, history = client.create_model("m", initial(), lr=0.1), trained([1.0, 3.0])
    versions = []
    for batch, step in model.worker([1.0, 2.0, 3.0, 4.0]):
        versions.append(step.version)
        step.grads = gradient(step.params, batch)
        if batch == 2.0:
            step.skip()
        if batch == 4.0:
            break
    assert versions == [0, 1, 1, 2]
    check_same(model.pull(), history[2])


def test_an_exception_in_the_loop_is_passed_on_and_pushes_nothing(client):
    model = client.create_model("m", initial(), lr=0.1)
    worker = model.worker([1.0, 2.0])

    def failing(params: dict[str, np.ndarray], batch: float) -> dict[str, np.ndarray]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(worker, failing)
    check_same(model.pull(), initial())
    assert run(worker) == [0, 1]


def test_a_pass_without_gradients_is_an_error(client):
    model = client.create_model("m", initial())
    with pytest.raises(NamesError, match=r"step\.grads is not set.* or call step\.skip\(\)"):
        for _ in model.worker([1.0]):
            pass
    with pytest.raises(NamesError, match=r"step\.grads is not set"):
        for _ in model.worker([1.0], initial()):
            pass
    assert model.pull()["w"].tolist() == initial()["w"].tolist()


def test_unsuitable_arguments_are_refused_before_the_loop(client):
    model = client.create_model("m", initial())
    with pytest.raises(NamesError, match=r"batches: expected an iterable, .* got 5"):
        model.worker(5)
    with pytest.raises(NamesError, match="params lacks 'b'"):
        model.worker([1.0], {"w": initial()["w"]})
    with pytest.raises(ShapeError, match=r"params\['w'\]: expected the model's shape"):
        model.worker([1.0], {**initial(), "w": np.zeros(2, np.float32)})
    with pytest.raises(ConfigurationError, match="worker_id: expected 1 to 128 printable characters, got ''"):
        model.worker([1.0], worker_id="")


def test_a_gradient_that_is_refused_ends_the_loop_and_the_next_loop_works(client):
    model = client.create_model("m", initial(), lr=0.1)
    worker = model.worker([1.0, 2.0])
    with pytest.raises(NonFiniteError):
        run(worker, lambda *_: {"w": np.full(3, np.nan, np.float32), "b": None})
    assert run(worker) == [0, 1]
    assert model.push(gradient(initial(), 0.0)).version == 3


def test_loops_at_the_same_time_have_their_own_sessions(client):
    model, ready = client.create_model("m", initial(), lr=0.01), threading.Barrier(4)

    def work(_: int) -> list[int]:
        ready.wait()
        acks = []
        for batch, step in model.worker([1.0] * 10):
            acks.append(step.ack)
            step.grads = gradient(step.params, batch)
        return [ack.version for ack in acks[1:]]

    with futures.ThreadPoolExecutor(4) as pool:
        versions = [version for own in pool.map(work, range(4)) for version in own]
    assert len(set(versions)) == 36
    assert model.push(gradient(initial(), 0.0)).version == 41
    assert client.status().models[0].workers == 5


def test_a_second_loop_with_the_same_id_takes_over(client):
    model = client.create_model("m", initial(), lr=0.01)
    first = iter(model.worker([1.0] * 3, worker_id="w"))
    for _ in range(2):
        batch, step = next(first)
        step.grads = gradient(step.params, batch)
    for batch, other in model.worker([1.0], worker_id="w"):
        other.grads = gradient(other.params, batch)
    with pytest.raises(SessionFencedError):
        next(first)


def test_a_loop_goes_on_after_a_crash_of_the_server(server_process, connect):
    client, batches = connect(server_process.address), [0.5, -1.0, 2.0, 0.0, 1.0, -2.0]
    model, rewinds = client.create_model("m", initial(), lr=0.1, durability="memory"), []
    model.on_rewind(rewinds.append)
    steps = []
    for batch, step in model.worker(batches):
        steps.append(step)
        if batch == 2.0:
            client.snapshot()  # of version 2
        if batch == 1.0:
            server_process.kill()
            server_process.start()
        step.grads = gradient(step.params, batch)
    assert [step.version for step in steps] == [0, 1, 2, 3, 4, 2]
    assert rewinds == [2]
    assert (steps[5].ack.applied, steps[5].ack.rewound_to) == (False, 2)
    check_same(steps[5].params, steps[2].params)
    assert client.open_model("m").pull(min_version=3)["w"].tolist() != steps[2].params["w"].tolist()
    assert client.status().models[0].model.version == 3


def test_a_loop_waits_for_a_server_that_is_down_and_loses_nothing_after_a_clean_stop(server_process, connect):
    client, versions = connect(server_process.address), []
    model = client.create_model("m", initial(), lr=0.1)
    again = threading.Thread(target=server_process.start)
    for batch, step in model.worker([0.5, -1.0, 2.0]):
        versions.append(step.version)
        step.grads = gradient(step.params, batch)
        if batch == -1.0:
            server_process.stop()
            again.start()
    again.join()
    assert versions == [0, 1, 2]
    assert client.status().models[0].model.version == 3


def test_a_server_that_stays_away_ends_the_loop(server_process, connect, hurry):
    client = connect(server_process.address)
    model = client.create_model("m", initial(), lr=0.1)

    def last(params: dict[str, np.ndarray], batch: float) -> dict[str, np.ndarray]:
        server_process.kill()
        hurry(client, 0.3)
        return gradient(params, batch)

    with pytest.raises(ServiceError, match="push to model 'm': gave up after"):
        run(model.worker([0.5, -1.0]), last)
