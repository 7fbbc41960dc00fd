"""8-bit moments on a GPU: parameters, codes and scales have the CPU's bits."""

import numpy as np
import pytest
from lending import Interface, on_gpu
from training import bits, draw, expect_same_state, expect_same_training

import numba_adam as na
from numba_adam import Hyperparameters
from numba_adam.cuda import borrow_cuda
from numba_adam.cuda.memory import download, uploaded
from numba_adam.cuda.table import CudaTable
from numba_adam.errors import DtypeError
from numba_adam.numerics.eight_bit import EightBit

HERE = borrow_cuda(Interface(np.ones(1, "f4")), name="an array")  # whatever lies on the GPU
BLOCKS = ((1,), (127,), (128,), (129,), (3, 87), (0,), ())  # shorter than a block, one, a little more, and several
OPTIONS = [
    {},
    {"amsgrad": True, "eps_mode": "algorithm1", "maximize": True},
    {"seed": 7, "weight_decay": 0.0},
    {"ema_decay": 0.9, "low_precision_copy": "bfloat16", "amsgrad": True},
    {"lr": lambda step: 0.1 / step, "betas": (0.8, 0.9)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "plain")
def test_arrays_of_any_length_have_the_cpus_bits(options):
    expect_same_training(("float32",) * 7, shapes=BLOCKS, state_dtype="8bit", **options)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "float16"])
@pytest.mark.parametrize("options", [{}, {"rounding": "stochastic"}, {"master_weights": True}], ids=str)
def test_one_array_of_any_format_has_the_cpus_bits(dtype, options):
    if dtype == "float16" and "rounding" in options:
        options = {"amsgrad": True}
    expect_same_training((dtype,), shapes=((300,),), state_dtype="8bit", **options)


def test_gradients_may_have_other_formats():
    grad_dtypes = ("float16", "uint16", "float32")
    shapes = ((130,), (40,), (257,))
    expect_same_training(("float32", "uint16", "float16"), shapes=shapes, grad_dtypes=grad_dtypes, state_dtype="8bit")


@pytest.mark.parametrize("skip", [1, 2, 3, 7])
def test_blocks_begin_at_the_first_element_at_any_address(skip):
    expect_same_training(("float32", "uint16"), shapes=((260,), (131,)), skip=skip, state_dtype="8bit", amsgrad=True)


@pytest.mark.parametrize("shapes", [((16_650,),), ((16_513,), (3,))], ids=["one array", "two"])
def test_arrays_longer_than_a_thread_block_have_the_cpus_bits(shapes):
    expect_same_training(("float32",) * 2, shapes=shapes, steps=1, state_dtype="8bit")


CALLS = [
    {"grad_scale": 0.5, "clip_value": 0.3},
    {"max_grad_norm": 0.5},
    {"loss_scale": 3.0, "max_grad_norm": 1e9, "zero_grad": True},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: ",".join(call))
def test_scaled_and_clipped_steps_have_the_cpus_bits(call):
    expect_same_training(("float32", "uint16"), shapes=((130,), (20,)), call=call, state_dtype="8bit")


@pytest.mark.parametrize("on_cpu", [(), (1,)], ids=["GPU", "mixed"])
def test_parameters_on_the_cpu_and_a_gpu_have_the_cpus_bits(on_cpu):
    expect_same_training(("uint16", "float32", "float32"), on_cpu, shapes=((130,), (40,), (9,)), state_dtype="8bit")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Python's arithmetic warns of what a GPU just computes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e30])
def test_a_non_finite_gradient_affects_its_block_as_on_the_cpu(bad):
    param, copy = np.ones(300, "f4"), np.ones(300, "f4")
    ours, theirs = (na.Adam(array, state_dtype="8bit") for array in (Interface(param), copy))
    grad = np.linspace(-1, 1, 300, dtype="f4")
    for value in (1.0, bad, 1.0, 1.0):
        grad[290] = value  # in the last block, which is not whole
        ours.step(Interface(grad))
        theirs.step(grad)
        assert bits(param) == bits(copy)
    assert np.isnan(param).tolist() == [k >= 256 for k in range(300)]


def test_zeros_and_the_smallest_blocks_have_the_cpus_bits():
    """Blocks without a gradient, with tiny gradients, with zeros of both signs, and with one element."""
    grad = np.zeros(640, "f4")
    grad[128:256] = np.linspace(-1e-18, 1e-18, 128)
    grad[256:384] = -0.0
    grad[384] = 1e-8
    grad[512:] = np.where(np.arange(128) % 2, 1e-30, 1e8)
    param, copy = np.ones(640, "f4"), np.ones(640, "f4")
    ours, theirs = (na.Adam(array, state_dtype="8bit", eps=1e-12) for array in (Interface(param), copy))
    for _ in range(3):
        ours.step(Interface(grad))
        theirs.step(grad)
    assert bits(param) == bits(copy)
    expect_same_state(ours, theirs)
    assert (ours.state[0]["exp_avg_sq_scale"] == 0).tolist() == [True, True, True, False, False]


def test_a_skipped_step_changes_no_code():
    param, grad = np.ones(130, "f4"), np.linspace(1, 2, 130, dtype="f4")
    optimizer = na.Adam(Interface(param), state_dtype="8bit")
    optimizer.step(Interface(grad))
    before, state = bits(param), optimizer.state[0]
    grad[77] = np.inf
    scale = Interface(np.array(2.0, "f4"))
    assert not optimizer.step(Interface(grad), loss_scale=scale, zero_grad=True).applied
    assert bits(param) == before
    assert np.isinf(grad[77])
    after = optimizer.state[0]
    assert all(np.array_equal(state[key], after[key]) for key in state)


def test_neighbouring_arrays_and_pieces_do_not_change_the_bits():
    """An array has the same bits alone, in the flat kernel, and among others, with the same index in the optimizer."""
    grad = draw(2, "float32", shapes=((200,),))[0]
    alone, first = (np.ones(200, "f4") for _ in range(2))
    na.Adam([Interface(alone)], state_dtype="8bit").step([Interface(grad)])
    second = np.ones(200, "f4")
    both = na.Adam(on_gpu(first, second), state_dtype="8bit", seed=0)
    both.step(on_gpu(grad, grad.copy()))
    assert bits(alone) == bits(first)
    states = both.state
    assert states[0]["exp_avg_sq"].tolist() != states[1]["exp_avg_sq"].tolist()  # each has a dither of its own


def test_amsgrad_can_be_switched_on_later():
    params, copies = (draw(1, "float32", shapes=((140,),)) for _ in range(2))
    ours, theirs = na.Adam(on_gpu(*params), state_dtype="8bit"), na.Adam(copies, state_dtype="8bit")
    for seed in range(2, 6):
        if seed == 4:
            ours.param_groups[0]["amsgrad"] = theirs.param_groups[0]["amsgrad"] = True
        grads = draw(seed, "float32", shapes=((140,),))
        ours.step(on_gpu(*grads))
        theirs.step(grads)
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]
    expect_same_state(ours, theirs)


@pytest.mark.parametrize("loaded", ["8bit", "float32", "bfloat16"])
@pytest.mark.parametrize("source_on_gpu", [False, True], ids=["from the CPU", "from a GPU"])
def test_any_state_loads_into_8_bit_state_as_on_the_cpu(loaded, source_on_gpu):
    """Codes are kept, floats become the nearest codes, and training continues with the CPU's bits."""
    shapes = ((270,), (5,))
    source = draw(1, "float32", "float32", shapes=shapes)
    old = na.Adam(on_gpu(*source) if source_on_gpu else source, state_dtype=loaded, amsgrad=True)
    grads = draw(2, "float32", "float32", shapes=shapes)
    old.step(on_gpu(*grads) if source_on_gpu else grads)
    params, copies = (draw(3, "float32", "float32", shapes=shapes) for _ in range(2))
    ours = na.Adam(on_gpu(*params), state_dtype="8bit", amsgrad=True)
    theirs = na.Adam(copies, state_dtype="8bit", amsgrad=True)
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(old.state_dict())
    expect_same_state(ours, theirs)
    ours.step(on_gpu(*grads))
    theirs.step(grads)
    assert [bits(param) for param in params] == [bits(copy) for copy in copies]
    expect_same_state(ours, theirs)


def test_a_missing_state_entry_starts_with_zeros():
    param = np.ones(130, "f4")
    optimizer = na.Adam(Interface(param), state_dtype="8bit")
    optimizer.step(Interface(np.ones(130, "f4")))
    empty = na.Adam(np.ones(130, "f4"), state_dtype="8bit").state_dict()
    optimizer.load_state_dict(empty)
    assert optimizer.state == {}


def test_codes_and_scales_are_at_their_addresses():
    moment = EightBit(np.arange(130, dtype=np.uint8).reshape(2, 65), np.ones(2, "f4"))
    there = uploaded(moment, HERE)
    assert (there.codes.format.label, there.codes.shape, there.codes.nbytes) == ("8bit", (2, 65), 130)
    assert download(there.codes).tolist() == moment.codes.tolist()
    assert download(there.scales).tolist() == [1, 1]


def test_unsupported_combinations_with_8_bit_state_are_refused():
    param = Interface(np.ones(3))
    moments = [uploaded(EightBit.zeros((3,)), HERE) for _ in range(2)]
    with pytest.raises(DtypeError, match="params: expected the compute dtype float32 for 8-bit moments, got float64"):
        CudaTable([param], moments[:1], moments[1:], hyperparameters=[Hyperparameters()])
    narrow = [Interface(np.ones(3, "f4")) for _ in range(2)]
    with pytest.raises(DtypeError, match=r"params\[0\]: expected 8 bits for all of its moments or for none"):
        CudaTable(narrow[:1], moments[:1], narrow[1:], hyperparameters=[Hyperparameters()])
    with pytest.raises(DtypeError, match=r"params\[0\] is float64, state_dtype='8bit'"):
        na.Adam([param], state_dtype="8bit")
