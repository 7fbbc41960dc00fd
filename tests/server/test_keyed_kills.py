"""Kills of a server with a key file: nothing acknowledged is lost, and without the key nothing is recovered."""

import random
import threading

import numpy as np
import pytest

import numba_adam as na
from numba_adam.cli import main
from numba_adam.client import ParameterClient

LONG = 800.0
SIZE = 60_000
LEVELS = ("process", "disk")


def params_of():
    return {"x": np.random.default_rng(1).standard_normal(SIZE, dtype=np.float32)}


def grads_of(number):
    return {"x": np.random.default_rng(100 + number).standard_normal(SIZE, dtype=np.float32)}


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "adam.keys"
    assert main(["snapshot-key", str(path)]) == 0
    return path


@pytest.fixture
def serve(tmp_path, processes):
    (tmp_path / "memory").mkdir()

    def start(key_file, listen="127.0.0.1:0", **options):
        options |= {"memory_dir": str(tmp_path / "memory"), "listen": listen}
        return processes(tmp_path / "data", snapshot_key_file=str(key_file), **options)

    return start


@pytest.mark.parametrize("durability", LEVELS)
def test_after_a_kill_a_server_with_keys_continues_with_the_same_bits(durability, serve, key_file):
    """Also where the key was changed before the restart; the snapshot and the journal then have the old one."""
    twin = params_of()
    optimizer = na.Adam(twin, lr=0.01)
    process = serve(key_file)
    with ParameterClient(process.address, "w0", timeout_seconds=LONG) as client:
        model = client.create_model("m", params_of(), lr=0.01, durability=durability)
        for number in range(6):
            assert model.push(grads_of(number)).applied
            optimizer.step(grads_of(number))
            if number in (1, 3, 4):
                process.kill()
                if number == 3:
                    assert main(["snapshot-key", str(key_file), "--rotate"]) == 0
                process = serve(key_file, process.address)
            assert model.pull()["x"].tobytes() == twin["x"].tobytes()
            assert model.version == number + 1
    process.kill()


@pytest.mark.parametrize("durability", LEVELS)
def test_after_a_kill_another_key_recovers_nothing_and_the_right_one_everything(
    durability, serve, key_file, tmp_path, capsys
):
    process = serve(key_file)
    with ParameterClient(process.address, "w0", timeout_seconds=LONG) as client:
        model = client.create_model("m", params_of(), lr=0.01, durability=durability)
        model.push(grads_of(0))
        before = model.pull()["x"].tobytes()
        process.kill()
        wrong = tmp_path / "wrong.keys"
        assert main(["snapshot-key", str(wrong)]) == 0
        words = ["--data-dir", str(tmp_path / "data"), "--memory-dir", str(tmp_path / "memory")]
        serving = ["serve", "--no-supervise", "--listen", "127.0.0.1:0", *words, "--snapshot-key-file"]
        assert main([*serving, str(wrong)]) != 0
        assert "key" in capsys.readouterr().err
        process = serve(key_file, process.address)
        assert model.pull()["x"].tobytes() == before
        assert model.version == 1
    process.kill()


@pytest.mark.campaign
@pytest.mark.parametrize("durability", LEVELS)
def test_kills_at_random_moments_of_a_server_with_keys_lose_no_bit(durability, serve, key_file, campaign):
    """Every third restart has a new key."""
    twin, pushes, kills = params_of(), 120, 8
    optimizer, rng = na.Adam(twin, lr=0.01), random.Random(campaign.seed(23))
    process = serve(key_file, snapshot_every_pushes=7)
    enough, errors = threading.Semaphore(0), []
    with ParameterClient(process.address, "w0", timeout_seconds=LONG) as client:
        model = client.create_model("m", params_of(), lr=0.01, durability=durability)

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
        for kill in range(kills):
            for _ in range(rng.randint(3, pushes // kills - 1)):
                assert enough.acquire(timeout=LONG)
            process.kill()
            if kill % 3 == 2:
                assert main(["snapshot-key", str(key_file), "--rotate"]) == 0
            process = serve(key_file, process.address, snapshot_every_pushes=7)
        worker.join(LONG)
        assert not worker.is_alive()
        assert errors == []
        for number in range(pushes):
            optimizer.step(grads_of(number))
        assert model.pull()["x"].tobytes() == twin["x"].tobytes()
        assert model.version == pushes
    process.kill()
    campaign.did(kills=kills, pushes=pushes)
