"""Features of the CPU that make LLVM use one vector width in all kernels."""

from __future__ import annotations

from llvmlite import binding

_HOST = binding.get_host_cpu_features()
WIDTHS = [bits for bits, feature in ((256, "avx2"), (512, "avx512vl")) if _HOST.get(feature, False)]


def preferring(bits: int) -> str:
    """Return the host's features for NUMBA_CPU_FEATURES, with this width preferred."""
    preferred = [f"{'+' if bits == width else '-'}prefer-{width}-bit" for width in (128, 256)]
    return ",".join([_HOST.flatten(), *preferred])
