"""Tensors as gradients: those laid out as their parameters are borrowed all at once, all others one by one."""

import numpy as np
import pytest

import numba_adam as na
from numba_adam.errors import OverlapError, ShapeError, UnsupportedArrayError

try:
    import torch
except ImportError:
    torch = None
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(torch is None, reason="PyTorch is not installed; the parity environment has it"),
]

SHAPES = [(3, 4), (5,), (), (2, 3, 4, 2), (0, 2)]


def values(seed, dtype="float32"):
    random = np.random.default_rng(seed)
    return [np.asarray(random.normal(size=shape), dtype) for shape in SHAPES]


def stepped(change):
    """Make three steps with tensors, whose gradients `change` may replace; return the parameters' values."""
    params = [torch.from_numpy(value.copy()) for value in values(0)]
    optimizer = na.Adam(params, lr=0.1)
    for seed in (1, 2, 3):
        optimizer.step(change([torch.from_numpy(value.copy()) for value in values(seed)], params))
    return [param.numpy() for param in params]


def expected(present=lambda _: True):
    """Return what NumPy arrays become, whose gradients no tensor's layout describes."""
    params = values(0)
    optimizer = na.Adam(params, lr=0.1)
    for seed in (1, 2, 3):
        optimizer.step([grad if present(place) else None for place, grad in enumerate(values(seed))])
    return params


def negated(grads):
    """Return the same values, as views whose memory has the opposite signs."""
    return [torch._neg_view(-grad) for grad in grads]


def misaligned(grads):
    """Return copies of which each begins at an odd address."""
    copies = []
    for grad in grads:
        memory = bytearray(grad.numel() * 4 + 8)
        begin = 1 + torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % 2
        view = torch.frombuffer(memory, dtype=torch.float32, offset=begin, count=max(1, grad.numel()))
        copies.append(view[: grad.numel()].view(grad.shape).copy_(grad))
    return copies


@pytest.mark.parametrize(
    "change",
    [
        lambda grads, _: grads,
        lambda grads, _: [grad.clone().requires_grad_() for grad in grads],
        lambda grads, _: [grad.numpy() for grad in grads],
        lambda grads, _: [grads[0].t().contiguous().t(), *grads[1:]],
        lambda grads, _: [grads[0].numpy(), *grads[1:]],
        lambda grads, _: [*grads[:3], grads[3].contiguous(memory_format=torch.channels_last), grads[4]],
        lambda grads, _: [torch.nn.Parameter(grad) for grad in grads],
    ],
    ids=["plain", "with autograd", "NumPy", "transposed", "mixed kinds", "channels last", "a subclass"],
)
def test_a_step_with_tensors_gives_numpys_bits(change):
    for one, other in zip(stepped(change), expected(), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"state_dtype": "8bit"}], ids=str)
def test_an_empty_tensor_has_a_state_after_a_step_as_an_empty_array_has(options):
    kinds = torch.from_numpy, np.asarray
    states = []
    for kind in kinds:
        params = [kind(value.copy()) for value in values(0)]
        optimizer = na.Adam(params, lr=0.1, **options)
        for seed in (1, 2):
            optimizer.step([kind(value.copy()) for value in values(seed)])
        states.append(optimizer.state)
    assert states[0].keys() == states[1].keys() == set(range(len(SHAPES)))
    for key, entry in states[0].items():
        assert entry["step"] == states[1][key]["step"] == 2
        assert entry.keys() == states[1][key].keys()


def test_absent_gradients_among_tensors_leave_their_parameters():
    found = stepped(lambda grads, _: [grad if place % 2 else None for place, grad in enumerate(grads)])
    for one, other in zip(found, expected(lambda place: place % 2), strict=True):
        assert one.tobytes() == other.tobytes()


def test_double_gradients_are_read_as_what_they_are():
    params = [torch.from_numpy(value.copy()) for value in values(0)]
    arrays = values(0)
    optimizers = na.Adam(params), na.Adam(arrays)
    optimizers[0].step([torch.from_numpy(value) for value in values(1, "float64")])
    optimizers[1].step(values(1, "float64"))
    assert all(one.numpy().tobytes() == other.tobytes() for one, other in zip(params, arrays, strict=True))


@pytest.mark.parametrize("shift", [0, 1])
def test_a_gradient_that_shares_memory_with_a_parameter_is_refused(shift):
    memory = torch.zeros(20)
    params = [memory[:10], torch.zeros(4)]
    optimizer = na.Adam(params)
    optimizer.step([torch.ones(10), torch.ones(4)])
    before = [param.clone() for param in params]
    with pytest.raises(OverlapError, match="share memory"):
        optimizer.step([memory[shift : 10 + shift], torch.ones(4)])
    assert all(map(torch.equal, params, before))
    optimizer.step([memory[10:], torch.ones(4)])
    assert optimizer.state[0]["step"] == 2


def test_a_gradient_of_another_shape_is_refused_after_steps_that_fitted():
    optimizer = na.Adam([torch.zeros(4), torch.zeros(3)])
    optimizer.step([torch.ones(4), torch.ones(3)])
    with pytest.raises(ShapeError, match=r"grads\[1\]"):
        optimizer.step([torch.ones(4), torch.ones(4)])


def test_views_with_opposite_signs_are_refused_or_read_right():
    params = [torch.zeros(4)]
    optimizer = na.Adam(params, lr=0.1)
    with pytest.raises(UnsupportedArrayError):
        optimizer.step(negated([torch.ones(4)]))
    assert torch.equal(params[0], torch.zeros(4))


def test_gradients_at_odd_addresses_are_refused():
    params = [torch.zeros(4)]
    optimizer = na.Adam(params)
    optimizer.step([torch.ones(4)])
    before = params[0].clone()
    with pytest.raises(na.errors.LayoutError, match="address"):
        optimizer.step(misaligned([torch.ones(4)]))
    assert torch.equal(params[0], before)
