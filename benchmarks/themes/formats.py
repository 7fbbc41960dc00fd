"""8-bit state, and bfloat16 for everything: time and memory.

The size is a multiple of 256: torchao keeps the state of other arrays in float32.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.case import Bar, Case, Measurement, Quantity, Settings, Unit
from benchmarks.contestants import bitsandbytes_8bit, torch_fused, torchao_8bit
from benchmarks.contestants.bitsandbytes_8bit import BitsAndBytes8bit
from benchmarks.contestants.contestant import Maker, check_direction, moved
from benchmarks.contestants.ours import Ours
from benchmarks.contestants.torch_fused import TorchFused
from benchmarks.contestants.torchao_8bit import TorchAO8bit
from benchmarks.measure import interleave
from benchmarks.workload import Workload, check_usual, one_array

_ELEMENTS = 195_313 * 256  # 50 million
_LEAST_COSINE = 0.9

EIGHT_BIT: dict[str, Any] = {"state_dtype": "8bit"}
BFLOAT16: dict[str, Any] = {"bfloat16": True, "state_dtype": "bfloat16"}
STOCHASTIC: dict[str, Any] = {**BFLOAT16, "rounding": "stochastic"}
TorchBFloat16: Maker = functools.partial(TorchFused, bfloat16=True)


def workload_of(elements: int, settings: Settings) -> Workload:
    """Return one array of about `elements` elements, rounded to a multiple of 256."""
    return one_array(max(1, settings.elements(elements) // 256) * 256)


def _compare(options: dict[str, Any], maker: Maker, settings: Settings) -> Measurement:
    workload = workload_of(_ELEMENTS, settings)
    peer = maker(workload, settings.threads)
    ours = Ours(workload, settings.threads, **options)
    pairs = interleave(ours.step, peer.step, settings)
    _check(ours, peer, workload, by_moments=bool(options.get("bfloat16")))
    notes = {"elements": f"{workload.elements:,}", "our threads": ours.threads(), "the peer's threads": peer.threads()}
    return Measurement(pairs, {**notes, "our bytes per parameter": f"{ours.bytes_held() / workload.elements:.4g}"})


def _check(ours: Any, peer: Any, workload: Workload, *, by_moments: bool) -> None:
    """Check that both did the same work on normal numbers.

    It compares the changes of the parameters, or the first moments: with rounding to nearest, a step of a thousandth
    does not change a bfloat16 parameter near 1.

    Raises:
        DisagreementError: the results differ.
        UnusualError: there are subnormal numbers, infinities or NaN.
    """
    check_usual(ours.moments(), "our moments")
    check_usual(peer.moments(), "the peer's moments")
    if by_moments:
        half = len(workload.shapes)
        check_direction(ours.moments()[:half], peer.moments()[:half], _LEAST_COSINE)
    else:
        check_direction(moved(ours, workload), moved(peer, workload), _LEAST_COSINE)


def _bytes(options: dict[str, Any], maker: Maker | None, settings: Settings) -> Measurement:
    """Count the bytes in use after a step. The bytes per element do not depend on the size, so it is small."""
    workload = workload_of(_ELEMENTS // 50, settings)
    contestants = [Ours(workload, settings.threads, **options)]
    contestants += [] if maker is None else [maker(workload, settings.threads)]  # type: ignore[list-item]
    for contestant in contestants:
        contestant.step()
    ours, *peers = (contestant.bytes_held() / workload.elements for contestant in contestants)
    return Measurement([(ours, peers[0] if peers else None)], {"elements": f"{workload.elements:,}"})


def _case(name: str, title: str, options: dict[str, Any], peer: tuple[str, Maker], bar: Bar | None = None) -> Case:
    label, maker = peer
    run = functools.partial(_compare, options, maker)
    return Case(name=f"formats/{name}", title=title, peer=label, bar=bar, run=run)


def _bytes_case(
    name: str, title: str, options: dict[str, Any], peer: tuple[str, Maker], bar: Bar | None = None
) -> Case:
    label, maker = peer
    return Case(
        name=f"formats/{name}",
        title=f"{title}, held per parameter",
        peer=label,
        quantity=Quantity.VALUE,
        unit=Unit.BYTES_EACH,
        bar=bar,
        run=functools.partial(_bytes, options, maker),
    )


_TORCH = ("torch.optim.Adam(fused=True), float32", TorchFused)
_TORCH_BFLOAT16 = (torch_fused.NAME_BFLOAT16, TorchBFloat16)
_BITSANDBYTES = (bitsandbytes_8bit.NAME, BitsAndBytes8bit)
_TORCHAO = (torchao_8bit.NAME, TorchAO8bit)
_8BIT_TITLE = "8-bit state, 50 million"
_BFLOAT16_TITLE = "bfloat16 parameters, gradients and state, 50 million"

CASES: tuple[Case, ...] = (
    _case("8bit/torch", _8BIT_TITLE, EIGHT_BIT, _TORCH, Bar(0.8)),
    _case("8bit/bitsandbytes", _8BIT_TITLE, EIGHT_BIT, _BITSANDBYTES, Bar(0.15)),
    _case("8bit/torchao", _8BIT_TITLE, EIGHT_BIT, _TORCHAO),
    _bytes_case("8bit/bytes", "8-bit state, parameters and gradients in float32", EIGHT_BIT, _TORCH, Bar(10.1)),
    _bytes_case(
        "8bit/bytes/bitsandbytes", "8-bit state, parameters and gradients in float32", EIGHT_BIT, _BITSANDBYTES
    ),
    _case("bfloat16/torch", _BFLOAT16_TITLE, BFLOAT16, _TORCH, Bar(0.55)),
    _case("bfloat16/torch-bfloat16", _BFLOAT16_TITLE, BFLOAT16, _TORCH_BFLOAT16),
    _case("bfloat16/stochastic", f"{_BFLOAT16_TITLE}, rounded stochastically", STOCHASTIC, _TORCH, Bar(1.0)),
    _bytes_case("bfloat16/bytes", "bfloat16 parameters, gradients and state", BFLOAT16, _TORCH_BFLOAT16),
)
