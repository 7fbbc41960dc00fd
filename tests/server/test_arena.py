"""The arena: the positions of its arrays, and sizes beyond 32 bits."""

import mmap
import struct

import numpy as np
import pytest

import numba_adam as na
from numba_adam.server.model.arena import ALIGNMENT, HEADER_BYTES, Arena, layout, layout_of
from numba_adam.server.model.columns import columns_of
from numba_adam.server.model.push_key import Content, PushKey
from numba_adam.server.model.push_ledger import PushLedger
from numba_adam.server.model.spec import Spec
from numba_adam.server.model.tensors import Tensor
from numba_adam.server.runtime.model import Model, Push
from numba_adam.settings.hyperparameters import Hyperparameters
from numba_adam.settings.options import Options

NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux: the system sets no memory aside for pages that are never touched


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_arrays_are_zero_aligned_and_apart(dtype, amsgrad):
    arena = Arena([3, 0, 1, 13], dtype, amsgrad=amsgrad)
    arrays = [*arena.state_arrays().values(), arena.pending]
    assert len(arrays) == 4 + amsgrad
    for number, array in enumerate(arrays, 1):
        assert array.ctypes.data % ALIGNMENT == 0
        assert array.flags.writeable
        assert array.shape == (17,)
        assert not array.any()
        array[:] = number
    for number, array in enumerate(arrays, 1):
        assert (array == number).all()


def test_the_header_has_the_offset_of_every_array():
    arena = Arena([10], "float64", amsgrad=True)
    magic, form, itemsize, count, *offsets = struct.unpack_from("<8sIIQ7Q", arena._mapping, 0)
    assert (magic, form, itemsize, count) == (b"NBADARN\x00", 2, 8, 10)
    assert offsets[0] == HEADER_BYTES
    assert offsets[5:] == [0, 0]  # neither words nor staging: the memory does not outlive the process
    for offset, name in zip(offsets[:5], ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "pending"), strict=True):
        getattr(arena, name)[0] = offset
        assert struct.unpack_from("<d", arena._mapping, offset) == (offset,)


def test_without_amsgrad_the_headers_offset_is_zero():
    arena = Arena([10], "float32")
    assert struct.unpack_from("<5Q", arena._mapping, 24)[3] == 0
    assert arena.max_exp_avg_sq is None


def test_views_are_the_tensors_in_order():
    arena = Arena([2, 0, 3], "float32")
    arena.param[:] = range(5)
    assert [view.tolist() for view in arena.views(arena.param)] == [[0, 1], [], [2, 3, 4]]


def test_a_model_of_empty_arrays_has_an_arena():
    arena = Arena([0, 0], "float32")
    assert arena.param.shape == (0,)
    assert arena.nbytes == HEADER_BYTES


def test_the_layout_counts_beyond_32_bits():
    found = layout(3_000_000_001, 8)
    assert found.offsets["exp_avg"] == HEADER_BYTES + 24_000_000_064
    assert found.offsets["pending"] % 4096 == 0  # direct writes need that
    assert found.offsets["pending"] - (found.offsets["exp_avg_sq"] + 24_000_000_064) < 4096
    assert found.total_bytes == found.offsets["pending"] + 24_000_000_064


def test_an_update_beyond_4_gib_changes_the_right_elements(monkeypatch):
    """The first tensor's 4.3 GB are never touched, so the mapping stays sparse."""
    hole, size = 2**32 // 4 + 1000, 20_000
    mapped = mmap.mmap
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", lambda *args, flags: mapped(*args, flags=flags | NO_RESERVE))
        arena = Arena([hole, size], "float32")
    spec = Spec("far", "float32", (Tensor("hole", (hole,)), Tensor("end", (size,))), Hyperparameters(lr=0.1))
    model = Model(spec, "r", arena, PushLedger("s", 2))
    rng = np.random.default_rng(3)
    start, grad = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    arena.param[hole:] = start
    epoch = model.open_session("w").epoch
    model.apply(Push(PushKey("s", "w", epoch, 1), 0, (False, True), Content("header")), grad)
    expected = [start.copy(), grad, np.zeros_like(start), np.zeros_like(start)]
    na.adam_update(*expected, 1, lr=0.1)
    assert arena.param[hole:].tobytes() == expected[0].tobytes()
    assert arena.exp_avg[hole:].tobytes() == expected[2].tobytes()
    assert arena.exp_avg_sq[hole:].tobytes() == expected[3].tobytes()
    assert not arena.param[hole - 100_000 : hole].any()
    assert not arena.param[:100_000].any()


def test_a_failed_allocation_gives_a_clear_error():
    with pytest.raises(MemoryError, match="bytes for a model's arrays"):
        Arena([1 << 58], "float32")


def test_the_mapping_is_shared():
    """The kernel's list of mappings marks it as shared."""
    arena = Arena([mmap.PAGESIZE], "float32")
    address = arena.param.ctypes.data
    with open("/proc/self/maps") as file:
        for line in file:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if low <= address < high:
                assert line.split()[1] == "rw-s"
                return
    pytest.fail("the arena is not among the mappings")


@pytest.mark.parametrize(
    ("state_dtype", "in_memory", "in_snapshot", "largest"),
    [(None, 16, 12, 4), ("bfloat16", 12, 8, 2), ("8bit", 10.0625, 6.0625, 1.03125), ("float64", 24, 20, 8)],
)
def test_the_bytes_for_each_parameter_are_those_of_the_documents(state_dtype, in_memory, in_snapshot, largest):
    count, average = 1 << 25, 8 if state_dtype == "float64" else 4

    def sizes(*, amsgrad=False, is_staged=False, **more):
        options = Options(state_dtype, **more)
        columns = columns_of([count], np.dtype(np.float32), amsgrad, options)
        found = layout_of(columns, options, is_staged=is_staged)
        return (found.total_bytes - HEADER_BYTES) / count, sum(column.nbytes for column in columns) / count

    assert sizes() == (in_memory, in_snapshot)
    assert sizes(ema_decay=0.5) == (in_memory + average, in_snapshot + average)
    assert sizes(amsgrad=True) == (in_memory + largest, in_snapshot + largest)
    assert sizes(is_staged=True)[0] <= 1.01 * in_memory
    assert sizes(is_staged=True, amsgrad=True, ema_decay=0.5)[0] <= 1.01 * (in_memory + largest + average)


def test_a_file_of_other_formats_is_not_taken_for_ones_own(tmp_path):
    path = tmp_path / "arena"
    with path.open("w+b") as file:
        sizes, options = [300, 5], Options("8bit")
        columns = columns_of(sizes, np.dtype(np.float32), False, options)
        file.truncate(4 * layout_of(columns, options, is_staged=True).total_bytes)  # any of them would fit
        Arena(sizes, "float32", file=file.fileno(), options=options).param[:] = 1
        assert Arena(sizes, "float32", file=file.fileno(), options=options).param.tolist() == [1] * 305
        for other in (Options(), Options("bfloat16")):
            with pytest.raises(ValueError, match="header"):
                Arena(sizes, "float32", file=file.fileno(), options=other)
