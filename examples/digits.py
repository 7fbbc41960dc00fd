"""Two workers train one model on a parameter server that is killed half-way. Read it from the bottom up.

    pip install -e '.[demo]'        in a clone of numba-adam
    python examples/digits.py

The server keeps the parameters and Adam's state. Each worker computes gradients on its half of scikit-learn's
handwritten digits and pushes them. The answer holds the newest parameters, with the steps of the other worker.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile

import numpy as np
from sklearn.datasets import load_digits

from numba_adam.client import ParameterClient

HIDDEN, BATCH = 256, 64


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels (n, 64) between 0 and 1, digits (n,), and a mask (n,) of the test images."""
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target, np.arange(len(data.target)) % 5 == 0


def initial() -> dict[str, np.ndarray]:
    """Return the initial parameters. Names and shapes are free; all are float32, or all float64."""
    random = np.random.default_rng(0)
    return {
        "w1": (random.standard_normal((64, HIDDEN)) * np.sqrt(2 / 64)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": (random.standard_normal((HIDDEN, 10)) * np.sqrt(2 / HIDDEN)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def forward(params: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hidden units and the scores of the ten digits."""
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    return hidden, hidden @ params["w2"] + params["b2"]


def gradients(params: dict[str, np.ndarray], x: np.ndarray, digits: np.ndarray) -> dict[str, np.ndarray]:
    """Return the gradient of the mean cross-entropy. You may also push gradients from PyTorch or JAX."""
    hidden, scores = forward(params, x)
    by_scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    by_scores /= by_scores.sum(axis=1, keepdims=True)
    by_scores[np.arange(len(x)), digits] -= 1
    by_scores /= np.float32(len(x))
    by_hidden = (by_scores @ params["w2"].T) * (hidden > 0)
    return {"w1": x.T @ by_hidden, "b1": by_hidden.sum(axis=0), "w2": hidden.T @ by_scores, "b2": by_scores.sum(axis=0)}


def work(address: str, index: int, steps: int) -> None:
    """Run one worker: pull, compute, push, until the model has reached a number of steps."""
    x, digits, test = load()
    x, digits = x[~test][index::2], digits[~test][index::2]
    random = np.random.default_rng(index)
    with ParameterClient(address, worker_id=f"worker-{index}") as client:
        # Both workers run this line. The first creates the model, the other opens it.
        model = client.create_model("digits", initial(), lr=2e-3, exist_ok=True)
        # Nothing here is about crashes: the client retries calls until the server is back, which then has every push
        # that it answered.
        params = model.pull()
        while model.version < steps:
            batch = random.integers(0, len(x), BATCH)
            params = model.push_pull(gradients(params, x[batch], digits[batch]))


def serve(address: str, folder: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server, wait until it is ready, and return its process and its address."""
    options = ["--listen", address, "--data-dir", folder]
    process = subprocess.Popen(
        [sys.executable, "-m", "numba_adam", "serve", *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()  # "numba-adam: serving on 127.0.0.1:43210"
    if not line:
        sys.exit("the server did not start")
    return process, line.split()[-1]


def main(steps: int) -> None:
    """Train with a crash in the middle, then test."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # in the workers: more threads slow such small matrices down
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        server, address = serve("127.0.0.1:0", folder)
        try:
            workers = [spawn.Process(target=work, args=(address, index, steps), daemon=True) for index in (0, 1)]
            for worker in workers:
                worker.start()

            with ParameterClient(address) as client:
                # The same line as in the workers: whoever comes first creates the model.
                model = client.create_model("digits", initial(), lr=2e-3, exist_ok=True)
                model.pull(min_version=steps // 2)  # waits for this version
                server.kill()  # SIGKILL: no time to save anything
                server.wait()
                server, _ = serve(address, folder)
                now = client.list_models()[0].version  # what it was, and what came in just before the kill
                print(f"the server was killed after version {model.version} and continued at {now}", flush=True)

                for worker in workers:
                    worker.join()
                params = model.pull()
        finally:
            server.terminate()  # SIGTERM: the server saves a last snapshot
            server.wait()

    x, digits, test = load()
    accuracy = (forward(params, x[test])[1].argmax(axis=1) == digits[test]).mean()
    print(f"version {model.version}: {accuracy:.1%} of the test images are read correctly")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    main(parser.parse_args().steps)
