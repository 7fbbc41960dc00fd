"""What the kernels choose from the CPU: first of all, how wide their vectors are. Imports Numba and llvmlite.

On Intel CPUs with AVX-512, LLVM prefers vectors of 256 bits. Early CPUs with AVX-512 lowered their clock where a
program used 512. From Ice Lake on they do not, and loops with much arithmetic are faster with 512 bits. So these loops
ask for 512 with LLVM's function attribute "prefer-vector-width", and the others leave the choice to LLVM. The width
changes no bit: vector lanes never mix.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import config
from numba.extending import intrinsic


class Measured(NamedTuple):
    """CPU time of one thread with vectors of 512 bits, divided by that with 256 bits: medians of interleaved turns.

    Each pair has the time with arrays of 200 thousand elements, in the caches, and with 20 million, in memory.
    """

    intel: tuple[float, float]
    amd: tuple[float, float]
    is_wide: bool  # whether the kernel asks for 512 bits where LLVM would choose 256


# Intel: Xeon, family 6, model 167 as its hypervisor says ("rocketlake" to LLVM 22; it has AVX-512 FP16 and AMX as
# Sapphire Rapids has), November 2026; load 5 to 8, so CPU time. In memory good to 0.03, in the caches to 0.1.
# AMD: EPYC, family 26, model 2 ("znver5": LLVM chooses 512 bits itself), December 2026; load 3 to 6, good to 0.05.
MEASURED = {
    "float32": Measured((1.01, 1.01), (0.64, 1.10), False),
    "float64": Measured((1.07, 1.02), (0.57, 1.15), False),
    "bfloat16": Measured((0.92, 0.81), (0.53, 0.56), True),  # all arrays
    "formats": Measured((0.83, 0.67), (0.68, 0.70), True),  # float16; with stochastic rounding 0.92, 0.87; 0.51, 0.51
    "8-bit": Measured((0.98, 0.79), (0.60, 0.59), True),
    "norm": Measured((1.06, 1.02), (0.75, 1.09), False),  # and the check for finite gradients
    "average": Measured((1.04, 1.01), (0.66, 1.03), False),
    "accumulation": Measured((0.99, 1.09), (0.92, 1.00), False),
    "rows": Measured((1.11, 0.97), (1.21, 0.96), False),
}
_WIDE = 512
# LLVM's names of Intel's CPUs from Ice Lake on. Their one unit for roots and divisions bounds the float32 update in the
# caches: with one root in four estimated it takes 0.91 of the time (on the Xeon above). On the EPYC above, roots and
# divisions cost a tenth of the loop, which takes 1.05 of the time with one root in four estimated
# (benchmarks/results/estimates.txt). There the update in vectors of 512 bits, with roots, takes half the time of that
# in 256 bits with estimates.
_WITH_ONE_DIVIDER = ("icelake", "tigerlake", "rocketlake", "sapphirerapids", "emeraldrapids", "graniterapids")
_FULL_CLOCK = ("avx512vl", "avx512vbmi2")  # from Ice Lake on, and AMD from Zen 4 on, where LLVM prefers 512 bits itself


@functools.cache
def wide_bits() -> int:
    """Return the width that wide kernels ask for, in bits; 0 if they leave the choice to LLVM.

    A user who sets NUMBA_CPU_NAME, NUMBA_CPU_FEATURES or NUMBA_ENABLE_AVX=0 has chosen.
    """
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None or not config.ENABLE_AVX:
        return 0
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know the features of this kind of CPU
        return 0
    return _WIDE if all(features.get(name, False) for name in _FULL_CLOCK) else 0


@functools.cache
def estimates_roots() -> bool:
    """Say whether the float32 update estimates a part of its roots; see `roots`."""
    return bool(wide_bits()) and binding.get_host_cpu_name().startswith(_WITH_ONE_DIVIDER)


@functools.cache
def prefetches_to_first_cache() -> bool:
    """Say whether float32 and float64 updates of large arrays prefetch to the first cache, not only to the second.

    On the EPYC of MEASURED, CPU time of one thread, load 8 to 11: 0.94 [0.90, 0.99] for 20 million float32 elements,
    0.92 [0.91, 0.92] for 10 million float64, 0.91 [0.86, 0.93] for ResNet-50's 161 arrays, 1.02 [0.95, 1.06] with an
    average. Not measured on other CPUs.
    """
    return binding.get_host_cpu_name() == "znver5"


def vectors_of(kind: str) -> Any:
    """Return a function that a kernel calls in the function with its loop, to choose the width of its vectors.

    Args:
        kind: a key of MEASURED.
    """
    bits = wide_bits() if MEASURED[kind].is_wide else 0

    @intrinsic
    def choose_width(typingctx: Any) -> Any:
        """Choose the width of the vectors of the calling function. No code remains of the call."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if bits:
                _set_attribute(builder.function, "prefer-vector-width", str(bits))
            return context.get_dummy_value()

        return types.void(), codegen

    return choose_width


def _set_attribute(function: ir.Function, name: str, value: str) -> None:
    """Set an attribute that llvmlite does not know: a pair of strings, which LLVM passes on to the target."""
    set.add(function.attributes, f'"{name}"="{value}"')
