"""Everything between a backward and a forward pass: unscale, clip, AdamW, average, low-precision copy."""

from __future__ import annotations

import functools

from benchmarks.case import Bar, Case, Measurement, Settings
from benchmarks.contestants import whole_phase
from benchmarks.contestants.whole_phase import OurPhase, TorchPhase, check_same_phase
from benchmarks.measure import interleave
from benchmarks.workload import one_array


def _compare(elements: int, settings: Settings) -> Measurement:
    workload = one_array(settings.elements(elements))
    peer = TorchPhase(workload, settings.threads)
    ours = OurPhase(workload, settings.threads)
    pairs = interleave(ours.step, peer.step, settings, before=(ours.refresh, peer.refresh))
    check_same_phase(ours, peer)
    notes = {
        "elements": f"{workload.elements:,}",
        "loss scale": f"{whole_phase.LOSS_SCALE:g}",
        "largest norm": f"{whole_phase.MAX_NORM:g}, so that gradients are clipped in every step",
        "our threads": ours.threads(),
        "the peer's threads": peer.threads(),
    }
    return Measurement(pairs, notes)


def _case(name: str, size: str, elements: int, bar: Bar | None) -> Case:
    return Case(
        name=f"phase/{name}/torch",
        title=f"unscale, clip by norm, AdamW, average, bfloat16 copy: {size}",
        peer=whole_phase.NAME,
        bar=bar,
        run=functools.partial(_compare, elements),
    )


CASES: tuple[Case, ...] = (
    _case("1m", "1 million", 1_000_000, None),
    _case("50m", "50 million", 50_000_000, Bar(0.55)),
)
