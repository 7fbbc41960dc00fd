"""PyTorch tensors with any order of axes, and changes of the order, compared with torch.optim.Adam."""

from __future__ import annotations

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import DtypeError, LayoutError, ShapeError, UnsupportedArrayError
from numba_adam.interop import to_torch_state_dict

try:
    import torch
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]

LR = 0.05
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def pair(make, **options):
    """Return equal parameters, and an optimizer of each: ours and PyTorch's."""
    ours, theirs = make(), make()
    mine = na.Adam(list(ours.parameters()), lr=LR, eps_mode="algorithm1", **options)
    return ours, theirs, mine, torch.optim.Adam(theirs.parameters(), lr=LR, amsgrad=options.get("amsgrad", False))


def train(module, optimizer, data):
    """Make a step of either optimizer on the sum of squares of the output."""
    module.zero_grad()
    (module(data) ** 2).sum().backward()
    if isinstance(optimizer, na.Adam):
        optimizer.step([param.grad for param in module.parameters()])
    else:
        optimizer.step()


def expect_equal(one, other):
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert mine.stride() == theirs.stride()
        torch.testing.assert_close(mine.detach(), theirs.detach(), **CLOSE)


def convolution(memory_format=None):
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, 2, 2))
    return module if memory_format is None else module.to(memory_format=memory_format)


def images(seed, memory_format=None):
    data = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    return data if memory_format is None else data.contiguous(memory_format=memory_format)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=repr)
def test_channels_last_weights_train_as_with_torch(options):
    last = torch.channels_last
    ours, theirs, mine, their = pair(lambda: convolution(last), **options)
    assert not ours[0].weight.is_contiguous()
    for seed in range(4):
        train(ours, mine, images(seed, last))
        train(theirs, their, images(seed, last))
    expect_equal(ours, theirs)
    for index, param in enumerate(theirs.parameters()):
        for key in ("exp_avg", "exp_avg_sq"):
            found, expected = mine.state[index][key], their.state[param][key]
            assert (found.shape, tuple(s // 4 for s in found.strides)) == (expected.shape, expected.stride())
            np.testing.assert_allclose(found, expected.numpy(), **CLOSE)


@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True, "ema_decay": 0.5}, {"low_precision_copy": "bfloat16"}], ids=repr
)
def test_a_model_converted_to_channels_last_continues_as_with_torch(options):
    ours, theirs, mine, their = pair(convolution, **options)
    for seed in range(6):
        if seed == 2:
            ours, theirs = (module.to(memory_format=torch.channels_last) for module in (ours, theirs))
        if seed == 4:
            ours, theirs = (module.to(memory_format=torch.contiguous_format) for module in (ours, theirs))
        train(ours, mine, images(seed))
        train(theirs, their, images(seed))
        expect_equal(ours, theirs)
    if "low_precision_copy" in options:
        copies = [torch.tensor(copy.view(np.uint16).astype(np.int32)).to(torch.int16) for copy in mine.low_precision]
        for copy, param in zip(copies, ours.parameters(), strict=True):
            assert torch.equal(copy.view(torch.bfloat16), param.detach().bfloat16())


class Bare(torch.nn.Module if torch else object):
    """One matrix."""

    def __init__(self, rows=4, columns=4):
        super().__init__()
        values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
        self.weight = torch.nn.Parameter(values)

    def forward(self, data):
        return data * self.weight


TURNS = {
    ".data = .data.t()": lambda w: setattr(w, "data", w.data.t()),
    ".data = .data.t().contiguous()": lambda w: setattr(w, "data", w.data.t().contiguous()),
    "t_() without gradients": lambda w: torch.no_grad()(w.t_)(),
    "set_()": lambda w: torch.no_grad()(w.set_)(w.detach().t()),
    "transpose_": lambda w: torch.no_grad()(w.transpose_)(0, 1),
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_a_matrix_transposed_in_place_updates_the_right_elements(turn):
    """As in torch.optim, the state of index (i, j) stays with index (i, j)."""
    ours, theirs, mine, their = pair(Bare)
    data = torch.randn(4, 4, generator=torch.Generator().manual_seed(9))
    for step in range(5):
        if step in (2, 3):
            turn(ours.weight)
            turn(theirs.weight)
        train(ours, mine, data)
        train(theirs, their, data)
        expect_equal(ours, theirs)


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_a_parameter_with_another_shape_is_refused_until_it_is_restored(turn):
    module = Bare(3, 4)
    weight = module.weight
    optimizer = na.Adam([weight], lr=LR)
    optimizer.step([torch.ones(3, 4)])
    before = weight.detach().clone()
    turn(weight)
    for grad in (torch.ones(4, 3), torch.ones(3, 4), np.ones((4, 3), np.float32)):
        for call in (optimizer.step, optimizer.accumulate):
            with pytest.raises(ShapeError, match=r"params\[0\] has shape \(4, 3\).*\(3, 4\)"):
                call([grad])
    assert torch.equal(weight.detach().t(), before)
    turn(weight)
    optimizer.step([torch.ones(3, 4)])
    assert optimizer.state[0]["step"] == 2


def test_a_weight_with_swapped_axes_trains_as_with_torch():
    module = torch.nn.ConvTranspose2d(4, 4, 3)
    weight = module.weight
    twin = weight.detach().clone().numpy()
    optimizer, other = na.Adam([weight, module.bias], lr=LR), na.Adam([twin, np.zeros(4, np.float32)], lr=LR)
    grads = torch.randn(3, 4, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    for index, grad in enumerate(grads):
        if index == 1:
            weight.data = weight.data.transpose(0, 1)
            twin[...] = twin.transpose(1, 0, 2, 3).copy()
        optimizer.step([grad, None])
        other.step([grad.numpy(), None])
        assert (weight.detach().numpy() == twin).all()


@pytest.mark.parametrize("make", [lambda w: w.view(torch.int32), lambda w: w.double(), lambda w: w.half()])
def test_another_dtype_is_refused_at_any_address(make):
    param = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = na.Adam([param])
    optimizer.step([torch.ones(4, 4)])
    kept, before = param.data, param.detach().clone()
    bad = torch.nn.Parameter(make(param.data), requires_grad=False)
    param.requires_grad_(False)
    param.data = bad.data
    with pytest.raises(DtypeError, match=r"params\[0\]"):
        optimizer.step([torch.ones(4, 4)])
    assert torch.equal(kept, before)


def test_another_device_is_refused():
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = na.Adam([param])
    optimizer.step([torch.ones(4)])
    torch.utils.swap_tensors(param, torch.nn.Parameter(torch.ones(4, device="meta")))
    with pytest.raises(UnsupportedArrayError, match=r"params\[0\].*device meta"):
        optimizer.step([torch.ones(4)])


def test_a_parameter_that_is_no_longer_dense_is_refused():
    param = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = na.Adam([param])
    optimizer.step([torch.ones(4, 4)])
    wide = torch.ones(4, 8)
    for bad in (wide[:, ::2], wide[:, :4], torch.ones(1, 4).expand(4, 4)):
        param.data = bad
        with pytest.raises(LayoutError, match=r"params\[0\].*has strides"):
            optimizer.step([torch.ones(4, 4)])
    assert (wide == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_with_another_order_are_read_element_by_element(dtype):
    """`y = x.t(); y.backward(...)` and hooks leave such gradients; so does the same tensor turned with t_()."""
    params = [torch.nn.Parameter(torch.ones(4, 4, dtype=getattr(torch, dtype))) for _ in range(2)]
    optimizers = [na.Adam([param], lr=LR) for param in params]
    grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).to(getattr(torch, dtype))
    for step in range(4):
        if step:
            grad.t_()
        optimizers[0].step([grad])
        optimizers[1].step([grad.clone(memory_format=torch.contiguous_format)])
        assert torch.equal(*params)
    optimizers[0].step([grad], zero_grad=True)
    assert not grad.any()


@pytest.mark.parametrize("state", [None, "bfloat16", "8bit"])
def test_torch_continues_from_a_state_with_another_order(state):
    last = torch.channels_last
    ours, theirs, mine, their = pair(lambda: convolution(last), state_dtype=state)
    for seed in range(2):
        train(ours, mine, images(seed, last))
    wide = na.Adam(list(convolution().parameters()), eps_mode="algorithm1")
    wide.load_state_dict(mine.state_dict())
    converted = to_torch_state_dict(mine.state_dict())
    their.load_state_dict(converted)
    for index, param in enumerate(theirs.parameters()):
        for key in ("exp_avg", "exp_avg_sq"):
            found = their.state[param][key]
            assert found.stride() == param.stride()
            assert (found.float().numpy() == wide.state[index][key]).all(), key


def test_a_torch_state_with_any_order_loads():
    last = torch.channels_last
    ours, theirs, mine, their = pair(lambda: convolution(last))
    for seed in range(2):
        train(theirs, their, images(seed, last))
    theirs_in_order = na.Adam(list(convolution().parameters()))
    for optimizer in (mine, theirs_in_order):
        optimizer.load_state_dict(their.state_dict())
        for index, param in enumerate(theirs.parameters()):
            for key in ("exp_avg", "exp_avg_sq"):
                assert (optimizer.state[index][key] == their.state[param][key].numpy()).all()
    assert mine.state[0]["exp_avg"].strides == tuple(4 * stride for stride in ours[0].weight.stride())


def test_16_bit_weights_with_masters_follow_a_new_order():
    params = [torch.nn.Parameter(torch.ones(6, 6).bfloat16()) for _ in range(2)]
    optimizers = [na.Adam([param], lr=1e-4, master_weights=True, ema_decay=0.5) for param in params]
    grad = torch.randn(6, 6, generator=torch.Generator().manual_seed(4))
    for step in range(40):
        if step in (10, 25):
            params[0].data = params[0].data.t().contiguous().t() if step == 10 else params[0].data.contiguous()
        for optimizer in optimizers:
            optimizer.step([grad])
        assert torch.equal(*params)
    for key in ("master_param", "exp_avg", "ema"):
        assert (optimizers[0].state[0][key] == optimizers[1].state[0][key]).all()
    assert (params[0] != 1).any()
