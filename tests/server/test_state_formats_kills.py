"""Kills of a real server whose models have state in formats of its own: no acknowledged push and no bit is lost."""

import random
import threading

import numpy as np
import pytest

import numba_adam as na
from numba_adam.client import ParameterClient

LONG = 800.0
SIZES = {"a": 70_001, "b": 1, "c": 0, "d": 33_000, "e": 17}  # two threads share an update, with borders inside arrays
FORMATS = {
    "8bit": {"state_dtype": "8bit", "seed": 3, "ema_decay": 0.9},
    "bfloat16": {"state_dtype": "bfloat16", "rounding": "stochastic", "seed": 7},
    "AMSGrad": {"state_dtype": "8bit", "amsgrad": True},
    "average": {"ema_decay": 0.9},
}


def params_of():
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(size, dtype=np.float32) for name, size in SIZES.items()}


def grads_of(number):
    rng = np.random.default_rng(100 + number)
    grads = {name: rng.standard_normal(size, dtype=np.float32) for name, size in SIZES.items()}
    return {**grads, "d": None} if number % 3 == 2 else grads


def serve(processes, folder, listen="127.0.0.1:0", **options):
    (folder.parent / "memory").mkdir(exist_ok=True)
    return processes(folder, memory_dir=str(folder.parent / "memory"), listen=listen, **options)


def same_bits(model, params, averages, number):
    found = model.pull()
    assert model.version == number
    for name, array in params.items():
        assert found[name].tobytes() == array.tobytes(), (name, number)
    if averages is not None:
        found = model.pull(average=True)
        for name, array in averages.items():
            assert found[name].tobytes() == array.tobytes(), (name, number)
    return True


@pytest.mark.parametrize("durability", ["process", "disk"])
@pytest.mark.parametrize("name", FORMATS)
def test_after_a_kill_a_model_continues_with_the_librarys_bits(name, durability, processes, tmp_path):
    options, twin = FORMATS[name], params_of()
    optimizer, has_average = na.Adam(twin, lr=0.01, **options), "ema_decay" in options
    process = serve(processes, tmp_path / "data")
    address = process.address
    with ParameterClient(address, "w0", timeout_seconds=LONG) as client:
        model = client.create_model("m", params_of(), lr=0.01, durability=durability, **options)
        for number in range(6):
            model.push(grads_of(number))
            optimizer.step(grads_of(number))
            if number in (2, 4):
                process.kill()
                process = serve(processes, tmp_path / "data", address)
            assert same_bits(model, twin, optimizer.ema if has_average else None, number + 1)
    process.kill()


@pytest.mark.campaign
@pytest.mark.parametrize("name", FORMATS)
def test_kills_at_random_moments_of_pushes_lose_no_bit(name, processes, tmp_path, campaign):
    options, twin, pushes, kills = FORMATS[name], params_of(), 120, 8
    optimizer, rng = na.Adam(twin, lr=0.01, **options), random.Random(campaign.seed(11))
    process = serve(processes, tmp_path / "data", snapshot_every_pushes=7)
    address, enough, errors = process.address, threading.Semaphore(0), []
    with ParameterClient(address, "w0", timeout_seconds=LONG) as client:
        model = client.create_model("m", params_of(), lr=0.01, **options)

        def work():
            try:
                for number in range(pushes):
                    model.push(grads_of(number))
                    enough.release()
            except BaseException as error:
                errors.append(error)
                enough.release(pushes)

        worker = threading.Thread(target=work)
        worker.start()
        for _ in range(kills):
            for _ in range(rng.randint(3, pushes // kills - 1)):
                assert enough.acquire(timeout=LONG)
            process.kill()
            process = serve(processes, tmp_path / "data", address, snapshot_every_pushes=7)
        worker.join(LONG)
        assert not worker.is_alive()
        assert errors == []
        for number in range(pushes):
            optimizer.step(grads_of(number))
        assert same_bits(model, twin, optimizer.ema if "ema_decay" in options else None, pushes)
    process.kill()
    campaign.did(kills=kills, pushes=pushes)
