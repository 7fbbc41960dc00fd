"""Compares our step with a peer's over one workload, for the themes flat and many."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants import deepspeed_cpu, optax_jit, plain_numpy, torch_fused
from benchmarks.contestants.contestant import Contestant, Maker, check_agreement
from benchmarks.contestants.ours import Ours
from benchmarks.measure import interleave
from benchmarks.workload import Workload

PEERS: dict[str, tuple[str, Maker]] = {
    "torch": (torch_fused.NAME, torch_fused.TorchFused),
    "deepspeed": (deepspeed_cpu.NAME, deepspeed_cpu.DeepSpeedCPU),
    "optax": (optax_jit.NAME, optax_jit.OptaxJit),
    "numpy": (plain_numpy.NAME, plain_numpy.PlainNumpy),
}


def against_all(name: str, title: str, workload: Callable[[Settings], Workload], torch_bar: float) -> list[Case]:
    """Return one case for each peer.

    Args:
        name: theme and case: "flat/1m".
        title: title in the table.
        workload: returns the arrays, given the settings.
        torch_bar: largest allowed ratio of our time to that of PyTorch's fused kernel.
    """
    return [
        Case(
            name=f"{name}/{key}",
            title=title,
            peer=label,
            bar=Bar(torch_bar) if key == "torch" else None,
            run=functools.partial(_compare, maker, workload),
        )
        for key, (label, maker) in PEERS.items()
    ]


def _compare(maker: Maker, workload_of: Callable[[Settings], Workload], settings: Settings) -> Measurement:
    """Make the peer first: if it is missing, nothing else needs to be prepared."""
    workload = workload_of(settings)
    peer: Contestant = maker(workload, settings.threads)
    ours = Ours(workload, settings.threads)
    pairs = interleave(ours.step, peer.step, settings)
    check_agreement(ours, peer, workload)
    notes = {"our threads": ours.threads(), "the peer's threads": peer.threads()}
    return Measurement(pairs, {**sizes(workload), **notes})


def sizes(workload: Workload) -> dict[str, str]:
    """Return a workload's sizes, for the notes of a result."""
    return {
        "arrays": f"{len(workload.shapes):,}",
        "elements": f"{workload.elements:,}",
        "bytes touched by a step": f"{28 * workload.elements:,}",
    }
