"""PyTorch's own test cases for its optimizers, `torch.testing._internal.common_optimizers`, run against ours."""

import warnings
from functools import partial

import pytest
import torch

import numba_adam.torch as na_torch

pytestmark = pytest.mark.parity
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its modules say while they are imported
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db


def offload(adam, params, **settings):
    """Make the offloading optimizer that stands for Adam or AdamW."""
    if adam is torch.optim.AdamW:
        settings = {"weight_decay": 0.01, **settings, "decoupled_weight_decay": True}
    return na_torch.CPUOffloadAdam(params, **settings)


def offload_in_backward(adam, params, **settings):
    return offload(adam, params, update_in_backward=True, **settings)


def adapter(adam, params, **settings):
    return {torch.optim.Adam: na_torch.Adam, torch.optim.AdamW: na_torch.AdamW}[adam](params, **settings)


MAKERS = pytest.mark.parametrize("make", [adapter, offload, offload_in_backward], ids=lambda make: make.__name__)
INFOS = [info for info in optim_db if info.optim_cls in (torch.optim.Adam, torch.optim.AdamW)]
INPUTS = [(info, case) for info in INFOS for case in info.optim_inputs_func(device="cpu")]
ERRORS = [(info, case) for info in INFOS for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)]

# What PyTorch refuses, or only warns of, and we treat in another way. docs/pytorch.md gives the reasons.
TAKEN = (
    "lr as a Tensor is not supported for capturable=False and foreach=True",
    "betas must be either both floats or both Tensors",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
)
OTHER_ERROR = {
    ".*a parameter group with duplicate parameters.*": "share memory",
    "Tensor lr must be 1-element": "lr",
    "Invalid beta parameter at index 0: 1.0": "betas",
    "Invalid weight_decay value: -1": "weight_decay",
}


def named(pair):
    info, case = pair
    return f"{info.optim_cls.__name__}-{getattr(case, 'desc', '') or getattr(case, 'error_regex', '')}"


def step_with(optimizer, params, grads):
    """Make a step with gradients that a backward pass computes."""
    for param in params:
        param.grad = None
    sum((param * grad).sum() for param, grad in zip(params, grads, strict=True)).backward()
    optimizer.step()


@MAKERS
@pytest.mark.parametrize(("info", "case"), INPUTS, ids=map(named, INPUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_configuration_gives_pytorchs_values(info, case, dtype, make):
    random = torch.Generator().manual_seed(3)
    values = [torch.randn(shape, dtype=dtype, generator=random) for shape in ((10, 5), (10,), ())]
    sides = []
    for made in (partial(make, info.optim_cls), info.optim_cls):
        params = [torch.nn.Parameter(value.clone()) for value in values]
        sides.append((params, made(params, **case.kwargs)))
    for _ in range(10):
        grads = [torch.randn(value.shape, dtype=dtype, generator=random) for value in values]
        for params, optimizer in sides:
            step_with(optimizer, params, grads)
    for one, other in zip(*(params for params, _ in sides), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-6)
    for one, other in zip(*(params for params, _ in sides), strict=True):
        own, its = sides[0][1].state[one], sides[1][1].state[other]
        assert own.keys() == its.keys()
        for key, value in its.items():
            torch.testing.assert_close(own[key], value, rtol=1e-5, atol=1e-8)


@MAKERS
@pytest.mark.parametrize(("info", "case"), ERRORS, ids=map(named, ERRORS))
def test_what_pytorch_refuses_is_refused(info, case, make):
    assert case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
    given = case.optimizer_error_input
    if case.error_regex in TAKEN:
        params = [torch.nn.Parameter(torch.ones(2))]
        optimizer = make(info.optim_cls, params, **given.kwargs)
        step_with(optimizer, params, [torch.ones(2)])
        assert not torch.equal(params[0], torch.ones(2))
        return
    error = ValueError if case.error_type is UserWarning else case.error_type
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        params = [torch.nn.Parameter(torch.ones(2))] if given.params is None else given.params
        with pytest.raises(error, match=OTHER_ERROR.get(case.error_regex, case.error_regex)):
            make(info.optim_cls, params, **given.kwargs)
