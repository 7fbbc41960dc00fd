"""The kernels choose the width of their vectors from the CPU's features, and a cached kernel has the chosen width."""

from __future__ import annotations

import numpy as np
import pytest
from llvmlite import binding
from numba import njit
from numba.core import config

from numba_adam.cpu.kernels import cache, prefetch, vector_width

HASWELL = {"avx2": True, "fma": True}
SKYLAKE = {**HASWELL, "avx512f": True, "avx512vl": True, "avx512bw": True, "avx512dq": True}
ICE_LAKE = {**SKYLAKE, "avx512vbmi": True, "avx512vbmi2": True}


@pytest.fixture
def on(monkeypatch):
    """Return a function that makes the next choices on a CPU with these features."""
    for name in ("CPU_NAME", "CPU_FEATURES"):
        monkeypatch.setattr(config, name, None)
    monkeypatch.setattr(config, "ENABLE_AVX", 1)

    def choose(features):
        monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
        return vector_width.wide_bits.__wrapped__()

    return choose


@pytest.mark.parametrize(("features", "bits"), [(HASWELL, 0), (SKYLAKE, 0), (ICE_LAKE, 512), ({"neon": True}, 0)])
def test_wide_where_the_clock_stays(on, features, bits):
    assert on(features) == bits


def test_llvm_chooses_where_features_are_unknown(on, monkeypatch):
    def fails():
        raise RuntimeError("unknown architecture")

    on({})
    monkeypatch.setattr(binding, "get_host_cpu_features", fails)
    assert vector_width.wide_bits.__wrapped__() == 0


@pytest.mark.parametrize(("name", "estimated"), [("sapphirerapids", True), ("znver4", False), ("znver5", False)])
def test_roots_are_estimated_where_they_bound_the_loop(on, monkeypatch, name, estimated):
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: name)
    wide, narrow = on(ICE_LAKE), on(HASWELL)
    monkeypatch.setattr(vector_width, "wide_bits", lambda: wide)
    assert vector_width.estimates_roots.__wrapped__() == estimated
    monkeypatch.setattr(vector_width, "wide_bits", lambda: narrow)
    assert not vector_width.estimates_roots.__wrapped__()


@pytest.mark.parametrize(("name", "cache_level"), [("znver5", 3), ("sapphirerapids", 2), ("znver4", 2)])
def test_large_arrays_are_prefetched_to_the_cache_that_is_fastest(monkeypatch, name, cache_level):
    """LLVM's levels of locality: 3 is the first cache, 2 the second."""
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: name)
    chosen = vector_width.prefetches_to_first_cache.__wrapped__
    monkeypatch.setattr(prefetch, "prefetches_to_first_cache", chosen)
    prefetched = njit(prefetch.prefetch_stretch.py_func)  # compiled anew

    prefetched(np.zeros(4096, np.float32), np.uint64(0))
    (llvm,) = prefetched.inspect_llvm().values()
    calls = [line for line in llvm.splitlines() if "call void @llvm.prefetch" in line]
    assert calls
    assert all(f"i32 {cache_level}, i32 1" in line for line in calls)


@pytest.mark.parametrize(("name", "value"), [("CPU_NAME", "haswell"), ("CPU_FEATURES", ""), ("ENABLE_AVX", 0)])
def test_the_choice_of_the_user_stands(on, monkeypatch, name, value):
    monkeypatch.setattr(config, name, value)
    assert on(ICE_LAKE) == 0


def test_a_kernel_of_one_width_is_never_loaded_where_another_is_chosen(monkeypatch):
    fingerprints = []
    for bits in (0, 512, 0):
        monkeypatch.setattr(cache, "wide_bits", lambda bits=bits: bits)
        fingerprints.append(cache.sources.__wrapped__().fingerprint)
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize("choice", ["estimates_roots", "prefetches_to_first_cache"])
def test_a_kernel_with_another_choice_is_never_loaded(monkeypatch, choice):
    fingerprints = []
    for chosen in (False, True, False):
        monkeypatch.setattr(cache, choice, lambda chosen=chosen: chosen)
        fingerprints.append(cache.sources.__wrapped__().fingerprint)
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.parametrize(("kind", "is_wide"), [("8-bit", True), ("float32", False)])
def test_the_choice_reaches_the_machine_code(monkeypatch, kind, is_wide):
    monkeypatch.setattr(vector_width, "wide_bits", lambda: 512)
    choose = vector_width.vectors_of(kind)

    @njit
    def doubled(values):
        choose()
        for i in range(values.size):
            values[i] *= 2

    values = np.arange(100.0)
    doubled(values)
    assert (values == 2 * np.arange(100.0)).all()
    (llvm,) = doubled.inspect_llvm().values()
    assert ('"prefer-vector-width"="512"' in llvm) == is_wide
