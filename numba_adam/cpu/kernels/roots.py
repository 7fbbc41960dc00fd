"""Square roots of vectors without the CPU's slow instruction for them. Imports Numba and llvmlite.

AVX-512 has an estimate of 1 / sqrt(x), good to 14 bits. A Newton step and the exact residual x - s * s make a root of
it that is correctly rounded, so it has the bits of the CPU's root. This holds for every estimate as good as AVX-512
demands, and for every x from 2**-102 up: below that, the residual is not exact. benchmarks/estimates.c tries all such
estimates of all mantissas. A vector with any other number (smaller, zero, negative, infinite, NaN) takes the CPU's
roots. `vector_width.estimates_roots` says on which CPUs this is faster.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from numba_adam.cpu.kernels.lanes import FLOATS, LANES, WORDS, call, floats

_MASK = ir.IntType(LANES)
_HALF = ir.Constant(FLOATS, [0.5] * LANES)
_LEAST = 25 << 23  # the bits of 2**-102
_INFINITY = 255 << 23  # the bits of infinity


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, f"llvm.fma.v{LANES}f32", a, b, c)


def _estimated(builder: Any, x: Any) -> Any:
    """Return the roots of numbers from 2**-102 up."""
    unused, every = ir.Constant(FLOATS, None), _MASK(2**LANES - 1)
    estimate = call(builder, f"llvm.x86.avx512.rsqrt14.ps.{32 * LANES}", x, unused, every)
    root, half = builder.fmul(x, estimate), builder.fmul(_HALF, estimate)
    error = _fma(builder, builder.fneg(half), root, _HALF)
    root, half = _fma(builder, root, error, root), _fma(builder, half, error, half)
    residual = _fma(builder, builder.fneg(root), root, x)
    return _fma(builder, residual, half, root)


def _exact(builder: Any, x: Any) -> Any:
    """Return the CPU's roots."""
    return call(builder, f"llvm.sqrt.v{LANES}f32", x)


def _has_others(builder: Any, x: Any) -> Any:
    """Say whether any number is below 2**-102, infinite or NaN: one comparison of the bits as unsigned numbers."""
    distance = builder.sub(builder.bitcast(x, WORDS), ir.Constant(WORDS, [_LEAST] * LANES))
    is_other = builder.icmp_unsigned(">=", distance, ir.Constant(WORDS, [_INFINITY - _LEAST] * LANES))
    return builder.icmp_unsigned("!=", builder.bitcast(is_other, _MASK), _MASK(0))


@intrinsic
def exact_root(typingctx: Any, x: Any) -> Any:
    """Return the roots of a vector's numbers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _exact(builder, args[0])

    return floats(x), codegen


@intrinsic
def estimated_root(typingctx: Any, x: Any) -> Any:
    """Return the same bits, from estimates if all of a vector's numbers allow that."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,) = args
        with builder.if_else(_has_others(builder, x), likely=False) as (otherwise, usually):
            with otherwise:
                exact, from_exact = _exact(builder, x), builder.block
            with usually:
                estimated, from_estimated = _estimated(builder, x), builder.block
        roots = builder.phi(FLOATS)
        roots.add_incoming(exact, from_exact)
        roots.add_incoming(estimated, from_estimated)
        return roots

    return floats(x), codegen
