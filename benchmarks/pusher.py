"""A client process with several sessions, each of which always has one push outstanding.

`python -m benchmarks.pusher ADDRESS MODEL SESSIONS` prints `ready`. Then it reads a number of seconds from a line,
pushes for as long, prints the seconds of every push as JSON, and reads the next line, until its input ends.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from typing import Any

import numpy as np

from benchmarks.contestants.contestant import load

_WARM_UP_PUSHES = 10
_TIMEOUT_SECONDS = 600.0


def main(address: str, name: str, sessions: int) -> None:
    """Push whenever a line asks for it."""
    client_of = load("numba_adam.client").ParameterClient
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(address, timeout_seconds=_TIMEOUT_SECONDS)) for _ in range(sessions)]
        models = [client.open_model(name) for client in clients]
        rng = np.random.default_rng(7)
        grads = {key: rng.standard_normal(value.shape, value.dtype) for key, value in models[0].pull().items()}
        for model in models:
            for _ in range(_WARM_UP_PUSHES):
                model.push(grads)
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(_pushed_for(float(line), models, grads)), flush=True)


def _pushed_for(seconds: float, models: list[Any], grads: dict[str, Any]) -> list[float]:
    """Push from all sessions at once; return the seconds of each push."""
    taken: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds

    def work(model: Any, own: list[float]) -> None:
        begin = time.perf_counter()
        while begin < end:
            model.push(grads)
            now = time.perf_counter()
            own.append(now - begin)
            begin = now

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, taken, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each for own in taken for each in own]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
