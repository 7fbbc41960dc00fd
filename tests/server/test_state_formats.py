"""Models whose state has formats of its own: the bits of the library's optimizer, at every level, through restarts."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import numba_adam as na
from numba_adam.client import ParameterClient
from numba_adam.errors import DtypeError, HyperparameterError, InvalidRequestError, ModelExistsError
from numba_adam.server.config import ServerConfig
from numba_adam.server.embedded import Server

LONG = 800.0
SIZES = (300, 0, 1, 127, 128, 129, 255, 256, 257, 1025, 2)
LEVELS = ("memory", "process", "disk")
FORMATS = {
    "bfloat16": {"state_dtype": "bfloat16"},
    "stochastic": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 7},
    "8bit": {"state_dtype": "8bit", "seed": 3},
    "average": {"ema_decay": 0.9},
    "8bit with an average": {"state_dtype": "8bit", "ema_decay": 0.5, "weight_decay": 0.1},
    "AMSGrad in 8 bits": {"state_dtype": "8bit", "amsgrad": True},
    "AMSGrad in bfloat16": {"state_dtype": "bfloat16", "amsgrad": True, "ema_decay": 0.9},
    "double": {"state_dtype": "float64", "ema_decay": 0.9},
}


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


def params_of(dtype="float32", sizes=SIZES):
    rng = np.random.default_rng(1)
    return {f"a{number}": rng.standard_normal(size).astype(dtype) for number, size in enumerate(sizes)}


def grads_of(params, number):
    """Return the gradients of a push: of very different sizes, and every third push without those of some arrays."""
    rng = np.random.default_rng(100 + number)
    return {
        name: None
        if number % 3 == 2 and index % 2
        else (rng.standard_normal(array.shape) * 2.0 ** rng.uniform(-12, 2, array.shape)).astype(array.dtype)
        for index, (name, array) in enumerate(params.items())
    }


class Twin:
    """The library's optimizer over copies of the same arrays."""

    def __init__(self, params, options):
        self.params = {name: array.copy() for name, array in params.items()}
        self.optimizer = na.Adam(self.params, lr=0.01, **options)

    def step(self, grads):
        self.optimizer.step(grads)

    @property
    def average(self):
        return self.optimizer.ema


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("durability", LEVELS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_model_in_other_formats_has_the_librarys_bits_through_a_restart(start, name, durability):
    options, params = FORMATS[name], params_of()
    twin = Twin(params, options)
    with start() as client:
        model = client.create_model("m", params, lr=0.01, durability=durability, **options)
        for number in range(4):
            twin.step(grads_of(params, number))
            model.push(grads_of(params, number))
        check_same(model.pull(), twin.params)
    with start() as client:
        model = client.open_model("m")
        for number in range(4, 8):
            twin.step(grads_of(params, number))
            check_same(model.push_pull(grads_of(params, number)), twin.params)
        if "ema_decay" in options:
            check_same(model.pull(average=True), {name: twin.average[name].astype("float32") for name in params})
        info = client.list_models()[0]
        assert (info.options.state_dtype, info.options.ema_decay, info.options.seed) == (
            options.get("state_dtype"),
            options.get("ema_decay"),
            options.get("seed", 0),
        )


@pytest.mark.parametrize("options", [{"state_dtype": "float32"}, {"ema_decay": 0.9}, {"state_dtype": "float64"}])
@pytest.mark.parametrize("durability", LEVELS)
def test_a_float64_model_has_the_librarys_bits(start, options, durability):
    params = params_of("float64")
    twin = Twin(params, options)
    with start() as client:
        model = client.create_model("m", params, lr=0.01, durability=durability, **options)
        for number in range(4):
            twin.step(grads_of(params, number))
            check_same(model.push_pull(grads_of(params, number)), twin.params)
        if "ema_decay" in options:
            check_same(model.pull(average=True), twin.average)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_a_float64_model_with_narrow_state_is_refused_as_by_the_library(start, state_dtype):
    params = params_of("float64")
    with pytest.raises(DtypeError) as library:
        na.Adam(params, state_dtype=state_dtype)
    with start() as client:
        with pytest.raises(DtypeError, match="float64 or float32") as refused:
            client.create_model("m", params, state_dtype=state_dtype)
        assert client.list_models() == []
    assert str(refused.value).partition(",")[2] == str(library.value).partition(",")[2]


@pytest.mark.parametrize(
    "options",
    [{"state_dtype": "float16"}, {"state_dtype": "4bit"}, {"rounding": "up"}, {"seed": -1}, {"ema_decay": 1.0}],
)
def test_an_option_that_the_library_refuses_is_refused_before_anything_is_sent(start, options):
    with pytest.raises(HyperparameterError) as library:
        na.Adam(params_of(), **options)
    with start() as client:
        with pytest.raises(HyperparameterError) as refused:
            client.create_model("m", params_of(), **options)
        assert client.list_models() == []
    assert str(refused.value) == str(library.value)


def test_an_existing_model_with_other_options_is_not_taken(start):
    with start() as client:
        params = params_of()
        client.create_model("m", params, state_dtype="8bit", seed=3)
        client.create_model("m", params, state_dtype="8bit", seed=3, exist_ok=True)
        for options, words in (
            ({}, "state_dtype: the model has 8bit, asked for float32"),
            ({"state_dtype": "8bit"}, "seed: the model has 3, asked for 0"),
            ({"state_dtype": "8bit", "seed": 3, "ema_decay": 0.5}, "ema_decay: the model has None, asked for 0.5"),
        ):
            with pytest.raises(ModelExistsError, match=words):
                client.create_model("m", params, exist_ok=True, **options)
        client.create_model("plain", params, state_dtype="float32")
        client.create_model("plain", params, exist_ok=True)


def test_a_model_without_an_average_refuses_to_give_one(start):
    with start() as client:
        model = client.create_model("m", params_of())
        with pytest.raises(InvalidRequestError, match="ema_decay"):
            model.pull(average=True)


def test_the_average_begins_as_the_parameters_and_does_not_change_the_version(start):
    params = params_of()
    with start() as client:
        model = client.create_model("m", params, lr=0.01, ema_decay=0.9)
        check_same(model.pull(average=True), params)
        ack = model.push(grads_of(params, 0))
        model.pull()
        model.push(grads_of(params, 1))
        model.pull(average=True)
        assert model.version == ack.version == 1
        out = {name: np.empty_like(array) for name, array in params.items()}
        check_same(model.pull(out=out, average=True), model.pull(average=True))


def test_two_models_of_different_formats_on_one_server_do_not_touch_each_other(start):
    params = params_of()
    with start() as client:
        models = {
            name: client.create_model(name.replace(" ", "-"), params, lr=0.01, **FORMATS[name]) for name in FORMATS
        }
        twins = {name: Twin(params, FORMATS[name]) for name in FORMATS}
        for number in range(3):
            for name, model in models.items():
                twins[name].step(grads_of(params, number))
                check_same(model.push_pull(grads_of(params, number)), twins[name].params)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 5), (2, 64), (257,)])
@pytest.mark.parametrize("durability", LEVELS)
def test_scalars_and_empty_arrays_in_8_bits(start, shape, durability):
    rng = np.random.default_rng(2)
    params = {"w": np.asarray(rng.standard_normal(shape), np.float32)}
    twin = Twin(params, {"state_dtype": "8bit", "ema_decay": 0.5})
    with start() as client:
        model = client.create_model("m", params, lr=0.01, state_dtype="8bit", ema_decay=0.5, durability=durability)
        for _ in range(3):
            grads = {"w": np.asarray(rng.standard_normal(shape), np.float32)}
            twin.step(grads)
            check_same(model.push_pull(grads), twin.params)
        check_same(model.pull(average=True), twin.average)
