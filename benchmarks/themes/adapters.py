"""`step()` of numba_adam.torch.Adam, a torch.optim.Optimizer, against torch.optim.Adam(fused=True) on the same shapes.

The memory of a step comes from a new process: `python -m benchmarks.themes.adapters WHO THREADS`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from benchmarks.case import Bar, Case, Measurement, MissingError, Quantity, Settings, Unit
from benchmarks.contestants import torch_fused
from benchmarks.contestants.contestant import Contestant, Maker, check_agreement, check_direction, moved
from benchmarks.contestants.our_adapter import OurAdapter, OurAdapter8bit
from benchmarks.contestants.torch_fused import TorchFused
from benchmarks.measure import interleave
from benchmarks.process import output_of
from benchmarks.themes.comparison import sizes
from benchmarks.themes.memory import growth_of_a_step
from benchmarks.workload import Repeated, Shape, Workload, equal_arrays, resnet50

_WIDTH = 768
_PROCESSES = 3
_LEAST_COSINE = 0.9  # of the changes with 8-bit state and with float32 state


def gpt2(settings: Settings) -> Workload:
    """Return the shapes of GPT-2's smallest model: 148 arrays, 124,439,808 elements (Radford et al. 2019).

    A quick run has one of its 12 blocks, and a hundredth of its tokens.
    """
    is_whole = not settings.largest_elements
    block: tuple[Shape, ...] = (
        *((_WIDTH,), (_WIDTH,)),
        *((_WIDTH, 3 * _WIDTH), (3 * _WIDTH,), (_WIDTH, _WIDTH), (_WIDTH,)),
        *((_WIDTH,), (_WIDTH,)),
        *((_WIDTH, 4 * _WIDTH), (4 * _WIDTH,), (4 * _WIDTH, _WIDTH), (_WIDTH,)),
    )
    tables = (50257 if is_whole else 502, _WIDTH), (1024, _WIDTH)
    return Repeated((*tables, *block * (12 if is_whole else 1), (_WIDTH,), (_WIDTH,)))


def _small(settings: Settings) -> Workload:  # noqa: ARG001 - small enough for every run
    return equal_arrays(count=10, elements=100)


def _resnet50(settings: Settings) -> Workload:  # noqa: ARG001 - the shapes are fixed
    return resnet50()


def _compare(maker: Maker, workload_of: Callable[[Settings], Workload], settings: Settings) -> Measurement:
    workload = workload_of(settings)
    peer: Contestant = TorchFused(workload, settings.threads)
    ours = maker(workload, settings.threads)
    pairs = interleave(ours.step, peer.step, settings)
    if maker is OurAdapter:
        check_agreement(ours, peer, workload)
    else:
        check_direction(moved(ours, workload), moved(peer, workload), _LEAST_COSINE)
    return Measurement(pairs, {**sizes(workload), "our threads": ours.threads(), "the peer's threads": peer.threads()})


def _memory(settings: Settings) -> Measurement:
    def growth(who: str) -> int:
        answer = output_of("-m", "benchmarks.themes.adapters", who, str(settings.threads))
        if answer.startswith("missing "):
            raise MissingError(answer.removeprefix("missing "))
        return int(answer)

    return Measurement([(growth("ours"), growth("peer")) for _ in range(_PROCESSES)], sizes(resnet50()))


def _case(
    name: str,
    title: str,
    workload: Callable[[Settings], Workload],
    limit: float,
    maker: Maker = OurAdapter,
    threads: int | None = None,
) -> Case:
    return Case(
        name=f"adapters/{name}",
        title=f"numba_adam.torch.Adam: {title}",
        peer=torch_fused.NAME,
        bar=Bar(limit),
        threads=threads,
        run=functools.partial(_compare, maker, workload),
    )


CASES: tuple[Case, ...] = (
    _case("10x100", "10 arrays of 100", _small, 0.7, threads=1),
    _case("resnet50", "ResNet-50's 161 arrays, 25.6 million", _resnet50, 1.0),
    _case("gpt2", "GPT-2's 148 arrays, 124 million", gpt2, 1.0),
    _case("gpt2-8bit", "GPT-2's 148 arrays, 8-bit state", gpt2, 0.8, OurAdapter8bit),
    Case(
        name="adapters/memory",
        title="numba_adam.torch.Adam: memory that a step adds at its peak, ResNet-50",
        peer=torch_fused.NAME,
        quantity=Quantity.DIFFERENCE,
        unit=Unit.BYTES,
        bar=Bar(0),
        run=_memory,
    ),
)


def main() -> None:
    """Print the growth for the contestant in the arguments."""
    who, threads = sys.argv[1:]
    try:
        makers: dict[str, Maker] = {"ours": OurAdapter, "peer": TorchFused}
        print(growth_of_a_step(makers[who](resnet50(), int(threads))))
    except MissingError as reason:
        print(f"missing {reason}")


if __name__ == "__main__":
    main()
