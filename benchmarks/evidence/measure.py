"""Trains, replays, and compares with float32 state. May import NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from benchmarks.contestants.contestant import LR
from benchmarks.evidence.optimizers import FLOAT32, Contestant, Nearest, Ours
from benchmarks.evidence.problem import Losses, Problem
from benchmarks.evidence.streams import SIZE, Stream, gradients
from benchmarks.workload import Array
from numba_adam.cpu.conversion import decode
from numba_adam.numerics.eight_bit import EightBit

CHECKPOINT = 50  # steps after which parameters are compared; at the end they are again


class Error(NamedTuple):
    """How far parameters are from those that float32 state made of the same run, in units of the learning rate."""

    mean: float
    largest: float


NO_ERROR = Error(0.0, 0.0)


@dataclass
class Trained:
    """What came of one seed of a problem with one contestant."""

    losses: Losses
    quantised: float
    """Part of the parameters whose state is in 8 bits."""

    replayed: dict[int, Error]
    """By steps: after the gradients of the run with float32 state."""

    closed: dict[int, Error]
    """By steps: after gradients of its own, over the same batches."""


@dataclass
class Streamed:
    """What came of one seed of a stream with one contestant."""

    errors: dict[int, Error] = field(default_factory=dict)
    """By steps."""

    way: float = 0.0
    """Mean distance that float32 state went in all, in units of the learning rate."""

    late: Error = NO_ERROR
    """As errors at the end, of what was added after CHECKPOINT."""

    root: float | None = None
    """Mean of sqrt(exp_avg_sq) at the end, as a multiple of float32 state's; of ours alone."""


def error(own: Sequence[Array], exact: Sequence[Array]) -> Error:
    """Return how far `own` is from `exact`."""
    apart = np.concatenate([np.abs(a - b, dtype=np.float64).ravel() for a, b in zip(own, exact, strict=True)]) / LR
    return Error(float(apart.mean()), float(apart.max()))


def copies(arrays: Sequence[Array]) -> list[Array]:
    """Return copies."""
    return [array.copy() for array in arrays]


class Way(NamedTuple):
    """Parameters at the checkpoints of a run."""

    at: dict[int, list[Array]]
    in_8_bits: int


def train(problem: Problem, contestants: Sequence[Contestant], steps: int) -> dict[str, Trained]:
    """Train one seed with every contestant; the first is compared with and keeps its state in float32."""
    ways = _replay(problem, contestants, steps)
    exact, trained = ways[contestants[0].name].at, {}
    size = sum(array.size for array in problem.params)
    for contestant in contestants:
        replayed = ways[contestant.name]
        own = replayed.at if contestant is contestants[0] else _replay(problem, [contestant], steps)[contestant.name].at
        trained[contestant.name] = Trained(
            losses=problem.losses(own[steps]),
            quantised=replayed.in_8_bits / size,
            replayed={step: error(arrays, exact[step]) for step, arrays in replayed.at.items()},
            closed={step: error(arrays, exact[step]) for step, arrays in own.items()},
        )
    return trained


def _replay(problem: Problem, contestants: Sequence[Contestant], steps: int) -> dict[str, Way]:
    """Train with the first contestant, and give its gradients to the others too."""
    params = [copies(problem.params) for _ in contestants]
    optimizers = [c.make(arrays, problem.weight_decay) for c, arrays in zip(contestants, params, strict=True)]
    at: list[dict[int, list[Array]]] = [{} for _ in contestants]
    for step in range(1, steps + 1):
        grads = copies(problem.gradients(params[0], step - 1))
        for optimizer, arrays, kept in zip(optimizers, params, at, strict=True):
            optimizer.step(grads)
            if step in (CHECKPOINT, steps):
                kept[step] = copies(arrays)
    return {
        contestant.name: Way(kept, optimizer.in_8_bits())
        for contestant, optimizer, kept in zip(contestants, optimizers, at, strict=True)
    }


def stream_through(stream: Stream, contestants: Sequence[Contestant], seed: int) -> dict[str, Streamed]:
    """Give every contestant the gradients of a stream; float32 state is what they are compared with."""
    everybody = [FLOAT32, *contestants]
    params = [np.zeros(SIZE, np.float32) for _ in everybody]
    optimizers = [c.make([array], 0.0) for c, array in zip(everybody, params, strict=True)]
    results, early = [Streamed() for _ in everybody], []
    for step, grad in enumerate(gradients(stream, seed), 1):
        for optimizer in optimizers:
            optimizer.step([grad])
        if step in (CHECKPOINT, stream.steps):
            watched = [array[stream.watched] for array in params]
            for result, own in zip(results, watched, strict=True):
                result.errors[step] = error([own], [watched[0]])
        if step == CHECKPOINT:
            early = copies(watched)
    late = [own - before for own, before in zip(watched, early, strict=True)]
    roots = [_root(optimizer, stream) for optimizer in optimizers]
    for result, own, root in zip(results, late, roots, strict=True):
        result.way = float(np.abs(watched[0]).mean() / LR)
        result.late = error([own], [late[0]])
        result.root = None if root is None or roots[0] is None else float((root / roots[0]).mean())
    return {c.name: result for c, result in zip(contestants, results[1:], strict=True)}


def _root(optimizer: object, stream: Stream) -> Array | None:
    """Return the roots of one of our optimizers' second moments where the stream is watched."""
    if not isinstance(optimizer, (Ours, Nearest)):
        return None
    state = optimizer.optimizer.state[0]
    second = state["exp_avg_sq"]
    if second.dtype == np.uint8:
        second = decode(None, EightBit(second, state["exp_avg_sq_scale"]))[1]
    return np.sqrt(second[stream.watched])  # type: ignore[no-any-return]
