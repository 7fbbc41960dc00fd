"""A worker process of the demonstration. In a loop, it pulls, computes a gradient on its shard, and pushes.

It writes its reports to stdout for the parent process, as one JSON object per line. It has no code for crashes: the
client retries, and calls the callback after a rewind. May import NumPy and the client.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_adam.client import ParameterClient
from numba_adam.demo import digits, network

BATCH = 64
MODEL = "digits"
LEARNING_RATE = 2e-3
STALENESS = 8
MODES = ("async", "sync", "ssp")


def mode_arguments(mode: str, workers: int) -> dict[str, Any]:
    """Return what `create_model` is told."""
    more = {"sync": {"workers": workers}, "ssp": {"staleness": STALENESS}}
    return {"mode": mode, **more.get(mode, {})}


def report(event: str, **values: object) -> None:
    """Write a report with the current time to stdout."""
    print(json.dumps({"event": event, "time": time.time(), **values}), flush=True)


def gradient_function(framework: str) -> Callable[[network.Params, digits.Images], tuple[float, dict[str, Any]]]:
    """Return the function that computes the loss and the gradients with this framework."""
    if framework == "NumPy":
        return network.loss_and_gradients
    from numba_adam.demo import torch_network

    return torch_network.loss_and_gradients


def main() -> None:
    """Train until `--steps` gradients are in the model."""
    parser = argparse.ArgumentParser(prog="numba_adam.demo.worker")
    parser.add_argument("--server", required=True)
    parser.add_argument("--durability", required=True)
    parser.add_argument("--mode", choices=MODES, default="async")
    parser.add_argument("--pause-seconds", type=float, default=0.0, help="pause before each push, as of a slow machine")
    parser.add_argument("--framework", choices=("NumPy", "PyTorch"), required=True)
    for name in ("index", "workers", "seed", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    work(parser.parse_args())


def work(arguments: argparse.Namespace) -> None:
    """Create the model, unless another worker has created it. Then pull, compute and push in a loop."""
    training, _ = digits.load()
    shard = training.shard(arguments.index, arguments.workers)
    random = np.random.default_rng([arguments.seed, arguments.index])
    loss_and_gradients = gradient_function(arguments.framework)

    with ParameterClient(arguments.server, worker_id=f"worker-{arguments.index}", timeout_seconds=60.0) as client:
        params = network.initial_params(arguments.seed)
        mode = mode_arguments(arguments.mode, arguments.workers)
        model = client.create_model(
            MODEL, params, lr=LEARNING_RATE, durability=arguments.durability, exist_ok=True, **mode
        )
        last = arguments.steps // (arguments.workers if arguments.mode == "sync" else 1)
        model.on_rewind(lambda version: report("rewind", version=version))
        report("ready", images=len(shard.labels))
        sys.stdin.readline()  # wait until all workers are ready
        params = model.pull()
        while model.version < last:
            loss, gradients = loss_and_gradients(params, shard.batch(BATCH, random))
            time.sleep(arguments.pause_seconds)
            params = model.push_pull(gradients)
            ack = model.last_ack
            if ack is not None and ack.applied:
                values = {"version": ack.version, "snapshot_version": ack.snapshot_version, "state_id": ack.state_id}
                report("push", loss=loss, **values)


if __name__ == "__main__":
    main()
