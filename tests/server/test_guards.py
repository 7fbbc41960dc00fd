"""Guards of a model: a push outside is refused by name, changes nothing, and a restart does not forget them."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_adam.client import Guards, ParameterClient
from numba_adam.errors import (
    ConfigurationError,
    GradientTooLargeError,
    HyperparameterError,
    InvalidRequestError,
    ModelExistsError,
    NonFiniteError,
    RateLimitedError,
)
from numba_adam.ps.errors import detail_of
from numba_adam.ps.v1 import model_pb2
from numba_adam.ps.v1.error_pb2 import Reason
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server
from numba_adam.server.runtime.guarding import norm_of

LONG = 800.0


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a server on the same folder, and connects."""

    @contextlib.contextmanager
    def make(**settings):
        memory = tmp_path / "memory"
        memory.mkdir(exist_ok=True)
        config = ServerConfig(
            listen="127.0.0.1:0", data_dir=tmp_path / "data", memory_dir=memory, stall_seconds=LONG,
            snapshot_interval_seconds=0, **settings,
        )  # fmt: skip
        with Server(config) as server, ParameterClient(server.address, "w0", timeout_seconds=LONG) as client:
            yield client

    return make


def ones(dtype=np.float32, size=100):
    return {"w": np.ones(size, dtype), "b": np.ones((2, 3), dtype)}


def refused(push, gradients, words):
    with pytest.raises(GradientTooLargeError, match=words) as caught:
        push(gradients)
    detail = detail_of(caught.value)
    assert detail.reason == Reason.REASON_GRADIENT_TOO_LARGE
    assert detail.sequence_recorded


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_element_above_the_guard_is_refused_by_name_and_changes_nothing(dtype, start):
    with start() as client:
        model = client.create_model("m", ones(dtype), guards=Guards(largest_element=2.5))
        before = model.pull()
        gradients = ones(dtype)
        gradients["b"][1, 2] = -np.nextafter(dtype(2.5), dtype(9))
        for push in (model.push, model.push_pull, lambda g: model.push_async(g).result(LONG)):
            refused(
                push, gradients, r"gradient 'b' holds -2\.5.* at element 5 \(index \[1, 2\]\).*largest_element=2\.5"
            )
        assert all(np.array_equal(before[name], value) for name, value in model.pull().items())
        gradients["b"][1, 2] = -2.5
        assert model.push(gradients).version == 1
        assert client.status().models[0].pushes_rejected == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_norm_above_the_guard_is_refused_and_changes_nothing(dtype, start):
    """The norm is that of all arrays together: neither exceeds it alone."""
    with start() as client:
        limit = math.sqrt(106)
        model = client.create_model("m", ones(dtype), guards=Guards(largest_norm=limit))
        assert model.push(ones(dtype)).version == 1  # equal to the limit
        gradients = ones(dtype)
        gradients["b"][0, 0] = 1.001
        refused(model.push, gradients, r"the norm of the gradients is 10\.29.*largest_norm=10\.2956")
        assert model.push({"w": gradients["w"], "b": None}).version == 2
        assert client.status().models[0].model.version == 2


ml_dtypes = pytest.importorskip("ml_dtypes", reason="the extra `test` installs it")


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_in_16_bits_are_guarded_too(dtype, narrow, start):
    with start() as client:
        model = client.create_model("m", ones(dtype), guards=Guards(largest_element=2, largest_norm=12))
        gradients = {name: value.astype(narrow) for name, value in ones().items()}
        assert model.push(gradients).version == 1
        gradients["w"][99] = 2.015625
        refused(model.push, gradients, "gradient 'w' holds 2.015625 at element 99")
        doubled = {name: (value * 1.25).astype(narrow) for name, value in ones().items()}
        refused(model.push, doubled, "the norm of the gradients is 12.8695")
        assert model.push(ones(dtype)).version == 2


def test_what_is_not_finite_is_reported_as_that(start):
    with start() as client:
        model = client.create_model("m", ones(), guards=Guards(largest_element=1))
        for value in (np.nan, np.inf, 3e19):
            gradients = ones()
            gradients["w"][0] = value
            with pytest.raises(NonFiniteError):
                model.push(gradients)


@pytest.mark.parametrize("durability", ["memory", "process", "disk"])
def test_guards_and_refusals_survive_a_restart(durability, start):
    guards = Guards(largest_norm=20, largest_element=2, pushes_per_second=1e6)
    gradients = ones()
    gradients["w"][0] = 3
    with start() as client:
        model = client.create_model("m", ones(), guards=guards, durability=durability)
        assert model.push(ones()).version == 1
        refused(model.push, gradients, "largest_element=2")
        assert model.push(ones()).version == 2
    with start() as client:
        assert client.list_models()[0].guards == guards
        model = client.open_model("m")
        assert model.version == 2
        refused(model.push, gradients, "largest_element=2")
        assert model.push(ones()).version == 3


def test_pushes_above_the_rate_are_told_to_wait_and_record_nothing(start):
    """The rate counts the pushes of all workers."""
    with start() as client, ParameterClient(client.address, "w1", timeout_seconds=LONG) as other:
        model = client.create_model("m", ones(), guards=Guards(pushes_per_second=1e-6))
        assert model.push(ones()).version == 1
        for each in (model, other.open_model("m")):
            with pytest.raises(RateLimitedError, match="model 'm': its guard allows 1e-06 pushes per second") as caught:
                each.push(ones())
            assert not detail_of(caught.value).sequence_recorded
            assert detail_of(caught.value).retry_after_milliseconds > 900_000_000
        assert client.status().models[0].pushes_rejected == 0


def test_a_client_waits_until_its_push_is_allowed(start):
    with start() as client:
        model = client.create_model("m", ones(), guards=Guards(pushes_per_second=10))
        futures = [model.push_async(ones()) for _ in range(13)]
        assert [future.result(LONG).version for future in futures] == list(range(1, 14))


def test_guards_are_part_of_what_a_model_is(start):
    with start() as client:
        client.create_model("m", ones(), guards=Guards(largest_norm=5))
        assert client.create_model("m", ones(), guards=Guards(largest_norm=5), exist_ok=True).version == 0
        with pytest.raises(ModelExistsError, match=r"guards: largest_norm: the model has 5.0, asked for None"):
            client.create_model("m", ones(), exist_ok=True)
        with pytest.raises(ModelExistsError, match=r"guards: largest_element: the model has None, asked for 1.0"):
            client.create_model("m", ones(), guards=Guards(largest_norm=5, largest_element=1), exist_ok=True)


@pytest.mark.parametrize("name", ["largest_norm", "largest_element", "pushes_per_second"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", True, [1, 2], 10**400])
def test_an_impossible_guard_is_refused(name, value):
    with pytest.raises(HyperparameterError, match=f"guards: {name}: expected a finite number above 0"):
        Guards(**{name: value})


def test_something_else_as_guards_is_refused(start):
    with start() as client, pytest.raises(ConfigurationError, match="guards: expected Guards"):
        client.create_model("m", ones(), guards={"largest_norm": 1})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_the_server_refuses_an_impossible_guard_of_another_client(value, start):
    with start() as client:
        spec = model_pb2.ModelSpec(name="m", dtype=1, tensors=[{"name": "w", "shape": [3]}])
        spec.guards.largest_norm = value
        with pytest.raises(InvalidRequestError, match="guards: largest_norm"):
            client._create(spec, {"w": np.ones(3, np.float32)}, False)


@given(
    st.lists(st.floats(-1e150, 1e150, allow_subnormal=False), max_size=20).map(np.array),
    st.sampled_from([1e-150, 1.0, 1e150]),
)
def test_the_norm_is_that_of_exact_arithmetic(values, scale):
    values = np.asarray(values, np.float64) * scale
    assert math.isclose(norm_of(values), math.hypot(*values.tolist()), rel_tol=1e-12, abs_tol=1e-300)


def test_the_norm_of_many_blocks():
    values = np.full(300_001, 1e-20, np.float32)
    assert math.isclose(norm_of(values), float(np.float32(1e-20)) * math.sqrt(300_001), rel_tol=1e-12)
