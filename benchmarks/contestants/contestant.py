"""The interface of all optimizers to compare. May import NumPy."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.case import MissingError
from benchmarks.workload import Array, Workload, check_usual

LR = 1e-3
BETAS = (0.9, 0.999)
EPS = 1e-8  # all contestants add it to the bias-corrected root (Algorithm 1)


class Contestant(Protocol):
    """One optimizer over its own copy of a workload."""

    def step(self) -> object:
        """Make one step, and wait for its end."""

    def threads(self) -> str:
        """Return the number of threads of a step, as the library reports it."""

    def params(self) -> list[Array]:
        """Return the current parameters."""

    def moments(self) -> list[Array]:
        """Return all current first and second moments."""


class Maker(Protocol):
    """Makes a contestant."""

    def __call__(self, workload: Workload, threads: int) -> Contestant:
        """Return a contestant that uses this number of threads.

        Raises:
            MissingError: its library is not installed or does not run.
        """


def load(module: str) -> Any:
    """Import a peer.

    Raises:
        MissingError: it is not installed or cannot be imported here.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name or module} is not installed") from error
    except Exception as error:  # peers raise different errors: no compiler, an unknown accelerator
        raise missing(module, error) from error


def missing(library: str, error: Exception) -> MissingError:
    """Return an error as a publishable reason: one line, without paths of this machine."""
    lines = str(error).strip().splitlines() or [""]
    reason = re.sub(r"(?:/[^\s/:'\"]+)+/", ".../", lines[0])[:160]
    return MissingError(f"{library} does not run here: {type(error).__name__}: {reason}")


class DisagreementError(Exception):
    """Two contestants did not do the same work."""


def check_agreement(ours: Contestant, peer: Contestant, workload: Workload) -> None:
    """Check that both contestants did the same work on normal numbers.

    Raises:
        DisagreementError: their parameters differ by more than rounding errors.
        UnusualError: there are subnormal numbers, infinities or NaN.
    """
    check_usual(ours.moments(), "our moments")
    check_usual(peer.moments(), "the peer's moments")
    for before, one, other in zip(workload.params(), ours.params(), peer.params(), strict=True):
        _check_close(before, one, other)


def _check_close(before: Array, one: Array, other: Array) -> None:
    """Allow a thousandth of the change, because rounding errors add up over many equal steps."""
    way = float(np.max(np.abs(one - before)))
    apart = float(np.max(np.abs(one - other)))
    if not way > 0 or not apart <= 1e-5 + 1e-3 * way:
        raise DisagreementError(f"parameters of shape {one.shape} moved by up to {way} and then differed by {apart}")


def check_direction(ours: Sequence[Array], peer: Sequence[Array], least: float) -> None:
    """Check that two contestants moved in the same direction, if their formats are too coarse for a closer check.

    Args:
        ours: the change of each parameter, or the first moments, after our steps.
        peer: the same for the peer.
        least: smallest allowed cosine of the angle between them.

    Raises:
        DisagreementError: the angle is wider, or one of them did not move.
    """
    for one, other in zip(ours, peer, strict=True):
        lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
        cosine = float(np.vdot(one, other)) / lengths if lengths > 0 else 0.0
        if not cosine >= least:
            raise DisagreementError(
                f"arrays of shape {one.shape}: the cosine between two ways is {cosine}, below {least}"
            )


def moved(contestant: Contestant, workload: Workload) -> list[Array]:
    """Return the change of each parameter since the start of the workload."""
    return [after - before for after, before in zip(contestant.params(), workload.params(), strict=True)]


def concrete(arrays: Sequence[Any]) -> list[Array]:
    """Return NumPy views of CPU arrays of any framework."""
    return [np.asarray(array) for array in arrays]
