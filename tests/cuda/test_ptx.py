"""Compiles every kernel to PTX for sm_80 and sm_90 and checks the PTX. This needs a CUDA package, but no GPU.

PTX is what the driver makes machine code of. It may fuse a multiplication with an addition only where neither says how
it rounds: a `mul.rn` stays alone.
"""

import functools
import re
from importlib import util
from typing import NamedTuple

import pytest
import stated_gpu

from benchmarks.gpu.kernels import LAYOUTS, SMALL, SUMS, WAYS
from numba_adam.cuda import seam
from numba_adam.cuda.kernels import access, accumulate, update

pytestmark = pytest.mark.cuda  # compiling PTX needs a CUDA package and NVVM: `make cuda`, `make packages`

STRICT = [name for name, layout in LAYOUTS.items() if not layout.contract]
FUSED = [name for name, layout in LAYOUTS.items() if layout.contract]
EIGHT_BIT = [name for name, layout in LAYOUTS.items() if layout.exp_avg == "8bit"]


if seam.PACKAGE != "numba-cuda":
    stated_gpu.state(8, 0)  # the others ask for the current GPU, even where the capability to compile for is given


@functools.cache
def instructions(name, kernel, capability):
    """Return a kernel's instructions, one per line: the operation, then the operands."""
    if kernel in WAYS:
        made, arguments = getattr(update.kernels(LAYOUTS[name]), kernel), WAYS[kernel]
    elif kernel.startswith("sum "):
        kind = kernel.removeprefix("sum ")
        made, arguments = getattr(accumulate.kernels(SUMS[name]), kind), WAYS[kind]
    else:
        make, arguments = SMALL[name]
        made = make()
    ptx = seam.compile_ptx(made, arguments, capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    lines = [re.sub(r"^@!?%p\d+\s+", "", line.strip()) for line in ptx.splitlines()]
    return [line for line in lines if re.match(r"[a-z][\w.]*\s", line)], ptx


@pytest.fixture(params=[(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
def capability(request):
    return request.param


@pytest.fixture(params=["flat", "table"])
def kernel(request):
    return request.param


def operations(lines):
    return [line.split()[0] for line in lines]


def expect_nothing_to_fuse(lines):
    """Check that no operation is fused, and that products used by additions have explicit rounding."""
    assert [line for line in lines if line.startswith("fma")] == []
    bare = {re.split(r"[\s,;]+", line)[1] for line in lines if re.match(r"mul\.f(32|64)", line)}
    sums = [line for line in lines if re.match(r"(add|sub)\.f(32|64)", line)]
    assert [line for line in sums if bare & set(re.split(r"[\s,;]+", line)[2:])] == []


def expect_strict_arithmetic(lines):
    """Check that division and root follow IEEE 754, and that subnormal numbers are kept."""
    approximate = re.compile(r"\.(approx|full|ftz)|^(rsqrt|rcp|ex2|lg2|call)")
    assert [line for line in lines if approximate.search(line)] == []
    assert all(op.startswith("div.rn.f") for op in operations(lines) if re.match(r"div\..*f(32|64)", op))
    assert all(op.startswith("sqrt.rn.f") for op in operations(lines) if op.startswith("sqrt"))


@pytest.mark.parametrize("name", STRICT)
def test_the_update_rounds_every_operation_on_its_own(name, kernel, capability):
    lines, _ = instructions(name, kernel, capability)
    real = LAYOUTS[name].real.replace("float", "f")
    assert {f"div.rn.{real}", f"sqrt.rn.{real}", f"mul.rn.{real}"} <= set(operations(lines))
    expect_strict_arithmetic(lines)
    expect_nothing_to_fuse(lines)


@pytest.mark.parametrize("name", FUSED)
def test_the_update_is_fused_with_contract(name, kernel, capability):
    lines, _ = instructions(name, kernel, capability)
    real = LAYOUTS[name].real.replace("float", "f")
    assert f"fma.rn.{real}" in operations(lines)
    assert {f"div.rn.{real}", f"sqrt.rn.{real}"} <= set(operations(lines))
    expect_strict_arithmetic(lines)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].real == "float32"])
def test_float32_kernels_compute_nothing_in_float64(name, kernel, capability):
    lines, _ = instructions(name, kernel, capability)
    assert [line for line in lines if ".f64" in line] == []


def wide(layout, names):
    """Return the number of accesses of a group of elements: of 16 bytes, or 8 for a small column."""
    lanes = 8 if layout.real == "float32" else 4
    item_bytes = {"float32": 4, "float64": 8, "8bit": 1}
    columns = [getattr(layout, name) for name in names]
    return sum(max(1, lanes * item_bytes.get(number, 2) // 16) for number in columns if number)


@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_are_loaded_and_stored_in_16_bytes(name, kernel, capability):
    lines, _ = instructions(name, kernel, capability)
    layout = LAYOUTS[name]
    read = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "ema")
    written = ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "ema", "copy", *(["grad"] * layout.zero_grad))
    vectors = [op for op in operations(lines) if re.search(r"\.v[24]\.", op)]
    assert sum(op.startswith("ld.global.") for op in vectors) == wide(layout, read)
    assert sum(op.startswith("st.global.") for op in vectors) >= wide(layout, written)
    expect_full_width(layout, vectors)


def expect_full_width(layout, vectors):
    """Check that some loads have 16 bytes."""
    full = "v2.f64" if layout.real == "float64" else "v4"
    assert any(op.startswith(f"ld.global.{full}") for op in vectors)


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_the_largest_value_of_a_block_is_found_by_shuffles(name, kernel, capability):
    """Four rounds of shuffles for each moment among 16 threads, without shared memory or barriers."""
    lines, ptx = instructions(name, kernel, capability)
    found = operations(lines)
    assert found.count("shfl.sync.bfly.b32") == 4 * (3 if LAYOUTS[name].max_exp_avg_sq else 2)
    assert ".shared" not in ptx
    if seam.TAKES_MLIR:  # which writes down, by this one, when the step of a range is zero; here it never is
        found = [op for op in found if op != "atom.global.cas.b32"]
    assert not any(op.startswith(("bar", "atom", "red.")) for op in found)


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_each_root_is_computed_once(name, kernel, capability):
    """The step and the stored code share a root. The loop has three copies: with clipping, with decay, with neither.

    AMSGrad's step divides by another one, so there are two of each element. And one is taken once, beside eps.
    """
    lines, _ = instructions(name, kernel, capability)
    roots = [op for op in operations(lines) if op.startswith("sqrt")]
    assert len(roots) <= 3 * 8 * (2 if LAYOUTS[name].max_exp_avg_sq else 1) + 1


@pytest.mark.parametrize("name", SUMS)
def test_sums_use_16_byte_accesses_and_round_every_operation(name, kernel, capability):
    lines, ptx = instructions(name, f"sum {kernel}", capability)
    layout = SUMS[name]
    vectors = [op for op in operations(lines) if re.search(r"\.v[24]\.", op)]
    assert sum(op.startswith("ld.global.") for op in vectors) == wide(layout, ("param", "grad"))
    assert sum(op.startswith("st.global.") for op in vectors) == wide(layout, ("param",))
    expect_full_width(layout, vectors)
    expect_strict_arithmetic(lines)
    expect_nothing_to_fuse(lines)
    assert ".local" not in ptx
    assert layout.real == "float64" or not [line for line in lines if ".f64" in line]


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_loads_are_issued_before_the_first_use(name, kernel, capability):
    lines, _ = instructions(name, kernel, capability)
    found = operations(lines)
    loads = [k for k, op in enumerate(found) if op.startswith("ld.global.v")]
    between = found[loads[0] : loads[-1]]
    waiting = [op for op in between if re.match(r"st\.|bra|(add|sub|mul|div|sqrt|fma)\.(rn\.)?f", op)]
    assert len(loads) >= 4
    assert waiting == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_elements_stay_in_registers(name, kernel, capability):
    _, ptx = instructions(name, kernel, capability)
    assert ".local" not in ptx
    assert "call" not in ptx


@pytest.mark.parametrize("name", SMALL)
def test_folding_and_summing_round_every_operation(name, capability):
    lines, ptx = instructions(name, "small", capability)
    expect_strict_arithmetic(lines)
    expect_nothing_to_fuse(lines)
    # numba-cuda-mlir goes through the three numbers of which a stream's key is made in memory.
    assert ".local" not in ptx or (seam.TAKES_MLIR and name.startswith("fold"))


def test_the_first_installed_cuda_package_is_used():
    modules = {"numba-cuda": "numba_cuda", "numba-cuda-mlir": "numba_cuda_mlir"}
    installed = [name for name, module in modules.items() if util.find_spec(module) is not None]
    assert next(iter(installed), "numba.cuda") == seam.PACKAGE


class Ends(NamedTuple):
    first: int
    last: int


_store_int64 = access.scalar("int64")[1]


def _store_ends(address, count):
    ends = Ends(min(count, address), max(count, address))
    _store_int64(address, ends.first)
    _store_int64(address + 8, ends.last)


_load_uint32, _store_uint32 = access.scalar("uint32")


def _store_extremes(address):
    _store_uint32(address + 8, min(_load_uint32(address), _load_uint32(address + 4)))
    _store_uint32(address + 12, max(_load_uint32(address), _load_uint32(address + 4)))


def test_unsigned_numbers_are_compared_as_unsigned(capability):
    """numba-cuda-mlir 0.6.0 compiles their min and max as `min.s32` and `max.s32`."""
    ptx = seam.compile_ptx(seam.kernel(_store_extremes, "extremes"), ("int64",), capability)
    assert re.findall(r"(?:min|max|setp\.\w+)\.([us])(?:32|64)", ptx) in (["u"], ["u", "u"])


def test_kernels_can_make_named_tuples_and_use_min_and_max(capability):
    """Numba 0.68.1's own numba.cuda stops at min and max of two numbers, numba-cuda-mlir 0.6.0 at the named tuple."""
    ptx = seam.compile_ptx(seam.kernel(_store_ends, "ends"), ("int64", "int64"), capability)
    assert ptx.count("st.global.") == 2
