"""borrow_cuda: arrays on a GPU through either protocol; all others are refused by name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lending import Capsule, Interface

import numba_adam as na
from numba_adam.cuda import borrow_cuda, is_on_cuda
from numba_adam.errors import DtypeError, LayoutError, ReadOnlyError, UnsupportedArrayError


@pytest.mark.parametrize(
    ("dtype", "code", "number"),
    [("f4", 2, "float32"), ("f8", 2, "float64"), ("f2", 2, "float16"), ("u2", 4, "bfloat16"), ("u2", 1, "bfloat16")],
)
def test_both_protocols_give_the_same_result(dtype, code, number):
    array = np.zeros((2, 3), dtype)
    for lent in (Interface(array, device=3), Capsule(array, code, device=3)):
        borrowed = borrow_cuda(lent, name="w", writable=True)
        assert (borrowed.address, borrowed.shape, borrowed.format.label) == (array.ctypes.data, (2, 3), number)
        assert (borrowed.device, borrowed.size, borrowed.nbytes) == (3, 6, array.nbytes)
        assert borrowed.dtype == array.dtype


def test_a_dtype_without_an_array_interface_type_is_read_from_dlpack():
    """PyTorch's bfloat16 has no type string."""

    class Both(Capsule):
        @property
        def __cuda_array_interface__(self):
            raise TypeError("no type string for bfloat16")

    array = np.zeros(4, "u2")
    assert borrow_cuda(Both(array, 4), name="w").format.label == "bfloat16"


def test_a_tensor_that_requires_grad_is_borrowed():
    class Recording(Interface):
        def detach(self):
            return Interface(self.array)

        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("can't get __cuda_array_interface__ on a variable that requires grad")

    array = np.zeros(4, "f4")
    assert borrow_cuda(Recording(array), name="w").address == array.ctypes.data


def test_the_stream_comes_from_the_array():
    assert borrow_cuda(Interface(np.zeros(4, "f4")), name="w").stream == 7
    assert borrow_cuda(Capsule(np.zeros(4, "f4")), name="w").stream == 1  # CUDA's legacy default stream


@pytest.mark.parametrize("lend", [Interface, Capsule])
@pytest.mark.parametrize("array", [np.zeros((4, 3), "f4").T, np.zeros(8, "f4")[::2], np.zeros((4, 4), "f4")[:, :2]])
def test_arrays_that_are_not_contiguous_are_refused(lend, array):
    with pytest.raises(LayoutError, match=r"grads\['w'\].*expected C-contiguous memory, got strides"):
        borrow_cuda(lend(array), name="grads['w']")


@pytest.mark.parametrize("lend", [Interface, Capsule])
@pytest.mark.parametrize("shape", [(), (0,), (1, 5), (5, 1), (3, 0, 2)])
def test_strides_of_axes_of_length_one_are_ignored(lend, shape):
    array = np.zeros((*shape, 2), "f4")[..., 0] if shape in ((), (0,)) else np.zeros(shape, "f4")
    assert borrow_cuda(lend(array), name="w").shape == shape


def test_read_only_arrays_are_refused_only_for_writing():
    array = np.zeros(4, "f4")
    array.flags.writeable = False
    assert borrow_cuda(Interface(array), name="w").size == 4
    with pytest.raises(ReadOnlyError, match=r"params\['w'\].*read-only"):
        borrow_cuda(Interface(array), name="params['w']", writable=True)


@pytest.mark.parametrize("dtype", ["i4", "c8", "?"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(DtypeError, match=r"w \(lending\.Interface\): expected float32, float64.*got dtype"):
        borrow_cuda(Interface(np.zeros(4, dtype)), name="w")


def test_memory_of_this_host_is_refused():
    with pytest.raises(UnsupportedArrayError, match=r"w .*not in the memory of a CUDA GPU"):
        borrow_cuda(np.zeros(4, "f4"), name="w")
    assert not is_on_cuda(np.zeros(4))
    assert not is_on_cuda([1.0])
    assert is_on_cuda(Interface(np.zeros(4, "f4")))
    assert is_on_cuda(Capsule(np.zeros(4, "f4")))


def test_unaligned_arrays_are_refused():
    array = np.frombuffer(bytearray(17), "f4", count=4, offset=1)
    with pytest.raises(LayoutError, match=r"expected an address that is a multiple of 4, got 0x"):
        borrow_cuda(Interface(array), name="w")


@pytest.mark.parametrize("lend", [Interface, Capsule])
def test_rows_of_a_table_on_a_gpu_are_refused(lend):
    table, grads, *moments = (lend(np.ones(shape, "f4")) for shape in ((4, 2), (1, 2), (4, 2), (4, 2)))
    with pytest.raises(UnsupportedArrayError, match=r"param .*expected an array in this host's"):
        na.adam_update_rows(table, np.array([1]), grads, *moments, 1)
    assert table.array.tolist() == [[1, 1]] * 4


def test_borrowing_imports_no_cuda_package():
    program = (
        "import sys, numba_adam.cuda as cuda\n"
        "assert not cuda.is_on_cuda(1)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'numba', 'numba_cuda', 'torch', 'cupy'}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=800)
    assert run.stdout.strip() == "[]"


def test_without_a_gpu_a_table_raises_a_clear_error():
    program = (
        "import numpy as np\n"
        "from numba_adam import Hyperparameters\n"
        "from numba_adam.cuda import CudaUnavailableError\n"
        "from numba_adam.cuda.table import CudaTable\n"
        "try: CudaTable([], [], [], hyperparameters=[Hyperparameters()])\n"
        "except CudaUnavailableError as error: print(isinstance(error, ImportError), error)"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    hidden.pop("NUMBA_ENABLE_CUDASIM", None)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=hidden, timeout=800)
    assert "True" in run.stdout, run.stderr
    assert "finds no GPU" in run.stdout
    assert "pip install" in run.stdout


def test_training_on_the_cpu_imports_no_cuda_package():
    program = (
        "import sys, numpy as np, numba_adam as na\n"
        "na.Adam([np.ones(3)]).step([np.ones(3)], loss_scale=2.0)\n"
        "na.adam_update(np.ones(3), np.ones(3), np.zeros(3), np.zeros(3), 1)\n"
        "print(sorted({'numba.cuda', 'numba_cuda', 'numba_adam.cuda.seam', 'torch', 'cupy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=800)
    assert run.stdout.strip() == "[]"


def test_without_a_gpu_the_optimizer_raises_a_clear_error():
    program = (
        "import sys, numpy as np, numba_adam as na\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from lending import Capsule\n"
        "from numba_adam.errors import CudaUnavailableError\n"
        "array = Capsule(np.ones(3))\n"
        "uses = [lambda: na.Adam([np.ones(3), array]), lambda: na.adam_update(*[array] * 4, 1)]\n"
        "for use in (*uses, lambda: na.warmup('cuda')):\n"
        "    try: use()\n"
        "    except CudaUnavailableError as error: print(error)"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    hidden.pop("NUMBA_ENABLE_CUDASIM", None)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=hidden, timeout=800)
    assert run.stdout.count("pip install") == 3, run.stdout + run.stderr
