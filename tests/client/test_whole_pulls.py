"""A pull returns one version, whole, however many workers push meanwhile; and one that is not older than was asked for.

Every version of the model has one number in all its elements, so a mixture of two versions is seen.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

PULLERS = 3


def assert_whole(params):
    numbers = {float(number) for array in params.values() for number in (array.min(), array.max())}
    assert len(numbers) == 1, f"one pull has the numbers of several versions: {numbers}"


@pytest.mark.parametrize("pulls", [60, pytest.param(10_200, marks=pytest.mark.campaign)])
def test_a_pull_is_one_version_and_not_older_than_asked_for(server, connect, pulls, campaign):
    arrays = {"a": np.zeros(70_001, np.float32), "b": np.zeros((33, 7), np.float32)}
    model = connect(server.address, "first").create_model("m", arrays, lr=0.1)
    newest, is_over = [0], threading.Event()

    def push(name):
        own, versions = connect(server.address, name).open_model("m"), []
        while not is_over.is_set():
            gradient = float(len(versions) % 7 - 3)
            ack = own.push({key: np.full_like(array, gradient) for key, array in arrays.items()})
            versions.append(ack.version)
            newest[0] = max(newest[0], ack.version)
            if len(versions) % 5 == 0:
                assert_whole(own.push_pull({key: np.zeros_like(array) for key, array in arrays.items()}))
                assert own.version > versions[-1]
        return versions

    def pull(number):
        own, versions = connect(server.address, f"reader {number}").open_model("m"), []
        target = {key: np.empty_like(array) for key, array in arrays.items()}
        for turn in range(pulls // PULLERS):
            asked = newest[0]
            found = own.pull(min_version=asked) if turn % 2 else own.pull(out=target, min_version=asked)
            assert_whole(found)
            versions.append(own.version)
            assert own.version >= asked
        assert versions == sorted(versions)
        return len(versions)

    with ThreadPoolExecutor(PULLERS + 2) as pool:
        pushers = [pool.submit(push, f"w{number}") for number in range(2)]
        readers = [pool.submit(pull, number) for number in range(PULLERS)]
        try:
            done = sum(reader.result(800) for reader in readers)
        finally:
            is_over.set()
        versions = [version for pusher in pushers for version in pusher.result(800)]
    assert len(versions) == len(set(versions))
    assert done == pulls
    assert model.pull()["a"].size == 70_001
    campaign.did(pulls=done, pushes=len(versions))
